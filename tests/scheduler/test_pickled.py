"""The type of an error is read from its pickle, which is not loaded."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zlib
from time import thread_time

import pytest
from distributed import span, wait
from distributed.core import error_message
from distributed.protocol.serialize import Serialized, serialize
from hypothesis import given
from hypothesis import strategies as st
from support import odd_errors
from support.clusters import bridged, finished
from support.trees import tree

from dask_otel.scheduler.outcomes import MAX_BYTES, class_of, error_of, pickle_of


class Task:
    """What a scheduler's TaskState holds of an error."""

    def __init__(self, exception, text):
        self.exception, self.exception_text = exception, text


def erred(error, *, arrives):
    """What becomes of an error on its way from a worker, in the same process or another."""
    try:
        raise error
    except BaseException as raised:
        message = error_message(raised)
    exception = message["exception"]
    return Task(Serialized(*serialize(exception.data)) if arrives else exception, message["exception_text"])


@pytest.mark.parametrize("arrives", [True, False], ids=["another process", "same process"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("boom"), ("ValueError", "boom")),
        (FileNotFoundError(2, "gone"), ("FileNotFoundError", "2, 'gone'")),
        (zlib.error("cut"), ("error", "cut")),
        (struct.error("short"), ("error", "short")),
        (
            odd_errors.WithRepr("1 validation error for Model\nx\n  wrong"),
            ("WithRepr", "1 validation error for Model\nx\n  wrong"),
        ),
        (odd_errors.WithRepr("<Response [503]>"), ("WithRepr", "<Response [503]>")),
        (odd_errors.WithRepr(""), ("WithRepr", "")),
        (odd_errors.WithRepr("x" * 5000), ("WithRepr", "x" * 4000)),
        (odd_errors.Looks("Response(503)"), ("Looks", "Response(503)")),
        (odd_errors.Looks("Looks(503)"), ("Looks", "503")),
        (odd_errors.Outer.Inner("in"), ("Inner", "in")),
        (odd_errors.TwoArguments(3, "two"), ("TwoArguments", "two")),
        (odd_errors.Reduced("again"), ("Reduced", "again")),
        (odd_errors.ByClassMethod("made"), ("ByClassMethod", "made")),
        (odd_errors.ByFunction("made"), ("ByFunction", "made")),
        (odd_errors.error("small"), ("error", "small")),
        (odd_errors.local("by value"), ("Local", "by value")),
        (odd_errors.dynamic("by value"), ("Dynamic", "by value")),
        (odd_errors.chained("after"), ("WithRepr", "after")),
        (odd_errors.LongAndStrict("y" * 20_000), ("LongAndStrict", "'" + "y" * 3900)),
        (odd_errors.UnpicklablePlain("plain"), ("UnpicklablePlain", "plain")),
        # Neither says what it is.
        (odd_errors.Unpicklable("odd"), ("_OTHER", "odd")),
        (odd_errors.ByFactory("odd"), ("_OTHER", "odd")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_type_and_message(error, expected, arrives):
    type_, message = error_of(erred(error, arrives=arrives))
    assert (type_, message[: len(expected[1])]) == expected
    assert len(message) <= 4000


def test_numpy_s_private_errors_have_their_public_names():
    numpy = pytest.importorskip("numpy")
    for broken, type_ in [
        (lambda: numpy.zeros(10**17), "MemoryError"),
        (lambda: numpy.array([1]) + numpy.array(["a"]), "UFuncTypeError"),
        (lambda: numpy.sum(numpy.zeros(1), axis=3), "AxisError"),
    ]:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            broken()
        assert error_of(erred(raised.value, arrives=True))[0] == type_ == type(raised.value).__name__


_SCRIPT = """
import sys
from distributed.core import error_message
from support.odd_errors import WithRepr

class Bare(Exception):
    def __repr__(self):
        return ""

class Derived(Bare):
    pass

class Reduced(WithRepr):
    def __reduce__(self):
        return Reduced, self.args

class Meta(type):
    pass

class WithMeta(WithRepr, metaclass=Meta):
    pass

for error in Bare(1), Derived(2), Reduced("3"), WithMeta("4"):
    try:
        raise error
    except Exception as raised:
        print(error_message(raised)["exception"].data.hex())
"""


@pytest.mark.slow
def test_classes_of_a_person_s_script():
    out = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True).stdout
    names = [class_of(bytes.fromhex(line)) for line in out.split()]
    # A class whose metaclass comes along, too, is not worth more reading.
    assert [each and each.name for each in names] == ["Bare", "Derived", "Reduced", None]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol):
    assert class_of(pickle.dumps(odd_errors.Reduced("x"), protocol)) == ("support.odd_errors", "Reduced")


def test_an_actor_that_was_lost():
    task = Task(Serialized(*serialize(RuntimeError("Worker holding Actor was lost"))), None)
    assert error_of(task) == ("RuntimeError", "")


def test_what_cannot_be_read_as_it_is():
    header, frames = serialize(pickle.dumps(ValueError("x")))
    for exception in (
        Serialized({**header, "compression": ("lz4",)}, frames),
        Serialized({**header, "type": "numpy.ndarray"}, frames),
        Serialized(header, []),
        "text",
        None,
    ):
        assert pickle_of(exception) is None
        assert error_of(Task(exception, "KeyError('k')")) == ("KeyError", "k")


def test_nothing_is_loaded():
    module = "antigravity"  # opens a browser
    assert module not in sys.modules
    data = pickle.dumps(odd_errors.Reduced("x"), 0).replace(b"support.odd_errors\nReduced", b"antigravity\nReduced")
    assert class_of(data) == (module, "Reduced")
    assert module not in sys.modules


@pytest.mark.parametrize("name", ["two words", "", "x" * 5000, "\ud800"])
def test_a_class_with_a_name_that_is_none(name):
    data = pickle.dumps(odd_errors.Reduced("x"), 0).replace(b"Reduced", name.encode("utf-8", "surrogatepass"))
    assert class_of(data) is None


@given(st.binary(max_size=300))
def test_any_bytes(data):
    class_of(data)
    class_of(b"\x80\x05" + data)


_PICKLES = [
    erred(error, arrives=False).exception.data
    for error in (ValueError("x"), odd_errors.local("y"), odd_errors.ByFunction("z"))
]


@given(st.sampled_from(_PICKLES), st.data())
def test_broken_pickles(whole, draw):
    cut = draw.draw(st.integers(0, len(whole)))
    assert class_of(whole[:cut]) in (None, class_of(whole))
    broken = bytearray(whole)
    for position in draw.draw(st.lists(st.integers(0, 200), max_size=5)):
        broken[position] = draw.draw(st.integers(0, 255))
    class_of(bytes(broken))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(["x" * 10**7] * 3),
        b"\x80\x05" + b"(" * 10**7,
        b"\x80\x05" + b"\x8c\x01a\x94" * 10**6,
        b"\x80\x05I" + b"9" * 10**7 + b"\n",
        pickle.dumps(list(range(10**5))),
    ],
    ids=["texts", "marks", "names", "number", "list"],
)
def test_megabytes_are_not_read(data):
    assert class_of(data) == class_of(data[:MAX_BYTES]) is None
    before = thread_time()
    for _ in range(10):
        class_of(data)
    assert thread_time() - before < 1  # a second for what takes less than a ms each


def odd(text):
    raise odd_errors.Looks(text)


@bridged()
async def test_a_whole_trace(plugin, client, scheduler, *workers):
    with span("root"):
        failed = client.submit(odd, "<Response [503]>", key="fetch")
        await wait([failed, client.submit(len, failed, key="parse")])
    spans = await finished(plugin)
    assert tree(spans, tasks=True) == [
        "root [span] Error: Looks: 1 task erred, 1 task failed upstream; first: <Response [503]>",
        "  fetch [group] Error: Looks: 1 task erred; first: <Response [503]>",
        "    fetch [task] Error: Looks: <Response [503]>",
        "  parse [group] Error: Looks: 1 task failed upstream; first: <Response [503]> dependency -> fetch",
    ]
    ((_, event),) = next(each for each in spans if each.events).events
    assert (event["exception.type"], event["exception.message"]) == ("Looks", "<Response [503]>")
