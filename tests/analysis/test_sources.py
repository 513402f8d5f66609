"""Files and backends, and what each error advises. Jaeger is real in ``tests/backends``.

Tempo is not: a server answers as its documentation says.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.environment import environment

from dask_otel.analysis import LoadError, LoadWarning, load

TRACES = [f"{number:032x}" for number in (0xABC, 0xF00D)]


def request(trace_id, *, start=1_700_000_000, root="nightly", service="dask-scheduler", encode=str):
    attributes = [
        {"key": key, "value": {"stringValue": value}}
        for key, value in (("dask.kind", "span"), ("dask.span.root", root))
    ]
    span = {
        "traceId": encode(trace_id),
        "spanId": encode("00000000000000aa"),
        "name": root,
        "kind": "SPAN_KIND_INTERNAL",
        "startTimeUnixNano": str(start * 10**9),
        "endTimeUnixNano": str((start + 1) * 10**9),
        "attributes": attributes,
        "status": {},
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {}, "spans": [span]}]}]}


def lines(*documents):
    return "".join(json.dumps(document, separators=(",", ":")) + "\n" for document in documents).encode()


BOTH = lines(*map(request, TRACES))


@pytest.mark.parametrize("write", [bytes, gzip.compress])
def test_files(tmp_path, write):
    path = tmp_path / "any name"
    path.write_bytes(write(BOTH + b"\n" + lines({"resourceMetrics": []}, request(TRACES[0]))))
    assert load(path).trace_ids == load(str(path)).trace_ids == TRACES
    path.write_bytes(write(json.dumps({"result": request(TRACES[1])}, indent=2).encode()))
    assert load(path).trace_ids == TRACES[1:]


def test_a_folder(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(request(TRACES[0])))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(lines(request(TRACES[1]))))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "c.json").mkdir()
    assert load(tmp_path).trace_ids == TRACES


def test_a_last_line_without_an_end_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    for end in (10, len(BOTH) - len(lines(request(TRACES[0]))) - 2):
        path.write_bytes(BOTH[: len(lines(request(TRACES[0]))) + end])
        with pytest.warns(LoadWarning, match=r"a\.jsonl: line 2 is not complete, and left out"):
            assert load(path).trace_ids == TRACES[:1]
    path.write_bytes(BOTH[:-1])  # all of it but for the line break
    assert load(path).trace_ids == TRACES
    path.write_bytes(BOTH[:100])
    with pytest.warns(LoadWarning), pytest.raises(LoadError, match=r"source='.*a\.jsonl' has no spans"):
        load(path)
    path.write_bytes(gzip.compress(BOTH)[:-20])
    with pytest.warns(LoadWarning, match="cannot be decompressed beyond line 1"):
        assert load(path).trace_ids == TRACES[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no spans"),
        (BOTH + b"nothing\n" + BOTH, "line 3: not a trace: not JSON"),
        (BOTH + b'{"a": 1}\n', "line 3: not OTLP in JSON: an object with a"),
        (b"nothing", "line 1: not a trace: not JSON"),
        (b'{"data": [{"traceID": "a", "processes": {}}]}', "Jaeger's older format, as its page saves it"),
        (b'{\n"a": 1\n}', r"a\.jsonl: not OTLP in JSON"),
        (b"\x0a\x80\x01\xff", "line 2: not a trace"),
    ],
)
def test_files_of_something_else(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "nowhere",
            {},
            "source='nowhere': there is no such file or folder; an address begins with http:// or https://",
        ),
        (Path(__file__).parent, {}, "has no files of traces"),
        (7, {}, "source=7 has to be the path of a file or a folder"),
        ([7], {}, "a int in the place of an object with resourceSpans"),
        (request(TRACES[0]), {"trace_ids": "xyz"}, "trace_ids='xyz' has to be a trace id"),
        (request(TRACES[0]), {"trace_ids": ["f00d"]}, f"has no trace {TRACES[1]}: look at trace_ids="),
        (request(TRACES[0]), {"since": "yesterday"}, "since='yesterday' has to be a datetime, or a text such as"),
        (request(TRACES[0]), {"until": 7}, "until=7 has to be a datetime"),
        (request(TRACES[0]), {"limit": 0}, "limit=0 has to be a whole number from 1 up"),
        (request(TRACES[0]), {"root": "daily"}, "1 traces, of which .* select none; root spans: 'nightly'"),
        ("http://127.0.0.1:9", {}, "source='http://127.0.0.1:9' cannot be reached .*refused"),
        ("jaeger+http://me:secret@127.0.0.1:9/x?token=secret", {}, "source='http://127.0.0.1:9/x' cannot be reached"),
    ],
)
def test_what_cannot_be_loaded(source, options, message):
    with pytest.raises(LoadError, match=message) as error:
        load(source, **options)
    assert "secret" not in str(error.value)


def test_what_is_selected():
    documents = [
        request(TRACES[0], start=100),
        request(TRACES[1], start=200, root="daily"),
        request("c" * 32, start=300, service="other"),
    ]
    third = "c" * 32
    assert load(documents, trace_ids=["F00D", third]).trace_ids == [TRACES[1], third]
    assert load(documents, root="daily").trace_ids == TRACES[1:]
    assert load(documents, service="other").trace_ids == [third]
    assert load(documents, since="1970-01-01T00:03:20Z").trace_ids == [TRACES[1], third]
    assert load(documents, until="1970-01-01T01:03:20+01:00").trace_ids == TRACES[:1]
    middle = load(documents).spans["start"][1]
    assert load(documents, since=middle, until=middle.to_pydatetime().replace(second=21)).trace_ids == TRACES[1:]


class Answers:
    """A server that answers by path, and keeps what it was asked."""

    def __init__(self, answers):
        self.asked = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlsplit(self.path)
                asked.append(
                    (
                        parts.path,
                        {k: v[0] for k, v in parse_qs(parts.query).items()},
                        {name.lower(): value for name, value in self.headers.items()},
                    )
                )
                status, kind, body = answers.get(parts.path, (404, "application/json", "{}"))
                self.send_response(status)
                self.send_header("Location" if status == 302 else "Content-Type", kind)
                self.end_headers()
                self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def answering(answers):
    answering = Answers(answers)
    thread = threading.Thread(target=answering.server.serve_forever, args=(0.01,))
    thread.start()
    yield answering
    answering.server.shutdown()
    answering.server.server_close()
    thread.join()


def ok(body, kind="application/json"):
    return 200, kind, body


def base64(hexadecimal):
    """Return ids as Tempo does."""
    return b64encode(bytes.fromhex(hexadecimal)).decode()


TEMPO = {
    "/tempo/api/echo": ok("echo", "text/plain"),
    "/tempo/api/search": ok(
        {"traces": [{"traceID": "abc", "rootServiceName": "app"}, {"traceID": "f00d"}], "metrics": {}}
    ),
    f"/tempo/api/v2/traces/{TRACES[0]}": ok({"trace": request(TRACES[0], encode=base64), "metrics": {}}),
    f"/tempo/api/v2/traces/{TRACES[1]}": ok(
        {"trace": request(TRACES[1], encode=base64), "status": "PARTIAL", "message": "trace exceeds max size"}
    ),
    "/tempo/api/v2/traces/" + "0" * 31 + "1": ok({"trace": {}, "metrics": {}}),
}


def test_tempo():
    headers = {"X-Scope-OrgID": "team", "Authorization": "Bearer x"}
    with answering(TEMPO) as tempo:
        partial = f"only a part of trace {TRACES[1]}: trace exceeds max size"
        with pytest.warns(LoadWarning, match=partial):
            runs = load(f"{tempo.url}/tempo/", root="nightly", service="dask-scheduler", since="2023-01-01T00:00Z",
                        until="2023-12-01T00:00Z", headers=headers)  # fmt: skip
        assert runs.trace_ids == TRACES
        assert set(runs.spans["span_id"]) == {"00000000000000aa"}
        assert [path for path, _, _ in tempo.asked] == ["/tempo/api/v3/services", *TEMPO][:5]
        assert {(sent["x-scope-orgid"], sent["authorization"]) for _, _, sent in tempo.asked} == {("team", "Bearer x")}
        assert tempo.asked[2][1] == {
            "q": '{ span.dask.span.root = "nightly" && resource.service.name = "dask-scheduler" }',
            "limit": "100",
            "spss": "1",
            "start": "1672531200",
            "end": "1701388800",
        }
        del tempo.asked[:]
        with pytest.warns(LoadWarning, match=f"more traces than limit=2|{partial}"), pytest.raises(LoadError):
            load(f"tempo+{tempo.url}/tempo", limit=2, root='a "b"')
        assert tempo.asked[0][:2] == (
            "/tempo/api/search",
            {"q": '{ span.dask.span.root = "a \\"b\\"" }', "limit": "2", "spss": "1"},
        )
        assert load(f"{tempo.url}/tempo", trace_ids=["abc"]).trace_ids == TRACES[:1]
        for missing in ("1", "2"):
            with pytest.raises(LoadError, match=f"Tempo at .*/tempo has no trace 0+{missing}: look at trace_ids="):
                load(f"{tempo.url}/tempo", trace_ids=missing)
    with (
        answering({"/api/search": ok({"metrics": {}})}) as tempo,
        pytest.raises(
            LoadError, match=r"has no trace for { span.dask.span.root != nil }\. Without since=, Tempo looks only"
        ),
    ):
        load(f"tempo+{tempo.url}")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, "text/plain", "who are you"), r"answers 401 Unauthorized: give headers= that it accepts, e\.g\. {'Auth"),
        ((403, "text/plain", ""), "answers 403 Forbidden: give headers="),
        ((500, "text/plain", "no\nstorage"), "answers 500 Internal Server Error: no storage"),
        (
            (302, "http://login.example/", ""),
            "answers 302 Found and refers to another host, to which headers= are not",
        ),
        (
            (200, "text/html", "<html>"),
            "answers with a web page, not with JSON: source= has to be the address",
        ),
        ((200, "application/json", "<nothing>"), "does not answer with JSON: <nothing>"),
        ((404, "text/plain", ""), r"is neither Jaeger \(it has no /api/v3/services\) nor Tempo \(no /api/echo\)"),
    ],
)
def test_what_a_server_refuses(answer, message):
    with answering({"/api/v3/services": answer}) as server, pytest.raises(LoadError, match=message):
        load(server.url, headers={"Authorization": "Bearer secret"})


def test_user_and_password_in_the_address_are_sent_as_a_header():
    answers = {
        "/api/v3/services": ok({"services": []}),
        f"/api/v3/traces/{TRACES[0]}": ok({"result": request(TRACES[0])}),
    }
    with answering(answers) as server:
        load(server.url.replace("http://", "http://me:pass%20word@"), trace_ids=TRACES[0])
        assert {sent["authorization"] for _, _, sent in server.asked} == {
            f"Basic {b64encode(b'me:pass word').decode()}"
        }
        assert {sent["host"] for _, _, sent in server.asked} == {server.url.removeprefix("http://")}


WITHOUT_PANDAS = """
import sys
sys.modules["pandas"] = None
from dask_otel.analysis import LoadError, load
try:
    load({"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "a" * 32, "spanId": "b" * 16}]}]}]})
except LoadError as error:
    print(error)
"""


@pytest.mark.slow
def test_pandas_is_missing():
    run = [sys.executable, "-c", WITHOUT_PANDAS]
    out = subprocess.run(run, capture_output=True, text=True, check=True, env=environment()).stdout
    assert re.fullmatch(r"pandas is needed to load traces, .*: pip install 'dask-otel\[analysis\]'\n", out)
