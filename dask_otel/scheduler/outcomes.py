"""What a transition means for a task, and the type and message of its exception.

The class of an exception is read from the first opcodes of its pickle; nothing is loaded.
"""

from __future__ import annotations

import ast
import pickletools
import re
import sys
from collections.abc import Iterable
from io import BytesIO
from traceback import format_tb
from typing import Any, NamedTuple

from dask.utils import key_split

from ..spantree.events import TaskError

__all__ = [
    "ASKED_FOR",
    "CANCELLED",
    "LOST",
    "RETRIED",
    "RETRY",
    "UNFINISHED",
    "PickledClass",
    "class_of",
    "described",
    "error_of",
    "first_error",
    "outcome_of_release",
    "pickle_of",
    "prefix_of",
]

#: States of tasks that have not ended, in the order of the fields of ``Load``.
UNFINISHED = ("processing", "queued", "no-worker", "waiting")
#: Beginnings of stimulus ids that outcomes rest on; a test looks for each in Dask's source. First, those by which a
#: person cancels tasks.
CANCELLED = ("cancel-key", "client-restart")
#: A run failed, and its task is run again.
RETRIED = ("task-erred", "execute-unknown-error")
#: A person requests that a task is run again.
RETRY = "stimulus-retry"
ASKED_FOR = ("update-graph", RETRY)
#: The worker of a run, or an input on it, is gone.
LOST = (
    "handle-worker-cleanup",
    "check-worker-ttl",
    "retire-workers",
    "client-restart-workers",
    "cancelled-by-worker-close",
    "worker-close",
    "nanny-close",
    "worker-send-comm-fail",
    "send-all-comm-fail",
)
#: Characters kept of an exception's text.
MAX_TEXT = 4000


def outcome_of_release(task: Any, start: str, stimulus_id: str) -> str | None:
    """Outcome of a task that was released unfinished, or None where the release has no meaning of its own.

    The stimulus alone is not enough: when a task errs, its siblings that nobody needs are released by the same one.

    Parameters
    ----------
    start
        State that it was in: processing, waiting, queued or no-worker.
    """
    if task.has_lost_dependencies:  # without its scattered input it can never run
        return "lost"
    if task.exception_blame:  # on its way to erred
        return None
    if not (task.who_wants or task.waiters):
        is_cancelled = stimulus_id.startswith(CANCELLED) and not stimulus_id.startswith(LOST)
        return "cancelled" if is_cancelled else "abandoned"
    if start != "processing":
        return None
    if stimulus_id.startswith(RETRIED):
        return "retried"
    return "lost" if stimulus_id.startswith(LOST) else "rescheduled"


def error_of(task: Any) -> tuple[str, str]:
    """Type and message of the exception of a task that erred, found without unpickling it.

    The type is that in the pickle, or that in the ``repr`` if the pickle does not show it: a ``repr`` may look like
    anything, also like that of another type.

    Returns
    -------
    ``("_OTHER", text)`` if neither shows the type.
    """
    if task is None:
        return "_OTHER", ""
    type_, message = first_error(task.exception_text)
    data = pickle_of(task.exception)
    pickled = class_of(data) if data else None
    if pickled is None or pickled.name == type_:
        return type_, message
    if pickled.name == "Exception" and task.exception_text is not None:
        # Workers send ``Exception(repr)`` in the place of an exception that cannot be pickled.
        return type_, message
    if pickled.package == "numpy" and pickled.name.startswith("_") and type_ != "_OTHER":
        # numpy gives its private errors the name of the public ones that they derive from.
        return type_, message
    return pickled.name, (task.exception_text or "")[:MAX_TEXT]


_EXCEPTION = re.compile(r"\s*(?:[\w.]+\.)?(\w+)\s*\((.*)\)\s*", re.DOTALL)
_BEGINNING = re.compile(r"\s*(?:[\w.]+\.)?(\w+)\s*\(")
#: What workers make of a long exception whose type takes other arguments.
_SHORTENED = re.compile(r"Exception\('Long error message', <class '(?:[^']*\.)?(\w+)'>, ")


def prefix_of(key: Any) -> str:
    """Dask's prefix of a key; empty if it has none: anybody can submit and report any key."""
    try:
        return str(key_split(key))
    except Exception:  # noqa: BLE001 -- Dask's function takes what Dask's own keys are
        return ""


def first_error(text: str | None) -> tuple[str, str]:
    """Type and message of an exception, from its ``repr``; of a long one, as much as is shown.

    Returns
    -------
    ``("_OTHER", text)`` where the text does not look like ``Type(...)``; Dask gives no text at all for some.
    """
    text = text or ""
    shortened = _SHORTENED.match(text)
    if shortened:
        return shortened.group(1), text[shortened.end() : MAX_TEXT]
    if len(text) > MAX_TEXT:
        beginning = _BEGINNING.match(text[:MAX_TEXT])
        return (beginning.group(1), text[beginning.end() : MAX_TEXT]) if beginning else ("_OTHER", text[:MAX_TEXT])
    match = _EXCEPTION.fullmatch(text)
    if not match:
        return "_OTHER", text
    type_, arguments = match.groups()
    try:
        message = ast.literal_eval(arguments)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        message = arguments
    return type_, message if isinstance(message, str) else arguments


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


def described(error: BaseException) -> TaskError:
    """Describe an exception that this process has caught, with its traceback."""
    try:
        text = repr(error)
    except BaseException:  # noqa: BLE001 -- code of the person's, which may raise anything
        text = ""
    return TaskError(type(error).__name__, first_error(text)[1], "".join(format_tb(error.__traceback__)))


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
