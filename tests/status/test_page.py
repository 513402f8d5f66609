"""The page, over HTTP, on the server of a real scheduler."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from html import unescape
from pathlib import Path
from urllib.parse import quote, urljoin

import dask
import pytest
from distributed import Client, Scheduler, Worker, span, wait
from support.callers import anchored, inside
from support.clusters import until
from support.memory import MemoryExporter, make_sink
from support.misbehaving import Misbehaving, Rejects, in_turn
from support.pages import FAST, get, status, with_page
from support.records import root_segment
from support.trees import tree
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

import dask_otel
from dask_otel.cli.receiver import Receiver
from dask_otel.otlp.transport import Sender
from dask_otel.preload import OTelPlugin
from dask_otel.safety import Safety
from dask_otel.scheduler import forgetting
from dask_otel.spantree.events import SpanInfo
from dask_otel.status.handlers import DOCUMENTATION

ROOT = Path(__file__).parents[2]

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&{{ 1 }}'


@pytest.fixture
def receiver(monkeypatch):
    with Misbehaving("grpc") as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20planted-secret")
        yield receiver


def finished(number):
    return lambda status: len(status["finished"]) == number and _sent(status) >= number


def _sent(status):
    return sum(status["exporters"][0]["sent"].values())


def test_what_runs_and_what_has_finished(receiver):
    async def test(plugin, client, scheduler):
        event_name = "go-on"
        with span("Alice's workflow") as alice:
            await client.submit(sum, [1, 2], key="sum")
        await status(scheduler, finished(1))
        with span("Bob's") as bob:
            future = client.submit(_wait_for, event_name, key="waiting")
        running = await status(scheduler, lambda status: status["open"])
        (each,) = running["open"]
        assert {name: each[name] for name in ("id", "name", "trace_id", "tasks", "completed", "unfinished")} == {
            "id": bob,
            "name": "Bob's",
            "trace_id": dask_otel.trace_id(bob),
            "tasks": 1,
            "completed": 0,
            "unfinished": 1,
        }
        assert each["clients"] == []
        assert each["link"] == f"http://jaeger/trace/{dask_otel.trace_id(bob)}"
        await _set(client, event_name)
        await future
        done = await status(scheduler, lambda status: finished(2)(status) and _sent(status) == 4)
        assert [(each["id"], each["result"], each["tasks"]) for each in done["finished"]] == [
            (alice, "success", 1),
            (bob, "success", 1),
        ]
        assert done["open"] == []
        (exporter,) = done["exporters"]
        assert exporter["failing"] is False
        assert receiver.taken.total() == 4
        assert exporter["target"] == receiver.endpoint
        page = (await get(scheduler, "/otel/")).body.decode()
        assert "Alice&#x27;s workflow" in page or "Alice&#39;s workflow" in page

    with_page(test, **{"otel.trace-url": "http://jaeger/trace/{trace_id}"})


def test_who_submitted_and_what_failed(receiver):
    async def test(plugin, client, scheduler):
        async with Client(scheduler.address, asynchronous=True, name="alice") as alice:
            with span("Alice's workflow"):
                await wait(alice.submit(_fail, "<b>7</b> is odd", key="bad"))
            with span("waits"):
                future = alice.submit(_wait_for, "go-on", key="waiting")
            found = await status(scheduler, lambda status: finished(1)(status) and status["open"])
            assert found["open"][0]["clients"] == ["alice"]
            (run,) = found["finished"]
            assert (run["clients"], run["result"]) == (["alice"], "error")
            assert run["error"] == "1 task erred; first: ValueError: <b>7</b> is odd"
            page = (await get(scheduler, "/otel/")).body.decode()
            assert page.count('class="client"><bdi>alice</bdi></td>') == 2
            assert "1 task erred; first: ValueError: &lt;b&gt;7&lt;/b&gt; is odd" in page
            await _set(client, "go-on")
            await future

    with_page(test)


def _sleep(seconds):
    from time import sleep

    sleep(seconds)


@pytest.mark.slow  # shorter runs have no verdict
@pytest.mark.parametrize("hides", [False, True])
def test_why_a_run_was_slow(receiver, hides):
    async def test(plugin, client, scheduler):
        async with Worker(scheduler.address, nthreads=6):
            with span("planted") as root:
                # One task takes most of the time: the other threads have nothing to do.
                await wait(client.map(_sleep, [0.02] * 9 + [2.0], key="planted-key", pure=False))
            await status(scheduler, finished(1))
        (run,) = (await status(scheduler, finished(1)))["finished"]
        assert run["verdict"][0] == "skew"
        assert sum(run["waterfall"].values()) == pytest.approx(run["duration"], abs=0.01)
        assert 1.0 < run["waterfall"]["tail"] < 2.0
        assert 1.0 < run["at_most"] < 2.0
        assert run["verdict_withheld"] == ""
        page = (await get(scheduler, "/otel/")).body.decode()
        assert re.search(r'data-label="why so long">skew<br><span class="dim">at most [\d.]+ m?s<', page)
        shown = unescape((await get(scheduler, f"/otel/{run['run']}")).body.decode())
        assert run["verdict_text"].split(": https:")[0] in shown
        assert '<a href="https://docs.dask.org/' in shown
        assert "the last tasks" in shown
        view = await dask_otel.show_trace(root, client=client)
        assert re.search(r"· slow because of skew, at most [\d.]+ m?s$", view.text)
        assert ("planted / planted-key" in run["verdict_text"]) != hides
        assert ("planted" in json.dumps(run) + page + shown + view.text + view.document) != hides

    with_page(test, **{"otel.capture.preset": "strict" if hides else "all"})


def test_without_verdicts(receiver):
    async def test(plugin, client, scheduler):
        with span("root"):
            await client.submit(sum, [1, 2], key="sum")
        (run,) = (await status(scheduler, finished(1)))["finished"]
        assert [run[name] for name in ("verdict", "waterfall", "at_most")] == [None, None, None]
        assert "why so long" not in (await get(scheduler, "/otel/")).body.decode()
        page = (await get(scheduler, f"/otel/{run['run']}")).body.decode()
        assert not re.search(r"Why it took|dask\.(waterfall|critical|verdict)", page)
        assert "dask.thread_time.available" in page

    with_page(test, **{"otel.verdicts": False})


@pytest.mark.parametrize(("threshold", "is_long"), [("0s", True), ("1h", False)])
def test_a_graph_that_takes_long(monkeypatch, threshold, is_long):
    """With the setting of the scheduler, over the wire and on the page of the run."""

    async def test(plugin, client, scheduler):
        with span("root") as root:
            await client.submit(abs, -1, key="one")
        (run,) = (await status(scheduler, finished(1)))["finished"]
        spans = await asyncio.to_thread(receiver.wait_for_trace, run["trace_id"], timeout=20)
        assert tree(spans, "dask.phase", "dask.graph.task.count") == [
            "root [span]",
            "  one [group]",
            *(["  take in graph [phase] dask.phase=take_in dask.graph.task.count=1"] if is_long else []),
        ]
        assert {each.attributes["dask.span.id"] for each in spans} == {root}
        page = (await get(scheduler, f"/otel/{run['run']}")).body.decode()
        assert ('<summary class="row phase"' in page) == ("take in graph" in page) == is_long

    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])
        with_page(test, **{"otel.client.phase-threshold": threshold})


def test_an_error_of_which_the_message_is_hidden(receiver):
    async def test(plugin, client, scheduler):
        with span("root"):
            await wait(client.submit(_fail, "a secret", key="bad"))
        (run,) = (await status(scheduler, finished(1)))["finished"]
        assert run["error"] == "1 task erred; first: ValueError"
        assert "secret" not in (await get(scheduler, "/otel/")).body.decode()

    with_page(test, **{"otel.capture.message": False})


def _fail(message):
    raise ValueError(message)


def _wait_for(name):
    from distributed import Event

    return Event(name).wait(timeout=30)


async def _set(client, name):
    from distributed import Event

    await Event(name, client=client).set()


def test_links_to_traces_and_a_redirect(receiver):
    async def test(plugin, client, scheduler):
        with span("root") as root, span("child") as child:
            await client.submit(sum, [1, 2], key="sum")
        await status(scheduler, finished(1))
        for span_id in (root, child):
            answer = await get(scheduler, f"/otel/trace/{span_id}")
            assert (answer.code, answer.headers["Location"]) == (302, f"/jaeger/trace/{dask_otel.trace_id(root)}")
        unknown = await get(scheduler, "/otel/trace/%3Cscript%3E")
        assert (unknown.code, unknown.body) == (404, b"dask-otel knows no such Dask span.\n")

    with_page(test, **{"otel.trace-url": "/jaeger/trace/{trace_id}"})


def test_a_root_that_is_forgotten_is_found_while_its_run_is_kept(receiver, monkeypatch):
    monkeypatch.setattr(forgetting, "KEPT_NAMES", 0)

    async def test(plugin, client, scheduler):
        with span("root") as root, span("child") as child:
            await client.submit(sum, [1, 2], key="sum")
        with span("last"):
            await client.submit(sum, [1, 2], key="last")
        await status(scheduler, finished(2))
        await until(lambda: not scheduler.task_groups)
        while root in scheduler.extensions["spans"].spans:
            await asyncio.sleep(0.05)
            for _ in plugin._bridge._forgetting.forget_some(plugin._bridge.clock.now() + 7200):
                pass
        assert (await status(scheduler, bool))["forgotten"] == {"roots": 1, "spans": 2, "late_metrics": 0}
        answer = await get(scheduler, f"/otel/trace/{root}")
        assert (answer.code, answer.headers["Location"]) == (302, f"/jaeger/trace/{dask_otel.trace_id(root)}")
        assert (await get(scheduler, f"/otel/trace/{child}")).code == 404

    with_page(test, **{"otel.trace-url": "/jaeger/trace/{trace_id}", "otel.forget-spans": "1h"})


def test_a_span_of_a_caller(receiver):
    """It is a run of its own, also below another one; ``;`` may be in an address as it is."""

    async def test(plugin, client, scheduler):
        one, other = anchored(7, 8, "nonce"), anchored(9, 8, "/ ?#%", sampled=False)
        with inside(service="root-id", called=one), span("child") as child:
            await client.submit(sum, [1, 2], key="sum")
        with inside(other=other):
            running = client.submit(_wait_for, "go-on", key="waiting")
        found = await status(scheduler, lambda status: finished(2)(status) and status["open"])
        assert [(run["name"], run["trace_id"]) for run in found["finished"]] == [
            ("called", f"{7:032x}"),
            ("service", dask_otel.trace_id("root-id")),
        ]
        (opened,) = found["open"]
        assert (opened["id"], opened["link"]) == (other, f"/jaeger/trace/{9:032x}")
        for span_id, trace in [
            *((one, f"{7:032x}"), (quote(one, safe=""), f"{7:032x}"), (child, f"{7:032x}")),
            *(("root-id", dask_otel.trace_id("root-id")), (quote(other, safe=""), f"{9:032x}")),
        ]:
            answer = await get(scheduler, f"/otel/trace/{span_id}")
            assert (answer.code, answer.headers["Location"]) == (302, f"/jaeger/trace/{trace}")
        await _set(client, "go-on")
        await running
        done = await status(scheduler, finished(3))
        assert done["finished"][-1]["trace_id"] is None
        assert done["finished"][-1]["link"] is None
        assert done["unsampled"] == {"span": 1, "group": 1}

    with_page(test, **{"otel.trace-url": "/jaeger/trace/{trace_id}"})


def test_without_a_template_for_links_it_names_the_trace(receiver):
    async def test(plugin, client, scheduler):
        with span("root") as root:
            await client.submit(sum, [1, 2], key="sum")
        found = await status(scheduler, finished(1))
        assert found["finished"][0]["run"] is None
        answer = await get(scheduler, f"/otel/trace/{root}")
        assert answer.code == 404
        assert dask_otel.trace_id(root) in answer.body.decode()
        page = (await get(scheduler, "/otel/")).body.decode()
        assert dask_otel.trace_id(root) in page
        assert 'href="run/' not in page
        assert "<code>otel.page.runs</code> is 0" in page
        await assert_switched_off(scheduler, root)
        with span("running") as running:
            future = client.submit(_wait_for, "go-on", key="waiting")
        await status(scheduler, lambda status: status["open"])
        await assert_switched_off(scheduler, running)
        await _set(client, "go-on")
        await future

    with_page(test, **{"otel.page.runs": 0})


async def assert_switched_off(scheduler, root):
    answer = await get(scheduler, f"/otel/run/{dask_otel.trace_id(root)}")
    assert answer.code == 404
    assert "<code>otel.page.runs</code> is 0, which switches the pages of runs off" in answer.body.decode()


def test_text_of_people_and_collectors_is_escaped_and_no_secret_is_shown(receiver):
    receiver.rule = in_turn(Rejects(1, EVIL))

    async def test(plugin, client, scheduler):
        with span(EVIL):
            await client.submit(sum, [1, 2], key="sum")
        found = await status(scheduler, lambda status: status["exporters"][0]["dropped"])
        assert EVIL in found["exporters"][0]["last_error"]
        page = await get(scheduler, "/otel/")
        text = page.body.decode()
        assert "<script" not in text
        assert "<img" not in text
        assert "{{ 1 }}" in text
        assert "script" not in page.headers["Content-Security-Policy"]
        assert "planted-secret" not in text + json.dumps(found)

    with_page(test)


def test_very_long_names(receiver):
    async def test(plugin, client, scheduler):
        with span("x" * 1_000_000):
            await client.submit(sum, [1, 2], key="sum", pure=False)
        found = await status(scheduler, finished(1))
        page = await get(scheduler, "/otel/")
        assert page.code == 200
        assert len(page.body) + len(json.dumps(found)) < 50_000

    with_page(test)


def test_names_that_cannot_be_written():
    """They reach the scheduler, though Dask itself cannot send them on to a worker."""
    sink = make_sink(Sender("memory", MemoryExporter()), Safety())
    odd = SpanInfo("id", ("lone \ud800 surrogate",), None, 1.0)
    sink.put([root_segment(span=odd, top=odd, name=odd.tags[0])])
    (found,) = sink.status()["finished"]
    assert found["name"] == sink.title(odd, odd.tags[0]) == "lone ? surrogate"
    sink.close(5)


@pytest.mark.parametrize("prefix", [None, "/", "some/prefix", "/some/prefix/"])
def test_under_dask_s_prefix_and_with_relative_links_only(receiver, prefix):
    async def run():
        with dask.config.set(FAST | {"distributed.scheduler.preload": ["dask_otel"]}):
            async with (
                Scheduler(port=0, dashboard_address="127.0.0.1:0", http_prefix=prefix) as scheduler,
                Worker(scheduler.address),
                Client(scheduler.address, asynchronous=True) as client,
            ):
                path = "/" + prefix.strip("/") + "/" if prefix and prefix.strip("/") else "/"
                redirect = await get(scheduler, f"{path}otel")
                assert (redirect.code, redirect.headers["Location"]) == (302, "otel/")
                page = (await get(scheduler, f"{path}otel/")).body.decode()
                assert 'href="status.json"' in page
                assert 'href="/' not in page
                with span("root") as root:
                    await client.submit(sum, [1, 2], key="sum")
                asked = f"http://127.0.0.1:{scheduler.http_server.port}{path}otel/trace/{root}"
                over = rf".*{path}otel/run/{dask_otel.trace_id(root)}/[0-9a-f]{{16}}"
                while not re.fullmatch(
                    over, (shown := await AsyncHTTPClient().fetch(asked, raise_error=False)).effective_url
                ):
                    await asyncio.sleep(0.01)
                links = {
                    urljoin(shown.effective_url, each) for each in re.findall('href="([^"#?]+)', shown.body.decode())
                }
                base = asked.partition("otel/")[0]
                assert links == {f"{base}otel/"}  # without bokeh, Dask's dashboard would only say so
                assert (await get(scheduler, f"{path}otel/status.json")).code == 200
                assert (await get(scheduler, f"{path}info/main/workers.html")).code == 200  # linked, also without bokeh
                assert (await get(scheduler, f"{path}health")).code == 200  # Dask's own are still there

    asyncio.run(run())


def test_it_says_that_the_bridge_has_stopped_and_makes_place_for_another(receiver):
    async def test(plugin, client, scheduler):
        await client.unregister_scheduler_plugin("dask-otel")
        stopped = await status(scheduler, lambda status: not status["on"])
        assert stopped["why"] == "its plugin is no longer registered with the scheduler"
        assert "dask-otel has stopped: <bdi>its plugin" in (await get(scheduler, "/otel/")).body.decode()
        rules = len(scheduler.http_application.default_router.rules)
        await scheduler.register_scheduler_plugin(OTelPlugin(), idempotent=True)
        await status(scheduler, lambda status: status["on"])
        assert len(scheduler.http_application.default_router.rules) == rules

    with_page(test)


def test_a_page_that_cannot_be_made_leaves_the_bridge_on(receiver, monkeypatch):
    monkeypatch.setattr("dask_otel.preload.install", None)

    async def test(plugin, client, scheduler):
        with span("root") as root:
            await client.submit(sum, [1, 2], key="sum")
        await asyncio.to_thread(receiver.wait_for_trace, dask_otel.trace_id(root), 30)
        with pytest.raises(HTTPClientError):
            (await get(scheduler, "/otel/")).rethrow()

    with_page(test)


@pytest.mark.slow
def test_failed_runs_are_named_before_the_newest(receiver):
    """They are also marked; the newest are at the top of the table, and what is older is folded."""

    async def test(plugin, client, scheduler):
        for number in range(22):
            with span(f"run {number}"):
                await wait(client.submit(_fail if number in (0, 5) else str, "no", key=f"key-{number}", pure=False))
            await status(scheduler, lambda found, number=number: len(found["finished"]) == number + 1)
        page = (await get(scheduler, "/otel/")).body.decode().partition('id="finished"')[2]
        assert "2 of the last 22 runs failed" in page
        summary = page.partition("<table")[0]
        assert re.findall('<a href="#(f[0-9]+)"><bdi>(.*?)</bdi>', summary) == [("f16", "run 5"), ("f21", "run 0")]
        rows = re.findall(r'<tr role="row" id="(f\d+)">.*?<bdi>(run \d+)</bdi>', page, re.DOTALL)
        assert rows == [(f"f{number}", f"run {21 - number}") for number in range(22)]
        assert re.search(r'12 earlier runs, <span class="bad">✗ 2 failed</span></summary>', page)
        marked = re.findall(r'✗ </span>(?:<a href="[^"]*">)?<bdi>(.*?)</bdi>', page)
        assert marked == ["run 5", "run 0"]

    with_page(test, timeout=60)


def test_failed_tasks_of_a_run_that_is_not_over(receiver):
    async def test(plugin, client, scheduler):
        with span("<root>"):
            futures = [client.submit(_fail, "no", key="bad"), client.submit(sum, [1], key="good")]
            await wait(futures)
            future = client.submit(_wait_for, "go-on", key="waiting")
        found = await status(scheduler, lambda found: found["open"] and found["open"][0]["tasks"] == 3)
        assert (found["open"][0]["completed"], found["open"][0]["failed"]) == (1, 1)
        page = (await get(scheduler, "/otel/")).body.decode().partition('id="running"')[2].partition('id="finished"')[0]
        assert "1 of 3" in page
        assert '<span class="bad">✗ 1 failed</span>' in page
        assert '<span class="bad" aria-hidden="true">✗ </span>' in page
        await _set(client, "go-on")
        await future

    with_page(test)


def test_what_runs_take_and_how_to_switch_that_off(receiver):
    async def test(plugin, client, scheduler):
        with span("root") as root:
            await client.submit(sum, [1, 2], key="sum")
        found = await status(scheduler, lambda found: found["page_runs"]["bytes"] and not found["open"])
        assert found["page_runs"] | {"bytes": 0} == {"runs": 1, "bytes": 0, "max_runs": 7, "max_bytes": 8 * 2**20}
        for path in ("/otel/", f"/otel/{found['finished'][0]['run']}", f"/otel/run/{dask_otel.trace_id('other')}"):
            page = (await get(scheduler, path)).body.decode()
            assert "1 run of at most 7, in 0.0 of 8 MiB of the scheduler's memory" in page
            assert "<code>otel.page.runs: 0</code> switches this off" in page
            assert "Documentation: <code>docs/health.md</code> in dask-otel's repository" in page
        assert (ROOT / DOCUMENTATION).exists()
        assert root

    with_page(test, **{"otel.page.runs": 7})


def test_it_names_what_is_hidden(receiver):
    async def test(plugin, client, scheduler):
        assert (await status(scheduler, lambda found: True))["hidden"] == ["message", "keys"]
        for path in ("/otel/", f"/otel/run/{'a' * 32}"):
            page = unescape((await get(scheduler, path)).body.decode())
            assert "messages of exceptions, names of tasks and groups. The reason is" in page
            assert "under otel.capture: message, keys." in page
            assert "stand for hidden ones" in page
            assert "tracebacks" not in page

    with_page(test, **{"otel.capture.message": False, "otel.capture.keys": "no"})


def test_no_notice_if_nothing_is_hidden(receiver):
    async def test(plugin, client, scheduler):
        found = await status(scheduler, lambda found: True)
        assert (found["hidden"], found["problems"]) == ([], [])
        assert 'class="notice"' not in (await get(scheduler, "/otel/")).body.decode()

    with_page(test)


def test_a_misspelt_setting_is_named_without_its_value(receiver):
    async def test(plugin, client, scheduler):
        found = await status(scheduler, lambda found: True)
        assert len(found["hidden"]) == 7
        misspelt, bad = sorted(found["problems"])
        assert misspelt.startswith("otel.capture.mesage = (not shown) cannot be used: ")
        assert bad.startswith("otel.page.runs = 'many' cannot be used: ")
        page = unescape((await get(scheduler, "/otel/")).body.decode())
        named = "otel.capture.mesage (did you mean otel.capture.message?)"
        assert f"names of clients. The reason is in the settings, these cannot be used: {named}." in page
        assert f"{bad}." in page
        assert "planted-secret" not in page + json.dumps(found)

    with_page(test, **{"otel.capture.mesage": "planted-secret", "otel.page.runs": "many"})


def test_with_dask_s_dashboard_it_links_there(receiver, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed.dashboard.scheduler", object())

    async def test(plugin, client, scheduler):
        assert 'href="../status"' not in (await get(scheduler, "/otel/")).body.decode()
        scheduler.http_application.applications.append(None)
        try:
            assert 'href="../status"' in (await get(scheduler, "/otel/")).body.decode()
            missing = (await get(scheduler, f"/otel/run/{'a' * 32}")).body.decode()
            assert 'href="../../status"' in missing
        finally:
            scheduler.http_application.applications.clear()

    with_page(test)


def test_a_bridge_that_is_switched_off_gives_no_advice_on_links(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    async def test(plugin, client, scheduler):
        page = (await get(scheduler, "/otel/")).body.decode()
        assert "dask-otel is off: <bdi>OTEL_SDK_DISABLED is true" in page
        assert "otel.trace-url" not in page
        assert "otel.page.runs" not in page

    with_page(test)


def test_names_alike_at_the_start_and_names_that_turn_the_text(receiver):
    names = [f"{'long ' * 100}{end}" for end in ("first", "second")]
    backwards = "\u202eevil"

    async def test(plugin, client, scheduler):
        for name in (*names, backwards):
            with span(name):
                await client.submit(sum, [1, 2], key=f"sum-{name}", pure=False)
        found = await status(scheduler, finished(3))
        page = (await get(scheduler, "/otel/")).body.decode()
        shown = re.findall(r'<a href="run/[^"]*"><bdi>(.*?)</bdi></a>', page)
        assert shown[0] == backwards
        assert [name.partition("…")[2].split()[-1] for name in shown[1:]] == ["second", "first"]
        for run, end in zip(found["finished"], ("first", "second", "evil"), strict=True):
            text = (await get(scheduler, f"/otel/{run['run']}")).body.decode()
            title, heading = re.search("<title>(.*?)</title>", text)[1], re.search("<h1>.*</h1>", text)[0]
            assert title.endswith(f"{end}\u2069 · dask-otel")
            assert heading.endswith(f"{end}</bdi></h1>")
            assert len(re.findall("<bdi>[^<]*\u202e[^<]*</bdi>", text)) == text.count("\u202e") - title.count("\u202e")

    with_page(test)
