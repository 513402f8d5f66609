"""Times, sizes and counts as a person reads them."""

from __future__ import annotations

import pytest

from dask_otel.status.texts import ago, clients, duration, number_of, parts, size, ticks


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.0, "0 s"), (5e-7, "0.5 µs"), (500.2e-6, "500 µs"), (0.99999e-3, "1 ms"), (0.08443, "84.4 ms")),
        *((0.89726, "897 ms"), (0.9996, "1 s"), (1.5, "1.5 s"), (12.345, "12.3 s"), (100.4, "100 s"), (119.7, "2 min")),
        *((125, "2 min 5 s"), (7260, "2 h 1 min"), (172_800, "2 d"), (200_000, "2 d 8 h"), (1e8, "1,157 d 10 h")),
        (-1.0, "0 s"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_how_long_ago():
    assert (ago(0.08443), ago(3.2), ago(130.4)) == ("less than 1 s ago", "3 s ago", "2 min 10 s ago")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (400_000, "391 kiB"), (2**20, "1 MiB"), (3.5 * 2**20, "3.5 MiB"), (5e9, "4.7 GiB")],
)
def test_sizes(number, text):
    assert size(number) == text


def test_counts():
    assert [number_of(each, "task") for each in (0, 1, 2, 1000)] == ["0 tasks", "1 task", "2 tasks", "1,000 tasks"]
    assert clients(["alice", "bob", "carol", "dave", "eve"]) == "alice, bob, carol and 2 more"


def test_where_an_address_may_break():
    assert parts("http://otel-col.svc:4317") == ["http://", "otel-", "col.", "svc:", "4317"]
    assert parts("") == []


@pytest.mark.parametrize(
    ("whole", "texts"),
    [
        (0.89726, ["0", "200 ms", "400 ms", "600 ms", "800 ms"]),
        (7, ["0", "2 s", "4 s", "6 s"]),
        (150, ["0", "60 s", "2 min"]),
        (7200, ["0", "30 min", "60 min", "90 min", "2 h"]),
        (1e7, ["0", "20 d", "40 d", "60 d", "80 d", "100 d"]),
    ],
)
def test_ticks_are_at_round_times(whole, texts):
    found = ticks(whole)
    assert [text for _, text in found] == texts
    assert [at for at, _ in found] == sorted(at for at, _ in found)
    assert found[-1][0] <= 100
