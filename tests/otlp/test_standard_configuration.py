"""Where spans go and how, by the standard variables (written without ``OTEL_``): by what arrives at a receiver."""

from __future__ import annotations

import os
import subprocess
import sys
from time import monotonic

import pytest
from support.environment import clear_variables
from support.misbehaving import Hangs, Misbehaving, Says, in_turn
from support.standard import Deflating, Listening, arrives, make_certificates, otlp, running

from dask_otel.errors import SettingError
from dask_otel.otlp import exporter as pipeline

SIGNALS = ["", "TRACES_"]
BAD_NEWS = Says(503, "UNAVAILABLE")


@pytest.fixture(autouse=True)
def _only_what_is_said(monkeypatch):
    clear_variables(monkeypatch)
    monkeypatch.setattr(pipeline, "BACK_OFF", (0.02, 0.1))


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    return request.param


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(
    ("signal", "written", "path"),
    [
        ("", "", "/v1/traces"),
        ("", "/", "/v1/traces"),
        ("", "/a/b", "/a/b/v1/traces"),
        ("", "/a/b/", "/a/b/v1/traces"),
        ("", "/a?key=1", "/a/v1/traces?key=1"),
        ("TRACES_", "", "/"),
        ("TRACES_", "/", "/"),
        ("TRACES_", "/a/b", "/a/b"),
        ("TRACES_", "/a/b/", "/a/b/"),
    ],
)
def test_endpoint(protocol, signal, written, path):
    with Misbehaving(protocol) as receiver:
        variables = otlp(ENDPOINT="http://127.0.0.1:1") | otlp(signal, ENDPOINT=receiver.endpoint + written)
        with running(**variables) as run:
            assert arrives(receiver, run).get(":path", path) == path


def test_the_signal_s_protocol_wins(protocol, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf" if protocol == "grpc" else "grpc")
    with Misbehaving(protocol) as receiver, running(receiver.endpoint, **otlp("TRACES_", PROTOCOL=protocol)) as run:
        arrives(receiver, run)


@pytest.mark.parametrize("signal", SIGNALS)
def test_headers_arrive_and_are_shown_nowhere(protocol, signal):
    headers = otlp(HEADERS="Api-Key=other,b=3") | otlp(signal, HEADERS="Api-Key=s3cret%20%2C%3D=, tenant = 7")
    with Misbehaving(protocol, in_turn(BAD_NEWS)) as receiver, running(receiver.endpoint, **headers) as run:
        found = arrives(receiver, run)
        assert (found["api-key"], found["tenant"], "b" in found) == ("s3cret ,==", "7", False)
        assert run.first["last_error"]
        assert "s3cret" not in run.log.getvalue() + repr(run.sink.status())


def test_user_and_password_of_the_endpoint_arrive_over_http():
    with Misbehaving("http/protobuf") as receiver:
        endpoint = receiver.endpoint.replace("//", "//me:s3cret@")
        with running(endpoint, **otlp(PROTOCOL="http/protobuf")) as run:
            assert arrives(receiver, run)["authorization"] == "Basic bWU6czNjcmV0"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ENDPOINT", "http://me:s3cret@127.0.0.1:1"),
        ("ENDPOINT", "http://me:s3cret@no-such-host.invalid:1"),
        ("ENDPOINT", "http://me:s3cret@127.0.0.1:port"),
        ("TRACES_ENDPOINT", "http://127.0.0.1:1/path?key=s3cret"),
        ("HEADERS", "api-key=s3cret%0A!"),  # of a file that ends with a new line
        ("HEADERS", "api-key=s3cret%E2%82%AC"),
    ],
)
def test_what_is_secret_and_wrong_is_shown_nowhere_and_costs_nothing(protocol, variable, value):
    try:
        with running(**otlp(ENDPOINT="http://127.0.0.1:1") | otlp(**{variable: value})) as run:
            run.is_refused()
            said = run.log.getvalue() + repr(run.sink.status())
    except SettingError as error:
        said = str(error)
    assert said
    assert "s3cret" not in said


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("written", "found"), [("", "gzip"), ("gzip", "gzip"), ("none", None), ("deflate", "deflate")])
def test_compression_over_http(signal, written, found):
    variables = otlp(PROTOCOL="http/protobuf") | otlp(signal, COMPRESSION=written)
    with Deflating("http/protobuf") as receiver, running(receiver.endpoint, **variables) as run:
        assert arrives(receiver, run).get("content-encoding") == found


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("written", "is_zipped"), [("", True), ("gzip", True), ("none", False)])
def test_compression_over_grpc(signal, written, is_zipped):
    with Misbehaving("grpc") as receiver, Listening(receiver.endpoint) as wire:
        with running(wire.endpoint, **otlp(signal, COMPRESSION=written)) as run:
            arrives(receiver, run)
        assert (b"grpc-encoding\x04gzip" in wire.passed) is is_zipped
        assert (b"dask.span.path" in wire.passed) is not is_zipped


@pytest.mark.parametrize(
    "variables",
    [otlp(TIMEOUT="0.5"), otlp(TIMEOUT="60") | otlp("TRACES_", TIMEOUT="0.5"), {"BSP_EXPORT_TIMEOUT": "500"}],
    ids=", ".join,
)
def test_a_hanging_receiver_is_asked_again_when_the_time_is_over(protocol, variables):
    with Misbehaving(protocol, in_turn(Hangs())) as receiver, running(receiver.endpoint, **variables) as run:
        arrives(receiver, run)
        (first, _), (second, _), *_ = receiver.requests  # more, if this machine needs half a second for one
        assert 0.25 < second - first < 9  # 10 s by default


@pytest.mark.slow
def test_batches(protocol):
    """The delay is so long that only a full batch can leave; one cannot be longer than the queue."""
    bsp = {"BSP_SCHEDULE_DELAY": 3_600_000, "BSP_MAX_EXPORT_BATCH_SIZE": 999, "BSP_MAX_QUEUE_SIZE": 4}
    with Misbehaving(protocol) as receiver, running(receiver.endpoint, **bsp) as run:
        arrives(receiver, run, 4)
        assert [len(names) for _, names in receiver.requests] == [4]
    with Misbehaving(protocol) as receiver:
        bsp = {"BSP_SCHEDULE_DELAY": 1000, "BSP_MAX_EXPORT_BATCH_SIZE": 2}
        with running(receiver.endpoint, **bsp) as run:
            begin = monotonic()
            arrives(receiver, run, 5)
            assert [len(names) for _, names in receiver.requests] == [2, 2, 1]
            assert receiver.requests[2][0] - begin >= 1.0


def test_queue(protocol):
    with Misbehaving(protocol, lambda *_: BAD_NEWS) as receiver:
        with running(receiver.endpoint, BSP_MAX_QUEUE_SIZE=3) as run:
            run.put(*range(20))
            run.wait_until(lambda: run.first["failing"])
            receiver.rule = in_turn()
        ((dropped,), sent) = run.first["dropped"], run.first["sent"]["span"]
        assert (dropped["reason"], dropped["count"] + sent, run.first["queue"]["max_spans"]) == ("queue_full", 20, 3)
        assert 3 <= sent == receiver.taken.total() <= 6


@pytest.mark.parametrize("signal", SIGNALS)
def test_certificate(protocol, files, signal):
    with Misbehaving(protocol, tls=files.server) as receiver:
        with running(receiver.endpoint) as run:
            run.is_refused()
        wrong = otlp(CERTIFICATE=files.other_authority, INSECURE="true")
        with running(receiver.endpoint, **wrong) as run:
            run.is_refused()
        assert receiver.requests == []
        with running(receiver.endpoint, **wrong | otlp(signal, CERTIFICATE=files.authority)) as run:
            arrives(receiver, run)


@pytest.mark.parametrize("ours", SIGNALS)
@pytest.mark.parametrize("theirs", SIGNALS)
def test_client_certificate(protocol, files, ours, theirs):
    with Misbehaving(protocol, tls=files.strict_server) as receiver:
        theirs = otlp(theirs, CERTIFICATE=files.authority)
        with running(receiver.endpoint, **theirs) as run:
            run.is_refused()
        assert receiver.requests == []
        ours = otlp(ours, CLIENT_CERTIFICATE=files.client, CLIENT_KEY=files.client_key)
        with running(receiver.endpoint, **theirs | ours) as run:
            arrives(receiver, run)


@pytest.mark.slow
@pytest.mark.parametrize("key", [{}, otlp(CLIENT_KEY="{files.client_key}")], ids=["no key", "key of all signals"])
def test_a_client_certificate_without_key_does_not_end_the_process(files, key):
    """In another process: gRPC's library aborts."""
    variables = otlp("TRACES_", CERTIFICATE=files.authority, CLIENT_CERTIFICATE=files.client) | key
    env = {f"OTEL_{name}": str(value).format(files=files) for name, value in variables.items()}
    code = "from support.standard import make_sink; make_sink().close(0.1)"
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0 or "SettingError: OTEL_EXPORTER_OTLP_" in done.stderr, done.stderr


def test_a_certificate_that_is_away_for_a_moment_costs_nothing(protocol, files, tmp_path):
    """As when a secret is renewed."""
    path = tmp_path / "authority.pem"
    path.write_bytes(files.authority.read_bytes())
    variables = otlp(CERTIFICATE=path)
    with Misbehaving(protocol, tls=files.server) as receiver, running(receiver.endpoint, **variables) as run:
        path.unlink()
        run.put(0)
        run.wait_until(lambda: run.first["last_error"] or run.first["sent"])
        path.write_bytes(files.authority.read_bytes())
        run.wait_until(lambda: run.first["sent"] or run.first["dropped"])
        assert receiver.taken == {"0": 1}


@pytest.mark.parametrize(
    ("scheme", "variables", "is_secure"),
    [
        ("", otlp(INSECURE="true"), False),
        ("", otlp(INSECURE="false") | otlp("TRACES_", INSECURE="TRUE"), False),
        ("", otlp(INSECURE="false"), True),
        ("", {}, True),
        ("http://", otlp(INSECURE="false"), False),
        ("https://", otlp(INSECURE="true"), True),
    ],
)
def test_insecure_is_for_a_grpc_target_without_scheme(files, scheme, variables, is_secure):
    with Misbehaving("grpc", tls=files.server if is_secure else None) as receiver:
        target = scheme + receiver.endpoint.partition("//")[2]
        with running(target, **otlp(CERTIFICATE=files.authority) | variables) as run:
            arrives(receiver, run)


OTLP = ["ENDPOINT", "PROTOCOL", "HEADERS", "COMPRESSION", "TIMEOUT", "CERTIFICATE", "CLIENT_CERTIFICATE", "INSECURE"]
EMPTY = [f"EXPORTER_OTLP_TRACES_{name}" for name in [*OTLP, "CLIENT_KEY"]]
EMPTY += ["EXPORTER_OTLP_TIMEOUT", "TRACES_EXPORTER", "TRACES_SAMPLER", "BSP_EXPORT_TIMEOUT", "SDK_DISABLED"]


@pytest.mark.parametrize("name", EMPTY)
def test_empty_is_not_set(protocol, files, name):
    with Misbehaving(protocol, tls=files.server) as receiver:
        variables = otlp(CERTIFICATE=files.authority, HEADERS="a=b") | {name: ""}
        with running(receiver.endpoint, **variables) as run:
            assert arrives(receiver, run)["a"] == "b"
