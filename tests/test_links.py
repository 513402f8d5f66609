"""What a notebook shows: where a cluster's traces are sent, links to the page and to a trace, and a run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import dask
import pytest
from distributed import Client, LocalCluster, span
from support.backends import free_port
from support.environment import clear_variables, environment
from support.misbehaving import Misbehaving
from support.processes import OURS, cluster, our_errors

import dask_otel
from dask_otel import links
from dask_otel.cli.receiver import Receiver
from dask_otel.status.report import destinations

PRELOAD = {
    "distributed.scheduler.preload": ["dask_otel"],
    "otel.traces.idle-timeout": "300ms",
    "otel.sweep-interval": "50ms",
}
REGISTER = "register it now: client.register_plugin(dask_otel.OTelPlugin"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    clear_variables(monkeypatch)


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


def hrefs(html):
    """The links of what ``_repr_html_`` returns, by their text."""
    found, texts = {}, []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag == "a"
            texts.append(dict(attributes)["href"])

        def handle_data(self, data):
            if texts:
                found[data] = texts.pop()

    Parser().feed(html)
    return found


def settled(span_id=None):
    """Describe the cluster once spans and metrics have been sent."""
    while "will send" in (described := dask_otel.describe(span_id)).text:
        pass
    return described


def local(**options):
    return LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", **options)


class Named:
    """A client of which only the link matters."""

    def __init__(self, link):
        self._link = link

    @property
    def dashboard_link(self):
        if isinstance(self._link, Exception):
            raise self._link
        return self._link


@pytest.mark.parametrize(
    ("dashboard", "page"),
    [
        ("http://127.0.0.1:8787/status", "http://127.0.0.1:8787/otel/"),
        ("http://h:8787/prefix/status", "http://h:8787/prefix/otel/"),
        ("/user/alice/proxy/8787/status", "/user/alice/proxy/8787/otel/"),
        ("/proxy/8787", "/proxy/8787/otel/"),
        ("https://gateway/clusters/c1/status?token=1#top", "https://gateway/clusters/c1/otel/?token=1"),
        ("http://h:8787/", "http://h:8787/otel/"),
        ("http://status:8787/status", "http://status:8787/otel/"),
        ("", None),
        (None, None),
        (KeyError("JUPYTERHUB_USER"), None),
        (AttributeError("no cluster"), None),
    ],
)
def test_the_page_is_where_the_dashboard_is(dashboard, page):
    assert links.page_link(Named(dashboard)) == page


def test_html_is_escaped():
    link = links.Link('http://h/"><script>alert(1)</script>')
    assert hrefs(link._repr_html_()) == {link: link}
    described = links.Description("<b>&", page=link)
    assert "<b>" not in described._repr_html_()
    assert hrefs(described._repr_html_()) == {"page": link}
    assert repr(described) == f"<b>&; page: {link}"


def test_without_a_client():
    assert dask_otel.trace_url("some span") is None
    with span("here"):
        assert dask_otel.trace_url() is None
    assert repr(dask_otel.describe()) == "there is no Dask client here: create one, then ask again"
    assert dask_otel.trace_url() is None
    with dask.config.set({"otel.trace-url": "http://jaeger/trace/{trace_id}"}):
        assert dask_otel.trace_url() is None  # in no span
        assert dask_otel.trace_url("some span")
    assert repr(dask_otel.show_trace("some span")) == "there is no Dask client here: create one, then ask again"
    with pytest.raises(ValueError, match="no span here"):
        dask_otel.show_trace()
    with pytest.raises(ValueError, match="no id of a span was given"):
        dask_otel.trace_url([])
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client, not a str"):
        dask_otel.describe(client="tcp://scheduler:8786")


@pytest.mark.slow
def test_a_local_cluster_with_the_preload(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
    with dask.config.set(PRELOAD), local() as cluster_, Client(cluster_) as client:
        with span("root") as root_id, span("inner") as inner_id:
            client.submit(sum, [1, 2]).result()
            url = dask_otel.trace_url()
        page = cluster_.dashboard_link.removesuffix("status") + "otel/"
        assert url == f"{page}trace/{inner_id}"
        assert isinstance(url, str)
        assert hrefs(url._repr_html_()) == {url: url}
        receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        described = settled(root_id)
        trace = f"{page}trace/{root_id}"
        line = f"dask-otel sends spans and metrics to {receiver.endpoints['grpc']}"
        assert repr(described) == f"{line}; page: {page}; trace: {trace}"
        assert described._repr_html_().startswith(f"{line} · <a ")
        assert hrefs(described._repr_html_()) == {"page": page, "trace": trace}
        assert repr(dask_otel.describe()) == f"{line}; page: {page}"
        with urlopen(page, timeout=30) as answer:
            assert "dask-otel" in answer.read().decode()
        run = dask_otel.show_trace(root_id)
        assert re.fullmatch(rf"root took .* · success · 1 task; page: {re.escape(page)}run/\w+/\w+", repr(run))
        assert '<summary class="row group">' in run.document
        with Client(cluster_) as other:
            pass
        assert repr(dask_otel.show_trace(root_id, client=other)).startswith("the client is closed")
        assert repr(dask_otel.describe(client=other)) == "the client is closed: create another one, then ask again"
        with dask.config.set({"otel.trace-url": "http://jaeger/trace/{trace_id}"}):
            assert dask_otel.describe(root_id).trace == f"http://jaeger/trace/{dask_otel.trace_id(root_id)}"


@pytest.mark.slow
def test_a_dask_span_with_an_id_that_is_no_path(receiver, monkeypatch):
    """An id may be any string, such as that of a span in a caller's trace."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
    id_ = f"00-{7:032x}-{8:016x}-01;a/b?c#d"
    with dask.config.set(PRELOAD), local() as cluster_, Client(cluster_) as client:
        with dask.annotate(span={"name": ("root",), "ids": (id_,)}):
            client.submit(sum, [1, 2]).result()
            url = dask_otel.trace_url()
        receiver.wait(lambda spans: any(each.name == "root" for each in spans), timeout=60)
        try:
            answer = urlopen(url, timeout=30)
        except HTTPError as error:
            answer = error
        with answer:
            assert f"{7:032x}" in answer.read().decode()
        path = url.removeprefix(cluster_.dashboard_link.removesuffix("status"))
        assert path == f"otel/trace/00-{7:032x}-{8:016x}-01%3Ba%2Fb%3Fc%23d"


@pytest.mark.slow
def test_a_cluster_that_started_before_the_preload_was_set(receiver, tmp_path, monkeypatch):
    """The line says so, and what it says to call works; the scheduler's log has no warning of the question."""

    def url_in_a_task():  # a worker cannot import this module
        ids = dask.get_annotations()["span"]["ids"]
        return dask_otel.trace_url().endswith(f"/otel/trace/{ids[-1]}")

    with cluster(tmp_path, options=()) as processes:
        client = processes.client
        line = repr(dask_otel.describe())
        assert line == f"this cluster's scheduler runs without dask-otel; {REGISTER}(endpoint))"
        assert repr(dask_otel.show_trace("some span")) == line
        with dask.config.set(PRELOAD):
            line = repr(dask_otel.describe(client=client))
            assert "(the preload is in this process' configuration; it was set after the cluster had started" in line
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
        line = repr(dask_otel.describe())
        assert line.endswith(f"{REGISTER}.from_env())")
        exec(line.partition("register it now: ")[2], {"client": client, "dask_otel": dask_otel})
        with span("root") as root_id:
            client.submit(sum, [1, 2]).result()
        receiver.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
        described = settled(root_id)
        assert repr(described).startswith(f"dask-otel sends spans and metrics to {receiver.endpoints['grpc']}; page: ")
        with urlopen(described.page, timeout=30) as answer:
            assert answer.status == 200
        # Inside a task, whose process is a worker's.
        with span("outside"):
            assert client.submit(url_in_a_task, pure=False).result() is True
        log = processes.scheduler.log
    assert "No handler" not in log
    assert our_errors(log) == []


@pytest.mark.slow
def test_a_backend_that_is_not_there_is_in_the_line():
    endpoint = f"http://127.0.0.1:{free_port()}"
    with (
        dask.config.set(PRELOAD | {"distributed.scheduler.preload": []}),
        local() as cluster_,
        Client(cluster_) as client,
    ):
        client.register_plugin(dask_otel.OTelPlugin(endpoint))
        client.submit(sum, [1, 2]).result()
        line = repr(settled())
    assert line.startswith(
        f"dask-otel cannot send spans and metrics to {endpoint}; the last request to {endpoint} failed: UNAV"
    )
    assert line.count("UNAVAILABLE: ") == 1


def exporter(target, failing, **more):
    return {"name": "otlp", "target": target, "proxy": "", "failing": failing, **more}


@pytest.mark.parametrize(
    ("spans", "metrics", "text"),
    [
        ([], [], "sends nothing, as configured"),
        ([exporter("A", None)], [exporter("A", None, unsupported="")], "will send spans and metrics to A"),
        ([exporter("A", None)], [exporter("A", False, unsupported="")], "will send spans and sends metrics to A"),
        ([exporter("A", False)], [exporter("A", True, unsupported="")], "sends spans and cannot send metrics to A"),
        ([exporter("A", False)], [exporter("B", False, unsupported="")], "sends spans to A, metrics to B"),
        ([exporter("A", False)], [exporter("A", False, unsupported="404")], "sends spans to A; A takes no metrics"),
        ([exporter("A", True)], [exporter("A", True, unsupported="404")], "cannot send spans and metrics to A"),
        ([], [exporter("A", False, unsupported="404")], "sends nothing; A takes no metrics"),
    ],
)
def test_the_line_says_what_is_known_to_arrive(spans, metrics, text):
    assert destinations({"exporters": spans, "metrics": metrics}) == text


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_backend_that_takes_no_metrics_is_in_the_line(protocol, monkeypatch):
    with Misbehaving(protocol) as backend:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        with dask.config.set(PRELOAD), local() as cluster_, Client(cluster_) as client:
            with span("root") as root_id:
                client.submit(sum, [1, 2]).result()
            backend.wait_for_trace(dask_otel.trace_id(root_id), timeout=60)
            text = settled().text
    spans, metrics = (
        (backend.endpoint, backend.endpoint)
        if protocol == "grpc"
        else (f"{backend.endpoint}/v1/traces", f"{backend.endpoint}/v1/metrics")
    )
    assert text == f"dask-otel sends spans to {spans}; {metrics} takes no metrics"


@pytest.mark.slow
def test_an_asynchronous_client(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])

    async def run():
        async with (
            local(asynchronous=True, processes=False) as cluster_,
            Client(cluster_, asynchronous=True) as client,
        ):
            before = await dask_otel.describe()
            await client.register_plugin(dask_otel.OTelPlugin())
            return before, await dask_otel.describe("some span"), dask_otel.trace_url("some span")

    before, after, url = asyncio.run(run())
    assert "runs without dask-otel" in repr(before)
    assert repr(after).startswith(f"dask-otel will send spans and metrics to {receiver.endpoints['grpc']}; page: http")
    assert after.trace == url
    assert url.endswith("/otel/trace/some%20span")


@pytest.mark.slow
def test_a_scheduler_that_takes_no_functions(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
    blocked = {"distributed.scheduler.blocked-handlers": ["run_function"]}
    for preload in (PRELOAD, {}):
        with dask.config.set(preload | blocked), local() as cluster_, Client(cluster_):
            described, shown = repr(dask_otel.describe()), repr(dask_otel.show_trace("a span", timeout=0))
        assert ("no run of this Dask span" in shown) is bool(preload), shown
        assert ("runs without dask-otel" in shown) is not bool(preload), shown
        assert ("dask-otel will send " in described) is bool(preload), described
        assert ("runs without dask-otel" in described) is not bool(preload)


NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.md"


@pytest.mark.slow
def test_the_recipe_for_notebooks_runs(receiver, tmp_path):
    """All cells in one process, as a notebook runs them; the value of a cell's last line is shown."""
    cells = re.findall(r"```python\n(.*?)```", NOTEBOOK.read_text(encoding="utf-8"), re.DOTALL)
    assert len(cells) == 6
    endpoint = receiver.endpoints["grpc"]
    script = tmp_path / "notebook.py"
    script.write_text(RUN_CELLS.format(cells=[each.replace("http://localhost:4317", endpoint) for each in cells]))
    done = subprocess.run(
        [sys.executable, script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    described, url, run, *printed = re.sub("<iframe.*?</iframe>", "", done.stdout, flags=re.DOTALL).splitlines()
    assert re.search("training took .* · success · 1 task · <a ", run)
    assert "<iframe" in done.stdout
    assert hrefs(described).keys() == {"page"}
    assert re.match(f"dask-otel will send spans and (sends )?metrics to {endpoint} · <a ", described)
    assert set(hrefs(url)) == {hrefs(described)["page"] + "trace/" + url.rpartition("/trace/")[2].removesuffix("</a>")}
    # It was registered already, with the same values. After the first metrics have been sent:
    page = hrefs(described)["page"]
    for line in printed:
        assert re.fullmatch(rf"dask-otel .*spans and .*metrics to {endpoint}; page: {page}", line)
    assert len(printed) == 2
    assert not OURS.search(done.stderr), done.stderr
    assert {each.name for each in receiver.wait(lambda spans: True, timeout=1)} == {"training", "sum"}


RUN_CELLS = """
import ast

if __name__ == "__main__":
    names = {{}}
    for cell in {cells!r}:
        body = ast.parse(cell).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
        if hasattr(shown, "_repr_html_"):
            print(shown._repr_html_())
    names["client"].close()
    names["cluster"].close()
"""
