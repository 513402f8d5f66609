"""How large results are in memory, where that is known at once.

Not ``dask.sizeof``: it draws samples with ``random`` and ``numpy.random``, so that programs that set a seed would get
other random numbers.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["size_of"]

#: Objects and columns of one result: looking at each takes a fraction of a microsecond.
MAX_PARTS = 1000
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_COLLECTIONS = frozenset({list, tuple, set, frozenset})


def size_of(result: Any) -> int | None:
    """Return the bytes of a result; None if some of it is of an unknown type, or there is too much to look at."""
    total, left, parts = 0, MAX_PARTS, [result]
    while parts:
        each = parts.pop()
        kind = type(each)
        inside: Any = ()
        if kind in _PLAIN:
            total += sys.getsizeof(each)
        elif kind in _COLLECTIONS:
            total += sys.getsizeof(each)
            inside = each
        elif kind is dict:
            total += sys.getsizeof(each)
            inside = (*each, *each.values()) if len(each) <= left else each
        elif (size := _size_of_arrays(each, kind, left)) is not None:
            total += size
        else:
            return None
        left -= 1 + len(inside)
        if left < 0:
            return None
        parts.extend(inside)
    return total


def _size_of_arrays(each: Any, kind: type, left: int) -> int | None:
    """Return the bytes of an array or a table without Python objects in it."""
    module = kind.__module__.partition(".")[0]
    if module == "numpy":
        numpy = sys.modules["numpy"]
        if isinstance(each, numpy.generic) or (kind is numpy.ndarray and 0 not in each.strides):
            return None if each.dtype.hasobject else int(each.nbytes)
    elif module == "pandas":
        return _size_of_table(each, kind, left)
    elif module == "pyarrow" and kind.__name__ in ("Table", "RecordBatch"):
        return int(each.nbytes)
    return None


def _size_of_table(each: Any, kind: type, left: int) -> int | None:
    pandas = sys.modules["pandas"]
    if kind is pandas.DataFrame:
        if len(each.columns) > left:
            return None
        types = each.dtypes.tolist()
    elif kind is pandas.Series:
        types = [each.dtype]
    else:
        return None
    types.append(each.index.dtype)
    # Of Python's strings and other objects, only the pointers would be counted.
    if any(type_.kind == "O" and getattr(type_, "storage", None) != "pyarrow" for type_ in types):
        return None
    used = each.memory_usage(index=True, deep=False)
    return int(used.sum() if kind is pandas.DataFrame else used)
