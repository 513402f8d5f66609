"""The lazy span alone: the whole interface of a span, threads, the end."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import runpy
import threading
import weakref
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from dask_otel.worker import lazy_span
from dask_otel.worker.lazy_span import ANY, CHILD, Budget, LazySpan, freeze

PARENT = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class Task:
    """Where the span of a task is, and how it is made: place and maker in one."""

    name = "inc"

    def __init__(self, *processors, makes=True):
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        for processor in (*processors, SimpleSpanProcessor(self.exporter)):
            provider.add_span_processor(processor)
        self.tracer = provider.get_tracer("tests")
        self.calls = 0
        self.makes = makes
        #: How often the id of the parent was given out.
        self.given = 0

    def context(self):
        return PARENT

    def given_out(self):
        self.given += 1
        return PARENT

    def can_record(self):
        return self.makes

    def make(self):
        self.calls += 1
        if not self.makes:
            return None
        parent = trace.set_span_in_context(NonRecordingSpan(PARENT), Context())
        return self.tracer.start_span("inc", parent, attributes={"dask.kind": "task"})

    @property
    def sent(self):
        return self.exporter.get_finished_spans()


def lazy(*processors, when=ANY, makes=True):
    task = Task(*processors, makes=makes)
    return LazySpan(task, task, when == ANY), task


def real(span):
    """The span that was made, without making one."""
    return span._deferred.real


def over(span):
    """End the run, as ``execution`` does."""
    deferred = freeze(span)
    if deferred is not None:
        deferred.end(lambda span: span.end())


#: A call of each method of a span, and each attribute that code may read of the SDK's.
CALLS = {
    "add_event": lambda span: span.add_event("retry", {"n": 1}),
    "add_link": lambda span: span.add_link(SpanContext(3, 4, is_remote=False), {"n": 1}),
    "end": lambda span: span.end(5),
    "get_span_context": lambda span: span.get_span_context(),
    "is_recording": lambda span: span.is_recording(),
    "record_exception": lambda span: span.record_exception(ValueError("no"), escaped=True),
    "set_attribute": lambda span: span.set_attribute("a", 1),
    "set_attributes": lambda span: span.set_attributes({"a": 1}),
    "set_status": lambda span: span.set_status(Status(StatusCode.ERROR, "no")),
    "update_name": lambda span: span.update_name("other"),
}
#: Those that make no span.
QUIET = {"end", "is_recording"}
#: Those that make one also if only children count.
RECORD = CALLS.keys() - QUIET - {"get_span_context"}
READ = ["name", "context", "parent", "attributes", "events", "links", "status", "start_time", "end_time"]


def test_there_is_a_call_for_each_method_of_a_span():
    methods = {name for name, _ in inspect.getmembers(trace.Span, callable) if not name.startswith("_")}
    assert methods == set(CALLS)
    assert not {name for name, _ in inspect.getmembers(LazySpan) if not name.startswith("_")} - methods
    assert not LazySpan.__abstractmethods__


def shown(span):
    """All that calls can change."""
    return (
        span.name,
        dict(span.attributes),
        (span.status.status_code, span.status.description),
        [(each.context, dict(each.attributes)) for each in span.links],
        [(each.name, dict(each.attributes)) for each in span.events],
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_call_has_the_effect_that_it_has_on_a_span(name):
    span, task = lazy()
    CALLS[name](span)
    assert task.calls == (name not in QUIET)
    span.set_attribute("last", True)
    over(span)
    (sent,) = task.sent
    plain = Task()
    other = plain.make()
    if name != "end":
        CALLS[name](other)
    other.set_attribute("last", True)
    other.end()
    (expected,) = plain.sent
    assert shown(sent) == shown(expected)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("state", ["refused", "over", "ended"])
def test_no_call_raises_or_makes_anything_without_a_real_span(name, state):
    span, task = lazy(makes=state != "refused")
    if state == "ended":
        span.set_attribute("a", 0)
    if state != "refused":
        over(span)
    made = len(task.sent)
    for _ in range(2):
        CALLS[name](span)
    assert not span.is_recording()
    assert len(task.sent) == made == (state == "ended")
    assert task.calls <= 1
    if state != "ended":
        assert span.get_span_context() == PARENT


@pytest.mark.parametrize("name", CALLS)
def test_only_children_and_what_is_recorded(name):
    span, task = lazy(when=CHILD)
    got = CALLS[name](span)
    assert task.calls == (name in RECORD)
    if name == "get_span_context":
        assert got == PARENT
        child = task.tracer.start_span("child", trace.set_span_in_context(span, Context()))
        assert task.calls == 1
        assert child.parent == span.get_span_context() != PARENT


@pytest.mark.parametrize("name", READ)
def test_what_the_sdks_spans_have_can_be_read_always(name):
    span, task = lazy()
    getattr(span, name)
    assert task.calls == 1
    assert getattr(span, name) == getattr(real(span), name)
    refused, _ = lazy(makes=False)
    child, task = lazy(when=CHILD)
    for each in (refused, child):
        getattr(each, name)
    assert task.calls == 0
    assert hasattr(ReadableSpan, name)


def test_names_of_the_sdk_that_only_a_real_span_has():
    span, _ = lazy()
    assert span.to_json() == real(span).to_json()
    assert span.resource is real(span).resource
    refused, _ = lazy(makes=False)
    with pytest.raises(AttributeError):
        refused.to_json()
    for each in (span, refused):
        with pytest.raises(AttributeError):
            each.anything  # noqa: B018
        for copied in (pickle.loads(pickle.dumps(each)), copy.deepcopy(each)):
            assert copied.get_span_context() == each.get_span_context()
            assert not copied.is_recording()
    span.extra = 1  # as some instrumentations do
    assert span.extra == 1


def test_asking_for_private_names_makes_nothing():
    span, task = lazy()
    for name in ("__deepcopy__", "_attributes", "__wrapped__"):
        assert not hasattr(span, name)
    assert not hasattr(LazySpan.__new__(LazySpan), "anything")
    assert task.calls == 0
    assert repr(span) == "<LazySpan of 'inc': not made>"


def test_methods_of_a_later_api_are_forwarded(monkeypatch):
    """``opentelemetry-api`` may get new abstract methods: then the class has them all the same."""

    class Later(trace.Span):
        @abstractmethod
        def add_note(self, text):
            """What spans have some day."""

    monkeypatch.setattr(trace, "Span", Later)
    module = runpy.run_path(lazy_span.__file__)
    monkeypatch.undo()
    notes, task = [], Task()
    task.make = lambda: SimpleNamespace(add_note=notes.append)
    span = module["LazySpan"](task, task)
    assert isinstance(span, Later)
    span.add_note("x")
    assert notes == ["x"]


def test_as_a_context_manager_it_does_not_end():
    span, task = lazy()
    with span as entered, trace.use_span(span, end_on_exit=True):
        assert entered is span
        assert trace.get_current_span() is span
    assert span.is_recording()
    with pytest.raises(ValueError, match="no"), trace.use_span(span, end_on_exit=True):
        raise ValueError("no")
    over(span)
    (sent,) = task.sent
    assert [event.name for event in sent.events] == ["exception"]


def test_threads_that_ask_at_once_get_one_span():
    """Without a lock, each of a hundred such runs made more than one."""
    barrier = threading.Barrier(4)

    def ask(span):
        barrier.wait()
        return span.get_span_context()

    with ThreadPoolExecutor(4) as pool:
        for _ in range(100):
            span, task = lazy()
            ids = {context.span_id for context in pool.map(ask, [span] * 4)}
            assert task.calls == 1
            assert ids == {real(span).get_span_context().span_id}


class Processor(SpanProcessor):
    def __init__(self, on_start=lambda: None, on_end=lambda: None):
        self.started, self.ended = on_start, on_end

    def on_start(self, span, parent_context=None):
        self.started()

    def on_end(self, span):
        self.ended()


def test_a_processor_that_asks_for_the_current_span_gets_the_parent(monkeypatch):
    """At once: it would wait for itself."""
    monkeypatch.setattr(lazy_span, "MAX_WAIT", 600)
    got = []
    span, task = lazy(Processor(lambda: got.append(trace.get_current_span().get_span_context())))
    with trace.use_span(span):
        own = span.get_span_context()
    assert got == [PARENT]
    assert own == real(span).get_span_context()
    assert task.calls == 1


def test_others_do_not_wait_for_a_processor_that_blocks():
    entered, go = threading.Event(), threading.Event()

    def block():
        entered.set()
        assert go.wait(60)

    span, task = lazy(Processor(block))
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(span.get_span_context)
        assert entered.wait(60)
        assert span.get_span_context() == PARENT
        # The run ends meanwhile: the thread that makes the span ends it.
        ends = []
        freeze(span).end(lambda real: (ends.append(threading.get_ident()), real.end()))
        assert not task.sent
        go.set()
        own = making.result(60)
    assert ends != [threading.get_ident()]
    (sent,) = task.sent
    assert sent.context == own == span.get_span_context()


def test_they_wait_for_it_once(monkeypatch):
    """A coroutine that logs a hundred lines meanwhile would hold the event loop for seconds."""
    entered, go, waits = threading.Event(), threading.Event(), []

    def block():
        entered.set()
        assert go.wait(60)

    class Watched:
        def __init__(self):
            self.lock = threading.Lock()
            self.release, self.locked = self.lock.release, self.lock.locked

        def acquire(self, **how):
            if "timeout" in how:
                waits.append(how["timeout"])
            return self.lock.acquire(**how)

    monkeypatch.setattr(lazy_span, "Lock", Watched)
    span, task = lazy(Processor(block))
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(span.get_span_context)
        assert entered.wait(60)
        for _ in range(100):
            assert span.get_span_context() == PARENT
        go.set()
        assert making.result(60) == span.get_span_context()
    assert waits == [lazy_span.MAX_WAIT]
    assert task.given == 100


def test_nothing_changes_after_the_run():
    """Its span ends a moment later, in another thread."""
    span, task = lazy()
    span.set_attribute("a", 1)
    deferred = freeze(span)
    for call in CALLS.values():
        call(span)
    assert not span.is_recording()
    deferred.end(lambda real: real.end())
    (sent,) = task.sent
    assert (sent.name, dict(sent.attributes)) == ("inc", {"dask.kind": "task", "a": 1})
    assert (sent.events, sent.links, sent.status.status_code) == ((), (), StatusCode.UNSET)
    assert span.get_span_context() == sent.context


def test_asked_by_nobody(monkeypatch):
    """A thread that calls this method only has no frame above; else the name of the caller decides."""

    def no_frame(depth):
        raise ValueError("call stack is not deep enough")

    span, task = lazy(when=CHILD)
    monkeypatch.setattr(lazy_span.sys, "_getframe", no_frame)
    assert span.get_span_context() == PARENT
    assert task.calls == 0


def test_the_run_ends_while_the_span_is_used_for_the_first_time(monkeypatch):
    span, task = lazy()

    class Meanwhile(lazy_span.DeferredSpan):
        def __init__(self, maker):
            super().__init__(maker)
            assert freeze(span) is None

    monkeypatch.setattr(lazy_span, "DeferredSpan", Meanwhile)
    span.set_attribute("a", 1)
    assert span.get_span_context() == PARENT
    assert not task.calls


def test_interrupted_while_it_is_made():
    """Ctrl-C, or what ends a thread: it reaches the code that asked, and nobody waits for ever."""
    task = Task()

    def make():
        raise KeyboardInterrupt

    task.make = make
    span = LazySpan(task, task)
    with pytest.raises(KeyboardInterrupt):
        span.set_attribute("a", 1)
    assert span.get_span_context() == PARENT
    assert not span.is_recording()
    over(span)


def test_the_maker_is_let_go():
    for used in (True, False):
        task = Task()
        span = LazySpan(SimpleNamespace(name="inc", given_out=lambda: PARENT), task)
        if used:
            span.set_attribute("a", 1)
        over(span)
        kept = weakref.ref(task)
        del task
        gc.collect()
        assert kept() is None
        assert span.get_span_context().trace_id == PARENT.trace_id


@pytest.mark.parametrize("first", ["use", "end"])
def test_a_use_and_the_end_at_once(first):
    """Whoever comes first: the span is made and ended, or not made at all."""
    for _ in range(200):
        span, task = lazy()
        barrier = threading.Barrier(2)

        def use(span=span, barrier=barrier):
            barrier.wait()
            return span.get_span_context()

        def end(span=span, barrier=barrier):
            barrier.wait()
            over(span)

        threads = [threading.Thread(target=each) for each in ((use, end) if first == "use" else (end, use))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(task.sent) == task.calls <= 1
        assert not span.is_recording()


class Life(RuleBasedStateMachine):
    """Any calls, before and after the end, in both ways of making spans: the same as one span, or as its parent."""

    def __init__(self):
        super().__init__()
        self.over = self.made = False

    @precondition(lambda self: not hasattr(self, "span"))
    @rule(when=st.sampled_from([ANY, CHILD]), makes=st.booleans())
    def begin(self, when, makes):
        self.when = when
        self.span, self.task = lazy(when=when, makes=makes)

    @precondition(lambda self: hasattr(self, "span"))
    @rule(name=st.sampled_from(sorted(CALLS)))
    def call(self, name):
        CALLS[name](self.span)
        makes = RECORD if self.when == CHILD else CALLS.keys() - QUIET
        self.made |= not self.over and self.task.makes and name in makes

    @precondition(lambda self: hasattr(self, "span"))
    @rule(name=st.sampled_from(READ))
    def read(self, name):
        getattr(self.span, name)
        self.made |= not self.over and self.task.makes and self.when == ANY

    @precondition(lambda self: hasattr(self, "span"))
    @rule()
    def end(self):
        over(self.span)
        self.over = True

    @invariant()
    def holds(self):
        if not hasattr(self, "span"):
            return
        assert (real(self.span) is not None) == self.made
        assert self.span.is_recording() == (self.task.makes and not self.over)
        assert len(self.task.sent) == (self.made and self.over)
        if self.made:
            assert self.span.get_span_context() == real(self.span).get_span_context()
        elif self.when == CHILD or self.over:
            assert self.span.get_span_context() == PARENT


TestLife = Life.TestCase


@given(st.lists(st.floats(0, 120), max_size=200), st.integers(1, 50))
def test_the_budget_is_that_of_a_minute(pauses, per_minute):
    now = [0.0]
    budget = Budget(per_minute, lambda: now[0])
    taken = []
    for pause in pauses:
        now[0] += pause
        if budget.take():
            taken.append(now[0])
    for at in taken:
        # What was there at first, and what a minute adds.
        assert sum(at <= each < at + 60 for each in taken) <= 2 * per_minute
    budget.give_back()
    assert per_minute < 1 or budget.take()


def test_no_limit():
    budget = Budget(0)
    assert all(budget.take() for _ in range(1000))
