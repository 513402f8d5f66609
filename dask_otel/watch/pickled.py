"""The class of a pickled exception, read from the pickle's first opcodes; nothing is loaded."""

from __future__ import annotations

import pickletools
import sys
from collections.abc import Iterable
from io import BytesIO
from typing import Any, NamedTuple

__all__ = ["PickledClass", "class_of", "pickle_of"]

#: Bytes of a pickle that are read. The class stands before the arguments, so it is among the first.
MAX_BYTES = 4096
#: Opcodes that are read.
MAX_OPCODES = 100

_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_SKIPPED = {"PROTO", "FRAME", "MARK"}
#: Functions that are called with a class, whatever package that class is in.
_CALL_A_CLASS = {"builtins", "copyreg", "functools", "tblib"}


class PickledClass(NamedTuple):
    """A name in a pickle: a class or a function."""

    module: str
    #: Qualified, e.g. ``Outer.Inner``.
    qualname: str

    @property
    def name(self) -> str:
        """Unqualified, e.g. ``Inner``."""
        return self.qualname.rpartition(".")[2]

    @property
    def package(self) -> str:
        """Top-level package."""
        return self.module.partition(".")[0]


def pickle_of(exception: Any) -> bytes | None:
    """Give the beginning of an exception's pickle, as the scheduler holds it; None if it cannot be read as it is.

    Parameters
    ----------
    exception
        ``TaskState.exception``. The scheduler makes ``bytes`` for its own errors. A worker pickles a task's exception,
        and sends the bytes as ``Serialize``, which arrives as ``Serialized`` unless both are in one process.
    """
    data = getattr(exception, "data", exception)
    header = getattr(exception, "header", None)
    if isinstance(header, dict):
        if any(header.get("compression") or ()) or not exception.frames:
            return None
        if header.get("serializer") != "pickle" and header.get("type") != "bytes":
            return None
        data = exception.frames[0]
    return bytes(memoryview(data)[:MAX_BYTES]) if isinstance(data, bytes | bytearray | memoryview) else None


def class_of(data: bytes) -> PickledClass | None:
    """Find the class of the exception that a pickle would give; None if that is not plain from its beginning.

    Never raises.
    """
    try:
        return _read(data[:MAX_BYTES])
    except Exception:  # noqa: BLE001 -- cut in the middle, or no pickle at all
        return None


def _read(data: bytes) -> PickledClass | None:
    # Of what the pickle would push, names and strings are kept. Reading ends at the first opcode that calls something
    # or makes anything else: by then the class has been named, if the pickle begins as pickles of exceptions do.
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    steps: Iterable[tuple[Any, Any, Any]] = pickletools.genops(BytesIO(data))
    for number, (opcode, argument, _) in enumerate(steps):
        if opcode.name in _STRINGS:
            stack.append(argument)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
            continue
        elif opcode.name in _PUTS:
            memo[argument] = stack[-1]
            continue
        elif opcode.name in _GETS:
            stack.append(memo[argument])
        elif opcode.name == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(PickledClass(str(module), str(name)))
        elif opcode.name == "GLOBAL":
            stack.append(PickledClass(*argument.split(" ", 1)))
        elif opcode.name in _SKIPPED and number < MAX_OPCODES:
            continue
        else:
            return None
        found = _find(stack)
        if found:
            return found if found.name.isidentifier() else None
    return None


def _find(stack: list[Any]) -> PickledClass | None:
    """Tell the class from what has been pushed: it is called itself, or is the first argument of what is called."""
    certain = False
    caller: PickledClass | None = None
    for position, item in enumerate(stack):
        if not isinstance(item, PickledClass):
            return None
        if item.name == "_make_skeleton_class":  # cloudpickle's, of a class that the pickle brings along
            match stack[position + 1 : position + 3]:
                case [PickledClass(_, metaclass), str(name)] if metaclass != item.name:
                    return PickledClass("__main__", name)
            return None
        if certain or _is_exception(item):
            related = caller is None or caller.package in (*_CALL_A_CLASS, item.package)
            return item if related else None
        caller = item
        # tblib calls this one with the class, and the other one with whatever ``__reduce__`` gives.
        certain = item == ("tblib.pickling_support", "unpickle_exception_with_attrs")
    return None


def _is_exception(named: PickledClass) -> bool:
    """Whether a name is a class of exceptions: looked up if its module happens to be loaded, else told by its case."""
    module = sys.modules.get(named.module)
    if module is not None and "." not in named.qualname:
        # Not by ``getattr``, which makes a lazy module load itself.
        found = object.__getattribute__(module, "__dict__").get(named.qualname)
        if found is not None:
            return issubclass(type(found), type) and issubclass(found, BaseException)
    return named.name.lstrip("_")[:1].isupper()
