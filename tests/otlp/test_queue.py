"""What waits is bounded, and what is worth least goes first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.memory import FACTORY
from support.records import group, pending, phase, root_segment, segment, task

from dask_otel.identity import Caller
from dask_otel.otlp.encoding import encode
from dask_otel.otlp.packing import Packed, Packer, unpacked
from dask_otel.otlp.queue import SpanQueue, size_of
from dask_otel.otlp.spans import kind_of
from dask_otel.spantree.records import SegmentRecord

MANY = 10**9


def bundle(number: int, groups: int, tasks: int, phases: int = 0):
    return [
        *(phase(name=f"{number}.p{i}") for i in range(phases)),
        *(task(name=f"{number}.t{i}") for i in range(tasks)),
        *(group(name=f"{number}.g{i}") for i in range(groups)),
        segment(name=str(number)),
    ]


def waiting(max_spans=MANY, max_bytes=MANY):
    dropped: Counter[str] = Counter()
    return SpanQueue(max_spans, max_bytes, dropped.update), dropped


def measured(items):
    """Spans, bytes in memory, spans that are not packed, and bytes as OTLP."""
    return (
        len(unpacked(items)),
        sum(item.size if isinstance(item, Packed) else size_of(item) for item in items),
        sum(not isinstance(item, Packed) for item in items),
        sum(map(size_of, unpacked(items))),
    )


def drain(queue, max_spans=MANY, max_bytes=MANY):
    batches = []
    while batch := unpacked(queue.take(max_spans, max_bytes)):
        batches.append(batch)
    return batches


def names(batches):
    return [record.name for batch in batches for record in batch]


def test_tasks_go_first_then_groups_then_the_oldest_segments():
    queue, dropped = waiting(max_spans=6)
    queue.put(bundle(1, 1, 1))
    queue.put(bundle(2, 1, 1))
    queue.put(bundle(3, 0, 1))
    assert dropped == {"task": 2}
    queue.put(bundle(4, 0, 0))
    queue.put(bundle(5, 0, 0))
    assert dropped == {"task": 3, "group": 1}
    for number in range(6, 10):
        queue.put(bundle(number, 0, 0))
    assert dropped == {"task": 3, "group": 2, "span": 3}
    assert names(drain(queue)) == ["4", "5", "6", "7", "8", "9"]


def test_phases_go_after_tasks_and_before_groups():
    queue, dropped = waiting(max_spans=7)
    queue.put(bundle(1, 1, 1, phases=2))
    queue.put(bundle(2, 1, 0, phases=1))
    assert dropped == {"task": 1}
    queue.put(bundle(3, 0, 0))
    assert dropped == {"task": 1, "phase": 2}
    queue.put(bundle(4, 0, 0, phases=2))
    assert dropped == {"task": 1, "phase": 5}
    for number in range(5, 8):
        queue.put(bundle(number, 0, 0))
    assert dropped == {"task": 1, "phase": 5, "group": 2}
    segments = [record for batch in drain(queue) for record in batch if isinstance(record, SegmentRecord)]
    assert [each.dropped_phases for each in segments] == [2, 1, 0, 2, 0, 0, 0]


def test_no_more_is_given_up_than_need_be():
    queue, dropped = waiting(max_spans=500)
    queue.put(bundle(1, 501, 0))
    assert dropped == {"group": 32}
    assert queue.spans == 501 + 1 - 32


def test_what_a_segment_has_lost_is_said_on_it_and_on_no_other_exporter_s():
    queue, _ = waiting(max_spans=2)
    records = bundle(1, 2, 3, phases=1)
    queue.put(records)
    assert names(drain(queue)) == ["1"]
    queue.put(records)
    (sent,) = drain(queue)[0]
    assert (sent.dropped_tasks, sent.dropped_groups, sent.dropped_phases) == (3, 2, 1)
    assert (records[-1].dropped_tasks, records[-1].dropped_groups, records[-1].dropped_phases) == (0, 0, 0)


@pytest.mark.parametrize("above", [{}, {"parent_id": 5, "caller": Caller(7, 5, is_sampled=True)}])
def test_the_top_of_a_trace_says_what_was_lost_before_it_left(above):
    queue, _ = waiting(max_spans=2)
    for number in range(5):
        queue.put([segment(name=str(number), trace_id=7, parent_id=3)])
    queue.put([root_segment(name="other", trace_id=8, **above)])
    queue.put([root_segment(name="root", trace_id=7, **above)])
    other, root = drain(queue)[0]
    assert (other.dropped_spans, root.dropped_spans) == (0, 5)


def test_bounded_by_bytes():
    one = sum(map(size_of, bundle(1, 0, 0)))
    queue, dropped = waiting(max_bytes=3 * one)
    for number in range(10):
        queue.put(bundle(number, 0, 0))
    assert dropped == {"span": 7}
    assert queue.bytes == 3 * one


def test_a_bundle_that_is_larger_than_a_batch_leaves_in_parts():
    queue, _ = waiting()
    queue.put(bundle(1, 6, 0))
    queue.put(bundle(2, 0, 0))
    assert [len(batch) for batch in drain(queue, max_spans=3)] == [3, 3, 2]
    queue.put(bundle(1, 6, 0))
    assert [len(batch) for batch in drain(queue, max_bytes=1)] == [1] * 7
    assert (queue.spans, queue.bytes) == (0, 0)


BUNDLES = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)).map(lambda sizes: ("put", *sizes))
STEPS = st.lists(
    BUNDLES
    | st.just(("mark",))
    | st.tuples(st.just("pack"), st.integers(0, 5))
    | st.tuples(st.just("take"), st.integers(1, 8), st.sampled_from([1, 20_000, MANY])),
    max_size=30,
)


@example([("put", 0, 2, 1), ("pack", 0), ("take", 1, 1), ("pack", 0)], 3, 50_000)
@given(STEPS, st.integers(1, 25), st.sampled_from([5_000, 50_000, MANY]))
def test_nothing_is_lost_without_being_counted(steps, max_spans, max_bytes):
    queue, dropped = waiting(max_spans, max_bytes)
    put: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    packer = Packer(size_of)
    for number, step in enumerate(steps):
        if step[0] == "take":
            batch = unpacked(queue.take(*step[1:]))
            assert len(batch) <= step[1]
            assert len(batch) <= 1 or sum(map(size_of, batch)) <= step[2]
            taken.update(map(kind_of, batch))
        elif step[0] == "pack":
            while to_pack := queue.to_pack(step[1]):
                items = to_pack.items
                queue.pack(to_pack, items, list(packer.pack(items)))
            assert queue.loose <= step[1]
        else:
            records = [pending()] if step[0] == "mark" else bundle(number, *step[1:])
            put.update(map(kind_of, records))
            lost = +dropped
            queue.put(records)
            assert queue.spans <= max_spans
            assert queue.bytes <= max_bytes
            if any(dropped[kind] > lost[kind] for kind in ("span", "pending")):  # nothing of less worth was left before
                assert not any(b.has(type(each)) for b in queue._queue for each in (task(), phase()))
    for b in queue._queue:
        assert (b.spans, b.size, b.loose, b.wire) == measured(b.items)
    assert queue.spans == sum(b.spans for b in queue._queue)
    assert queue.bytes == sum(b.size for b in queue._queue)
    taken.update(kind_of(record) for batch in drain(queue) for record in batch)
    assert put == taken + dropped
    assert (queue.spans, queue.bytes) == (0, 0)


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_is_packed_leaves_as_it_came(is_packed):
    """In the same order, and with the losses that were counted meanwhile."""
    queue, dropped = waiting(max_spans=130)
    packer = Packer(size_of)

    def put(*records):
        queue.put(list(records))
        while is_packed and (to_pack := queue.to_pack(0)):
            items = to_pack.items
            queue.pack(to_pack, items, list(packer.pack(items)))

    put(*bundle(1, 70, 40))
    put(root_segment(name="lost", trace_id=7), *bundle(2, 0, 0))  # never together in life
    put(*bundle(3, 40, 0))
    queue.note_lost({7: 1})
    assert dropped == {"task": 32}
    records = [record for batch in drain(queue, max_spans=50) for record in batch]
    assert [record.name for record in records] == [
        *(f"1.t{i}" for i in range(32, 40)),
        *(f"1.g{i}" for i in range(70)),
        *("1", "lost", "2"),
        *(f"3.g{i}" for i in range(40)),
        "3",
    ]
    expected = [*bundle(1, 70, 40)[32:], root_segment(name="lost", trace_id=7), *bundle(2, 0, 0), *bundle(3, 40, 0)]
    expected[78].dropped_tasks = 32
    expected[79].dropped_spans = 1
    assert [encode(FACTORY.data(record)) for record in records] == [encode(FACTORY.data(each)) for each in expected]


def test_packed_records_take_a_tenth_of_the_memory():
    queue, _ = waiting()
    packer = Packer(size_of)
    for number in range(20):
        queue.put(bundle(number, 49, 0))
    before = queue.bytes
    while to_pack := queue.to_pack(0):
        items = to_pack.items
        queue.pack(to_pack, items, list(packer.pack(items)))
    assert queue.bytes < before / 10
    assert queue.spans == 1000
