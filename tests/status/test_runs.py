"""The runs that a real scheduler keeps: their pages over HTTP, and in a notebook."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import re
import sys
from html import unescape
from html.parser import HTMLParser
from time import perf_counter
from urllib.parse import quote

import dask
import pytest
from distributed import Client, Event, span, wait
from distributed.utils_test import captured_logger
from support.browser import browser, needs_browser
from support.callers import anchored, inside
from support.large import large_trace
from support.pages import get, status, with_page
from support.records import SegmentRecord
from tornado.web import Application, RequestHandler

import dask_otel
from dask_otel.preload import OTelPlugin
from dask_otel.status.handlers import RUN_CALL
from dask_otel.status.render import MAX_INLINE_BYTES, MAX_INLINE_ROWS

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>"\'&{{ 1 }}'


@pytest.fixture(autouse=True)
def _nothing_is_sent(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")


def _fail(message):
    raise ValueError(message)


def _slow(x):
    from time import sleep

    sleep(0.3 if x == 3 else 0.001)


def _wait_for(name):
    return Event(name).wait(timeout=120)


async def work(client):
    """A run with groups, a failed task and a slow one, two spans deep; return the id of the root."""
    with span("Alice's workflow") as root:
        with span("load"):
            await wait(client.map(_slow, range(20), key="load"))
        with span("train"):
            await wait([client.submit(_fail, "7 is odd", key="fit"), client.submit(sum, [1, 2], key="score")])
    return root


#: The outline of its page.
ROWS = [
    "span Alice's workflow +: 1 task erred",
    "  span load +",
    "    group load +",
    "      task load",
    "  span train +: 1 task erred",
    "    group fit +: 1 task erred",
    "      task fit: ValueError: 7 is odd",
    "    group score",
]


def once(rows):
    """Without repeats: on a busy machine, other tasks may stand out as well."""
    return list(dict.fromkeys(rows))


async def shown(scheduler, root):
    """Follow the redirects from a Dask span to its run, once that is over; return where it is, and the page."""
    found = await status(scheduler, lambda found: any(each["id"] == root for each in found["finished"]))
    run = next(each["run"] for each in found["finished"] if each["id"] == root)
    redirect = await get(scheduler, f"/otel/trace/{root}")
    assert (redirect.code, redirect.headers["Location"]) == (302, f"../{run}")
    redirect = await get(scheduler, f"/otel/run/{dask_otel.trace_id(root)}")
    assert (redirect.code, redirect.headers["Location"]) == (302, run.removeprefix("run/"))
    answer = await get(scheduler, f"/otel/{run}")
    assert answer.code == 200
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    return f"/otel/{run}", answer.body.decode()


def outline(page):
    """Rows of a waterfall: how deep, the kind, ``+`` if open, the name and what failed."""
    out, depth = [], 0
    row = r'<details id="s\w+"( open)?[^>]*><summary class="row (\w+)[^>]*>(.*?)</summary>'
    for match in re.finditer(
        rf'<ul(?: class="waterfall")?>|</ul>|{row}', page.partition('<h2 id="spans">')[2], re.DOTALL
    ):
        if match[0].startswith("<ul"):
            depth += 1
        elif match[0] == "</ul>":
            depth -= 1
        else:
            name = re.sub(
                r"<span[^>]*>[^<]*</span>|</?b>|</?bdi>",
                "",
                re.search(r'class="name">(.*?)</span><span class="bar"', match[3])[1],
            )
            error = re.search(r'class="remark bad"><bdi>(.*?)</bdi></span>', match[3])
            text = f"{'  ' * (depth - 1)}{match[2]} {unescape(name).strip()}{' +' if match[1] else ''}"
            out.append(text + (f": {unescape(error[1])}" if error else ""))
    assert depth == 0
    return out


def test_a_run_with_no_exporter_at_all():
    async def test(plugin, client, scheduler):
        assert "is on and sends nothing, as configured; its page is /otel/" in log.getvalue()
        described = await dask_otel.describe(client=client)
        assert described.text == "dask-otel sends nothing, as configured"
        root = await work(client)
        path, page = await shown(scheduler, root)
        rows = outline(page)
        assert once(rows) == ROWS
        assert "Traceback</summary>" in page.partition('<h2 id="spans">')[0]
        assert page.index("What failed") < page.index('class="waterfall"')
        assert page.count('<th scope="row">dask.task.key</th>') == 2 + len(rows) - len(ROWS)
        assert page.count("<li>") == page.count("</li>")
        assert page.count("<details") == page.count("</details>")
        assert page.count("<ul") == page.count("</ul>")
        assert " open" not in "".join(
            re.findall("<details[^>]*>", (await get(scheduler, f"{path}?show=none")).body.decode())
        )
        every = outline((await get(scheduler, f"{path}?show=all")).body.decode())
        assert [row.endswith("+") or "+:" in row for row in once(every)] == [
            *(True, True, True, False),
            *(True, True, False, False),
        ]
        found = await status(scheduler, lambda found: True)
        assert (found["on"], found["exporters"], found["metrics"], found["errors"]) == (True, [], [], [])
        overview = (await get(scheduler, "/otel/")).body.decode()
        assert f'href="{path.removeprefix("/otel/")}"' in overview
        assert "Nothing is sent, as configured" in overview
        assert "1 task erred; first: ValueError: 7 is odd" in overview

    with captured_logger("distributed.dask_otel", level="INFO") as log:
        with_page(test)
    assert len(log.getvalue().splitlines()) == 1  # nothing to complain about


def test_another_registration_keeps_the_runs():
    async def test(plugin, client, scheduler):
        first = await work(client)
        path, page = await shown(scheduler, first)
        with span("cut") as cut:
            await client.submit(sum, [1], key="before")
            await scheduler.register_scheduler_plugin(OTelPlugin(headers={"other": "value"}), idempotent=False)
            assert not plugin.is_on
            await client.submit(sum, [2], key="after")
        found = await status(scheduler, lambda found: len(found["finished"]) == 3)
        assert [each["id"] for each in found["finished"]] == [first, cut, cut]
        for each, group in zip(found["finished"][1:], ("before", "after"), strict=True):
            part = await get(scheduler, f"/otel/{each['run']}")
            assert outline(part.body.decode()) == ["span cut +", f"  group {group}"]
        assert outline((await get(scheduler, path)).body.decode()) == outline(page)
        other = OTelPlugin(headers={"third": "value"})
        with dask.config.set({"otel.capture.message": False}):
            await scheduler.register_scheduler_plugin(other, idempotent=False)
        assert (await status(scheduler, lambda found: True))["finished"] == []  # privacy has changed
        assert (await get(scheduler, path)).code == 404

    with_page(test)


def test_a_run_that_is_not_sampled(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")

    async def test(plugin, client, scheduler):
        _, page = await shown(scheduler, await work(client))
        assert once(outline(page)) == ROWS

    with_page(test)


def test_a_run_that_is_not_over():
    """It has the root's name, what has failed and what is running, before anything in it has finished."""

    async def test(plugin, client, scheduler):
        with span("workflow") as root:
            with span("first"):
                await wait(client.submit(_fail, "no", key="fit"))
            with span("second"):
                future = client.submit(_wait_for, "go-on", key="waits")
        path = f"/otel/run/{dask_otel.trace_id(root)}"
        await status(scheduler, lambda found: found["open"] and found["open"][0]["tasks"] == 2)
        redirect = await get(scheduler, f"/otel/trace/{root}")
        assert redirect.headers["Location"] == path.replace("/otel", "..")
        expected = [
            "span workflow +: 1 task erred",
            "  span first +: 1 task erred",
            "    group fit +: 1 task erred",
            "      task fit: ValueError: no",
            "  span second +",
            "    group waits",
        ]
        answer = await get(scheduler, path)
        page = answer.body.decode()
        assert answer.code == 200
        assert outline(page) == expected
        while (await status(scheduler, lambda found: True))["open_segments"] > 2:  # the first has not closed
            await asyncio.sleep(0.01)
        before = float(re.search('class="row group.*? width="([\\d.]+)%"', page, re.DOTALL)[1])
        page = (await get(scheduler, path)).body.decode()
        assert outline(page) == expected
        assert "<title>✗ \u2068workflow\u2069 (running) · dask-otel</title>" in page
        assert re.search(r'<h1><span class="bad">.*<bdi>workflow</bdi></span> \(running\)</h1>', page)
        assert "0 of 2 tasks done" in page
        assert '<span class="bad">✗ 1 failed</span> · 1 to do' in page
        assert "dask.span.result" not in page.partition("<bdi>second</bdi>")[2]
        # The axis ends now: what has ended gets shorter.
        assert float(re.search('class="row group.*? width="([\\d.]+)%"', page, re.DOTALL)[1]) < before
        await Event("go-on", client=client).set()
        await future
        _, page = await shown(scheduler, root)
        assert outline(page) == expected
        assert "(running)" not in page

    with_page(test)


def test_what_is_running_is_hidden_as_what_has_finished():
    async def test(plugin, client, scheduler):
        with span("planted-tag") as root:
            await wait(client.submit(_fail, "planted-message", key="planted-key"))
            future = client.submit(_wait_for, "go-on", key="planted-other")
        await status(scheduler, lambda found: found["open"] and found["open"][0]["tasks"] == 2)
        page = (await get(scheduler, f"/otel/run/{dask_otel.trace_id(root)}")).body.decode()
        assert [row.split()[0] for row in outline(page)] == ["span", "group", "task", "group"]
        assert "planted" not in page
        assert "(running)" in page
        await Event("go-on", client=client).set()
        await future

    with_page(
        test, **{f"otel.capture.{name}": False for name in ("message", "traceback", "keys", "tags", "code", "types")}
    )


def test_a_large_run_that_is_not_over_is_shown_in_part():
    async def test(plugin, client, scheduler):
        futures = []
        with span("root") as root:
            for number in range(60):
                with span(f"step {number}"):
                    futures += [
                        client.submit(_fail, number, key=f"bad-{number}", pure=False),
                        client.submit(sum, [number], key=f"good-{number}", pure=False),
                    ]
            waiting = client.submit(_wait_for, "go-on", key="waits")
        await wait(futures)
        await status(scheduler, lambda found: found["open"] and found["open"][0]["completed"] == 60)
        page = (await get(scheduler, f"/otel/run/{dask_otel.trace_id(root)}")).body.decode()
        rows = [row.split()[0] for row in outline(page)]
        assert (rows.count("span"), rows.count("group"), rows.count("task")) == (40, 40, 20)
        assert "of 121 tasks done" in page
        assert '<span class="bad">✗ 60 failed</span>' in page
        await Event("go-on", client=client).set()
        await waiting

    with_page(test, **{"otel.traces.idle-timeout": "1m"})


def test_two_runs_in_a_caller_s_trace():
    async def test(plugin, client, scheduler):
        tops = {"first": anchored(7, 8, "1"), "second": anchored(7, 9, "2")}
        for name, id_ in tops.items():
            with inside(**{name: id_}), span("inner") as inner:
                await client.submit(sum, [1, 2], key=name)
            tops[name] = (id_, inner)
        found = await status(scheduler, lambda found: len(found["finished"]) == 2)
        paths = {each["name"]: each["run"] for each in found["finished"]}
        for name, ids in tops.items():
            for id_ in ids:
                redirect = await get(scheduler, f"/otel/trace/{quote(id_, safe='')}")
                assert redirect.headers["Location"] == f"../{paths[name]}"
        page = (await get(scheduler, f"/otel/{paths['first']}")).body.decode()
        assert outline(page) == ["span first +", "  span inner +", "    group first"]
        assert f'Other runs of this trace: <a href="../../{paths["second"]}"><bdi>second</bdi></a>' in page

    with_page(test)


@pytest.mark.parametrize(
    ("path", "code"),
    [("0" * 32, 404), (f"{'a' * 32}/{'b' * 16}", 404), ("<script>", 404), ("A" * 32, 404), ("1" * 33, 404)],
)
def test_a_run_that_is_not_there(path, code):
    async def test(plugin, client, scheduler):
        answer = await get(scheduler, f"/otel/run/{path.replace('<', '%3C').replace('>', '%3E')}")
        assert answer.code == code
        assert b"<script" not in answer.body

    with_page(test)


def test_what_people_wrote_is_text():
    async def test(plugin, client, scheduler):
        async with Client(scheduler.address, asynchronous=True, name=EVIL) as evil:
            with span(EVIL) as root, span(f"inner {EVIL}"):
                await wait([evil.submit(_fail, EVIL, key=f"{EVIL} 1"), evil.submit(sum, [1], key=(EVIL, 2))])
        path, page = await shown(scheduler, root)
        for each in (page, (await get(scheduler, f"{path}?show=%3Cscript%3E")).body.decode()):
            assert "<script" not in each
            assert "<img" not in each
            assert "{{ 1 }}" in each
        assert EVIL in unescape(page)

    with_page(test)


def test_three_thousand_groups_do_not_hold_the_event_loop():
    async def test(plugin, client, scheduler):
        together = []
        for record in large_trace(max_groups=500):
            together.append(record)
            if isinstance(record, SegmentRecord):
                plugin.sink.put(together)
                await asyncio.to_thread(plugin.sink.recent_runs._pack)
                together = []
        run = (await status(scheduler, lambda found: found["finished"]))["finished"][0]["run"]
        lags = []

        async def measure():
            while True:
                before = perf_counter()
                await asyncio.sleep(0.001)
                lags.append(perf_counter() - before - 0.001)

        measuring = asyncio.create_task(measure())
        answer = await get(scheduler, f"/otel/{run}", decompress_response=False)
        measuring.cancel()
        zipped = await get(scheduler, f"/otel/{run}", decompress_response=False, headers={"Accept-Encoding": "gzip"})
        page = answer.body.decode()
        assert gzip.decompress(zipped.body) == answer.body
        assert len(zipped.body) < 2**18
        assert 900 < len(outline(page)) <= 1000
        assert "Left out: " in page
        assert page.count("Traceback</summary>") == 1
        assert re.search(r"and [1-9]\d* more like this", page)
        assert re.search(r"[1-9]\d* more groups</b>", page)
        assert any(row.lstrip().startswith("task ") for row in outline(page)[:5])
        assert len(lags) > 20  # it was not held in one piece
        assert sorted(lags)[len(lags) // 2] < 0.02

    with_page(test)


class Frame(HTMLParser):
    """What a notebook is given: its tags, and the document in its frame."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.document, self.sandbox = [], "", None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "iframe":
            self.document, self.sandbox = dict(attributes)["srcdoc"], dict(attributes)["sandbox"]


def test_a_run_in_a_notebook():
    async def test(plugin, client, scheduler):
        root = await work(client)
        with dask.config.set({"otel.trace-url": "http://jaeger/{trace_id}"}):
            view = await dask_otel.show_trace(root, client=client)  # waits until it is over
        path, page = await shown(scheduler, root)
        assert outline(view.document) == outline(page)
        took = re.search(r"took ([\d.]+ \w+)", page)[1]
        line = f"Alice's workflow took {took} · error · 22 tasks · 1 task erred; first: ValueError: 7 is odd"
        link = f"http://127.0.0.1:{scheduler.http_server.port}{path}"
        trace = f"http://jaeger/{dask_otel.trace_id(root)}"
        assert view.page.endswith(path)
        assert repr(view) == f"{line}; page: {view.page}; trace: {trace}"
        assert view.page in (link, link.replace("127.0.0.1", "localhost"))
        frame = Frame(view._repr_html_())
        assert frame.tags == ["style", "a", "a", "iframe"]
        assert (frame.document, frame.sandbox) == (view.document, None)  # the sandbox allows nothing
        assert set(re.findall(r'(?:<a href|src|action)="(.)', view.document)) == {"#"}
        assert "Content-Security-Policy" in view.document
        with span("outside"), span("inside") as inside_:
            await client.submit(sum, [1, 2], key="inside")
            view = await dask_otel.show_trace(client=client)
            assert outline(view.document) == ["span outside +", "  span inside +", "    group inside"]
            by_id = await dask_otel.show_trace(inside_, client=client)
            assert by_id.document == view.document

    with_page(test)


def test_a_run_in_a_notebook_with_the_scheduler_s_link():
    async def test(plugin, client, scheduler):
        root = await work(client)
        with dask.config.set({"otel.trace-url": None}):
            view = await dask_otel.show_trace(root, client=client)
        assert view.trace == f"http://jaeger/{dask_otel.trace_id(root)}"
        with pytest.raises(ValueError, match=r"timeout must be a duration such as 10 or '1 minute', not '1 min'"):
            dask_otel.show_trace(root, client=client, timeout="1 min")

    with_page(test, **{"otel.trace-url": "http://jaeger/{trace_id}"})


def test_a_run_in_a_notebook_that_is_not_over():
    async def test(plugin, client, scheduler):
        with span("workflow") as root:
            future = client.submit(_wait_for, "go-on", key="second")
            view = await dask_otel.show_trace(client=client, timeout="0.5s")
            assert view.text == "workflow is not over; none of its spans has finished yet"
            assert view.document == ""
            assert "<iframe" not in view._repr_html_()
            with span("first"):
                await client.submit(sum, [1, 2], key="first")
        while not (view := await dask_otel.show_trace(root, client=client, timeout=0)).document:
            pass
        assert view.text == "workflow is not over; here are the spans that have finished"
        assert outline(view.document) == ["span first +", "  group first"]
        waiting = asyncio.create_task(dask_otel.show_trace(root, client=client, timeout="1 minute"))
        await Event("go-on", client=client).set()
        await future
        assert outline((await waiting).document)[0] == "span workflow +"

    with_page(test)


def test_what_people_wrote_is_text_in_a_notebook():
    async def test(plugin, client, scheduler):
        with span(EVIL) as root:
            await wait(client.submit(_fail, EVIL, key=EVIL))
        view = await dask_otel.show_trace(root, client=client)
        assert Frame(view._repr_html_()).tags == ["style", "a", "iframe"]
        assert "<script" not in view.document
        assert "<img" not in view.document
        assert EVIL in unescape(view.document)

    with_page(test)


def test_a_notebook_shows_what_is_recorded():
    async def test(plugin, client, scheduler):
        view = await dask_otel.show_trace(await work(client), client=client)
        for text in (repr(view), view.document):
            assert not re.search("Alice|7 is odd|Traceback</summary>|fit", text)
        assert re.match(r"span \w+ took ", view.text)

    capture = ("message", "traceback", "keys", "tags")
    with_page(test, **{f"otel.capture.{name}": False for name in capture})


@pytest.mark.parametrize("name", ["", "&" * 250], ids=["many rows", "many bytes"])
def test_a_large_run_in_a_notebook(name):
    """The bytes are those of names that are five times as long in HTML."""

    async def test(plugin, client, scheduler):
        together, records = [], large_trace(max_groups=500)
        for record in records:
            together.append(dataclasses.replace(record, name=name or record.name))
            if isinstance(record, SegmentRecord):
                plugin.sink.put(together)
                together = []
        found = await scheduler.handlers[RUN_CALL]([record.top.id], wait=True)
        rows = [row for row in outline(found["html"]) if not row.lstrip().startswith("more ")]
        left_out = int(re.search(r"Left out: ([\d,]+) spans", found["html"])[1].replace(",", ""))
        assert len(found["html"].encode()) <= MAX_INLINE_BYTES
        assert 10 < len(rows) < MAX_INLINE_ROWS if name else len(rows) == MAX_INLINE_ROWS
        assert left_out + len(rows) == len(records)
        assert any(row.lstrip().startswith("task ") for row in rows)  # failed tasks

    with_page(test)


def test_no_run_in_a_notebook(monkeypatch):
    async def test(plugin, client, scheduler):
        view = await dask_otel.show_trace("no such span", client=client, timeout=0)
        assert repr(view).startswith("dask-otel has no run of this Dask span: no task of it has reached the scheduler")
        root = await work(client)
        await dask_otel.show_trace(root, client=client)

        def read(*arguments):
            raise ArithmeticError

        with captured_logger("dask_otel"):
            plugin.sink.recent_runs.read = read
            view = await dask_otel.show_trace(root, client=client)
        assert view.text == "dask-otel could not draw this run: see the scheduler's log"
        assert (await status(scheduler, lambda found: True))["errors"][0]["type"] == "ArithmeticError"
        del scheduler.handlers[RUN_CALL]  # an older version
        with captured_logger("distributed.core") as log:
            view = await dask_otel.show_trace(root, client=client)
        assert view.text == "dask-otel sends nothing, as configured"
        assert log.getvalue() == ""

    with_page(test)


def test_runs_are_off_in_a_notebook():
    async def test(plugin, client, scheduler):
        view = await dask_otel.show_trace(await work(client), client=client)
        assert view.text == "dask-otel keeps no runs on this scheduler (otel.page.runs: 0)"

    with_page(test, **{"otel.page.runs": 0})


def test_a_bridge_that_is_off_in_a_notebook(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlpp")

    async def test(plugin, client, scheduler):
        view = await dask_otel.show_trace("a span", client=client)
        assert view.text.startswith("dask-otel is off on this scheduler: ")
        assert "otlpp" in view.text

    with captured_logger("dask_otel"):
        with_page(test)


def test_nothing_reloads_unless_asked_to():
    async def test(plugin, client, scheduler):
        _, page = await shown(scheduler, await work(client))
        assert "http-equiv" not in page
        overview = (await get(scheduler, "/otel/")).body.decode()
        assert "http-equiv" not in overview
        assert 'href="?live"' in overview
        live = (await get(scheduler, "/otel/?live")).body.decode()
        assert '<meta http-equiv="refresh" content="5">' in live
        assert 'href="."' in live

    with_page(test)


def test_dask_s_navigation_bar_has_a_link(monkeypatch):
    """As with bokeh, which keeps this list for each scheduler."""
    variables = {"pages": ["status", "info"]}

    class Dashboard:
        @staticmethod
        def template_variables(scheduler):
            return variables

    monkeypatch.setitem(sys.modules, "distributed.dashboard.scheduler", Dashboard)

    async def test(plugin, client, scheduler):
        from dask_otel.status.handlers import _link_from_dask

        assert variables["pages"] == ["status", "info"]  # this scheduler has no dashboard
        scheduler.http_application.applications.append(None)
        try:
            _link_from_dask(scheduler)
            _link_from_dask(scheduler)
        finally:
            scheduler.http_application.applications.clear()
        assert variables["pages"] == ["status", "info", "otel"]

    with_page(test)


#: The least contrast of a text, and of a bar, with what is behind it, as the WCAG define it.
CONTRAST = """(() => {
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const linear = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = each => {
        for (; each; each = each.parentElement) {
            const colour = parse(getComputedStyle(each).backgroundColor);
            if (colour[3] !== 0) return colour;
        }
        return [255, 255, 255];
    };
    const contrast = (one, other) => {
        const [more, less] = [luminance(one), luminance(other)].sort((x, y) => y - x);
        return (more + 0.05) / (less + 0.05);
    };
    const least = (found, property) =>
        Math.min(21, ...found.map(each => contrast(parse(getComputedStyle(each)[property]), behind(each))));
    const hasText = each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    return [least([...document.querySelectorAll('body *')].filter(hasText), 'color'),
            least([...document.querySelectorAll('rect')], 'fill')];
})()"""


@needs_browser
@pytest.mark.slow
def test_in_a_browser(tmp_path, monkeypatch):
    """Narrow and wide, light and dark, with the keyboard, and for a screen reader; with exporters that fail."""
    for signal in ("TRACES", "METRICS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{'a-very-long-name' * 3}.invalid:4317")

    async def test(plugin, client, scheduler):
        with span("x" * 300) as long_name:
            await client.submit(sum, [1, 2], key="a-key-without-any-blank-" * 20)
        with span(EVIL) as evil:
            await wait(client.submit(_fail, EVIL * 5, key=EVIL))
        root = await work(client)
        with span("Bob waits"):
            future = client.submit(_wait_for, "go-on", key="waiting")
        paths = [(await shown(scheduler, each))[0] for each in (root, evil, long_name)]
        await status(scheduler, lambda found: found["open"] and found["exporters"][0]["last_error"])
        base = f"http://127.0.0.1:{scheduler.http_server.port}"
        async with browser(tmp_path) as page:
            for path in ("/otel/", *paths, *(f"{path}?show=all" for path in paths)):
                for width in (320, 400, 1280):
                    for scheme in ("light", "dark"):
                        await page.open(base + path, width, scheme=scheme)
                        await page.run(
                            "for (const each of document.querySelectorAll('details details')) each.open = true"
                        )
                        assert await page.overflow() == [0, []], (path, width)
                        text, bars = await page.run(CONTRAST)
                        assert text >= 4.5, (path, scheme, text)
                        assert bars >= 3, (path, scheme, bars)
                        assert await page.run("document.title") != "owned"
            for root_id in (root, evil, long_name):
                await in_a_frame(page, await dask_otel.show_trace(root_id, client=client), tmp_path)
            await link_in_a_frame(page, await dask_otel.show_trace(root, client=client), tmp_path)
            await keyboard(page, base + paths[0])
            await screen_reader(page, base, paths[0])
            assert page.messages == []  # nothing was blocked either
        await Event("go-on", client=client).set()
        await future

    with_page(test, timeout=110)  # some hundred screens


async def in_a_frame(page, view, folder):
    """What a notebook shows: the document by itself, and in the frame, which keeps scripts from looking at it."""
    document, notebook = folder / "document.html", folder / "notebook.html"
    document.write_text(view.document, encoding="utf-8")
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{view._repr_html_()}", encoding="utf-8")
    for width in (400, 800, 1200):
        for scheme in ("light", "dark"):
            await page.open(document.as_uri(), width, scheme=scheme)
            assert await page.overflow() == [0, []], (view.text, width)
            text, bars = await page.run(CONTRAST)
            assert text >= 4.5, (view.text, scheme, text)
            assert bars >= 3, (view.text, scheme, bars)
        height = await page.run("document.body.scrollHeight")
        if width > 400 and len(view.text) < 120:  # nothing is so long that it is wrapped
            assert -60 < view.height - min(700, height) < 120, (view.text, view.height, height)
        await page.open(notebook.as_uri(), width)
        assert await page.run("document.querySelector('iframe').clientHeight") == view.height
        assert await page.run("document.querySelector('iframe').contentDocument") is None
        for is_light, scheme in (("true", "light"), ("false", "dark")):
            await page.run(f"document.body.dataset.jpThemeLight = '{is_light}'")
            assert await page.run("getComputedStyle(document.querySelector('iframe')).colorScheme") == scheme
        assert await page.run("document.title") != "owned"


async def link_in_a_frame(page, view, folder):
    """A link to a row moves to the row, and opens neither a page nor the notebook inside the frame."""
    requests = []

    class Notebook(RequestHandler):
        def get(self):
            requests.append(self.request.path)
            self.write(f"<!doctype html><meta charset=utf-8>{view._repr_html_()}")

    server = Application([(".*", Notebook)]).listen(0, "127.0.0.1")
    url = f"http://127.0.0.1:{next(iter(server._sockets.values())).getsockname()[1]}/notebook"
    rectangle = "JSON.stringify(document.querySelector('{}').getBoundingClientRect())"
    await page.open(url)
    frame = json.loads(await page.run(rectangle.format("iframe")))
    document = folder / "document.html"
    document.write_text(view.document, encoding="utf-8")
    await page.open(document.as_uri(), int(frame["width"]))
    link = json.loads(await page.run(rectangle.format(".errors a")))
    await page.open(url)
    del requests[:]
    await page.screenshot(folder / "before.png")
    await page.click(frame["x"] + link["x"] + 3, frame["y"] + link["y"] + 3)
    before = after = (folder / "before.png").read_bytes()
    while after == before:
        await page.screenshot(folder / "after.png")
        after = (folder / "after.png").read_bytes()
    assert "/notebook" not in requests
    server.stop()


#: The most lines that any visible element of a class takes.
LINES = """Math.max(...[...document.querySelectorAll('PLACE')].filter(each => each.checkVisibility()).map(each => {
    const range = document.createRange();
    range.selectNodeContents(each);
    return new Set([...range.getClientRects()].map(line => Math.round(line.top))).size;
}))"""


@needs_browser
@pytest.mark.slow
def test_many_groups_and_runs_in_a_browser(tmp_path, monkeypatch):
    """Pages stay short, columns keep words and addresses together, and a link to a folded run opens it."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel-collector.observability.svc.cluster.local:4317")

    async def test(plugin, client, scheduler):
        async with Client(scheduler.address, asynchronous=True, name="alice-notebook/ok") as alice:
            for number in range(12):
                with span(f"nightly-report-{number}"):
                    await wait(alice.submit(str if number else _fail, number, key=f"key-{number}", pure=False))
                await status(scheduler, lambda found, number=number: len(found["finished"]) == number + 1)
        large = large_trace(max_groups=500)
        for number, record in enumerate(large):
            if isinstance(record, SegmentRecord):
                begin = next((n + 1 for n in range(number - 1, -1, -1) if isinstance(large[n], SegmentRecord)), 0)
                plugin.sink.put(large[begin : number + 1])
                await asyncio.to_thread(plugin.sink.recent_runs._pack)
        found = await status(scheduler, lambda found: len(found["finished"]) == 13 and found["finished"][-1]["run"])
        base = f"http://127.0.0.1:{scheduler.http_server.port}/otel/"
        async with browser(tmp_path) as page:
            for width, most in ((400, 6500), (1280, 4500)):
                await page.open(base + found["finished"][-1]["run"], width)
                assert await page.run("document.documentElement.scrollHeight") < most
                assert await page.overflow() == [0, []]
            await page.open(base)
            for place, most in ((".client", 2), (".address", 2), (".id", 2)):
                assert 0 < await page.run(LINES.replace("PLACE", place)) <= most, place
            is_seen = "document.querySelector('#f12').checkVisibility()"
            assert await page.run(is_seen) is False
            await page.run("document.querySelector('a[href=\"#f12\"]').click()")
            assert await page.run(is_seen) is True

    with_page(test, timeout=110)


async def keyboard(page, url):
    """Everything that opens can be reached with the Tab key and opened with Enter."""
    await page.open(url)
    reached = []
    for _ in range(40):
        await page.press("Tab", 9)
        reached.append(await page.run("document.activeElement.textContent.trim().slice(0, 20)"))
        if await page.run("document.activeElement.matches('.row.task')"):
            break
    assert "All runs" in reached
    is_open = "document.activeElement.parentElement.open"
    assert await page.run(is_open) is False
    await page.press("Enter", 13)
    assert await page.run(is_open) is True
    assert await page.run("document.activeElement.nextElementSibling.querySelector('th').checkVisibility()")
    await page.press("Enter", 13)
    assert await page.run(is_open) is False


async def screen_reader(page, base, run):
    """What a screen reader gets: tables with names and headers, also at 400 px, and rows that say what bars show."""
    for width in (400, 1280):
        await page.open(f"{base}/otel/", width)
        nodes = await accessible(page)
        assert {name for role, name in nodes if role == "table"} == {
            "Exporters: where spans and metrics are sent, and what became of them",
            "Runs that are not over",
            "Runs that have finished, the latest first",
        }
        assert [name for role, name in nodes if role == "columnheader"][-7:] == [
            *("span", "client", "ended (UTC)", "took", "tasks", "result", "trace")
        ]
        await page.open(base + run, width)
        nodes = await accessible(page)
        rows = [name for role, name in nodes if role == "DisclosureTriangle"]
        assert any(re.match(r"failed group fit took [\d.]+ .s", name) for name in rows), rows
        assert any(re.match(r"task load slow took", name) for name in rows), rows
        assert ("heading", "What failed") in nodes


async def accessible(page):
    tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    return [
        (node["role"]["value"], " ".join(node.get("name", {}).get("value", "").replace("✗", "").split()))
        for node in tree
        if not node["ignored"]
    ]
