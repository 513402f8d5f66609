"""Sizes of results in memory: right where they are said, and absent where they are not known."""

from __future__ import annotations

import random
import sys
from collections import namedtuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dask_otel.client.sizes import MAX_PARTS, size_of

Pair = namedtuple("Pair", "x y")


def test_plain_values_and_collections():
    for value in (None, True, 1, 1.5, 1j, "text", b"bytes", bytearray(10)):
        assert size_of(value) == sys.getsizeof(value)
    for value in ([1, "a"], (1, "a"), {1, "a"}, frozenset([1, "a"])):
        assert size_of(value) == sys.getsizeof(value) + sys.getsizeof(1) + sys.getsizeof("a")
    value = {"a": [1, 2]}
    assert size_of(value) == sum(map(sys.getsizeof, (value, "a", value["a"], 1, 2)))


def test_arrays_and_tables():
    assert size_of(np.ones((10, 10))) == 800
    assert size_of(np.float64(1)) == 8
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [1, 2]}, index=pd.Index([1, 2]))
    assert size_of(frame) == 3 * 16
    assert size_of(frame["a"]) == 2 * 16
    assert size_of(pa.table({"a": [1, 2]})) == 16
    assert size_of([np.ones(10), frame]) == sys.getsizeof([1, 2]) + 80 + 48


def test_text_of_arrow_is_counted():
    text = pd.Series(["a" * 100, "b" * 100], dtype="string[pyarrow]", index=pd.Index([1, 2]))
    assert size_of(text) >= 200


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Pair(1, 2),
        type("Number", (int,), {})(1),
        np.array([object()]),
        np.broadcast_to(np.ones(1), (10,)),
        np.ma.masked_array([1]),
        pd.DataFrame({"a": ["x"]}, dtype=object),
        pd.Series(["x"], dtype="category"),
        pd.DataFrame({"a": [1]}, index=pd.Index(["x"], dtype=object)),
        pd.MultiIndex.from_tuples([(1, "a")]),
        pd.DataFrame(np.ones((1, MAX_PARTS + 1))),
        [1] * (MAX_PARTS + 1),
        dict.fromkeys(range(MAX_PARTS // 2 + 1)),
        [[1] * (MAX_PARTS // 2)] * 3,
        [1, object()],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_is_absent(value):
    assert size_of(value) is None


def test_a_collection_that_has_itself_in_it():
    value = [1]
    value.append(value)
    assert size_of(value) is None


def test_random_numbers_of_the_person_do_not_change():
    """As ``dask.sizeof`` does."""
    states = random.getstate(), np.random.get_state()[1].tolist()
    size_of([*range(500)])
    size_of(pd.DataFrame({"a": ["x"] * 1000}, dtype=object))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
