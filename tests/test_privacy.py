"""What may be shown can be switched off: then a planted secret appears nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
from html import unescape

import pytest
from distributed import Client, span, wait
from distributed.utils_test import captured_logger
from support.pages import get, status, with_page
from support.snapshots import points

from dask_otel.cli.receiver import Receiver

SECRET = "planted"
NAMES = ("message", "traceback", "keys", "tags", "code", "types", "clients")
#: What can only come from one of the settings.
MARKS = {
    "message": f"{SECRET}-message",
    "traceback": f"_raise_{SECRET}",
    "keys": f"{SECRET}-key",
    "tags": f"{SECRET}-tag",
    "code": "code.file.path",
    "types": f"{SECRET.title()}Result",
    "clients": f"{SECRET}-alice",
}


class PlantedResult:
    """Its name is a result's type."""


class PlantedError(Exception):
    """Its name is an exception's type."""


def _raise_planted():
    raise PlantedError(MARKS["message"])


def _fail(x):
    _raise_planted()


def _make(x):
    return PlantedResult()


async def workload(client):
    """Everything that has a name, and what the bridge itself would log of it."""
    key, tag = MARKS["keys"], MARKS["tags"]
    with span(f"{tag}-root"):
        with span(f"{tag}-child"):
            first = client.map(_make, range(3), key=f"{key}-make")
            await wait(first)
        second = client.map(_fail, range(3), key=f"{key}-fail")
        await wait(second)
    with span(f"{tag}-other"):  # Dask counts it in the other span: the log says so
        again = client.submit(_make, 9, key=f"{key}-make-9")
        more = client.map(_make, range(10, 13), key=[f"('{key}-make', {n})" for n in range(3)])
        await wait([again, *more])
    await client.submit(_make, 1, key=f"{key}-default")
    with span(f"{tag}-unreadable"):
        bad = client.submit(_make, Unreadable(), key=f"{key}-unreadable")
        await wait(bad)
    return first, second, again, more, bad


class Unreadable:
    """The scheduler cannot take a graph in that has one."""

    def __reduce__(self):
        return _raise_planted, ()


def run(monkeypatch, **capture):
    """Return all that leaves the bridge with some settings: over OTLP, in the log, and on the page."""
    out = {}
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoints["grpc"])

        async def test(plugin, client, scheduler):
            async with Client(scheduler.address, name=MARKS["clients"], asynchronous=True) as named:
                await watch(plugin, named, scheduler)

        async def watch(plugin, client, scheduler):
            futures = await workload(client)
            done = lambda found: len(found["finished"]) >= 4 and not found["open"]  # noqa: E731
            running = await status(scheduler, lambda found: found["open"] or done(found))
            found = await status(scheduler, done)
            page = (await get(scheduler, "/otel/")).body.decode()
            for each in found["finished"]:
                page += (await get(scheduler, f"/otel/{each['run']}")).body.decode()
            out["status"] = json.dumps(found)
            out["page"] = json.dumps(running) + out["status"] + page
            del futures
            await asyncio.wait_for(plugin.before_close(), 30)

        with captured_logger("distributed.dask_otel", level=logging.DEBUG) as log:
            settings = {f"otel.capture.{name}": value for name, value in capture.items()}
            with_page(test, **settings, **{"distributed.diagnostics.computations.nframes": 1})
        out["otlp"] = repr(receiver.wait(lambda spans: True, timeout=1))
        out["metrics"] = repr(points(receiver.metrics))
        out["log"] = log.getvalue()
    return out


def test_by_default_all_is_shown(monkeypatch):
    out = run(monkeypatch)
    for mark in MARKS.values():
        assert mark in out["otlp"], mark
    assert "PlantedError" in out["otlp"]
    for mark in MARKS.values():
        assert mark in out["page"], mark
    assert "Hidden, here" not in out["page"]
    assert all(mark in out["metrics"] for mark in (MARKS["tags"], MARKS["keys"], "PlantedError"))


#: What is misspelt, and what the page shows of it.
WRONG = {"preset": "otel.capture.preset", "presett": "otel.capture.presett (did you mean otel.capture.preset?)"}
#: How everything is hidden: by switches, with the preset, or because of a misspelt preset.
ALL_HIDDEN = [dict.fromkeys(NAMES, False), {"preset": "strict"}, {"preset": "strcit"}, {"presett": "strict"}]


@pytest.mark.parametrize("capture", [*({name: False} for name in NAMES), *ALL_HIDDEN], ids=str)
def test_what_is_switched_off_appears_nowhere(capture, monkeypatch):
    off = NAMES if capture in ALL_HIDDEN else tuple(capture)
    wrong = WRONG[next(iter(capture))] if capture in ALL_HIDDEN[2:] else ""
    check(run(monkeypatch, **capture), off, wrong)


def test_a_switch_has_priority_over_the_strict_preset(monkeypatch):
    shown = {"tags": True, "clients": True}
    check(run(monkeypatch, preset="strict", **shown), [name for name in NAMES if name not in shown])


def check(out, off, wrong=""):
    """Check that some kinds of content appear nowhere, and all others everywhere."""
    assert json.loads(out["status"])["hidden"] == list(off)
    page = unescape(out["page"])
    assert page.count("Hidden, here and in what is sent: ") == page.count('class="notice"') > 0
    why = f"these cannot be used: {wrong}." if wrong else f"under otel.capture: {', '.join(off)}."
    assert f"The reason is in the settings, {why}" in page
    for where, text in out.items():
        for name in off:
            assert MARKS[name] not in text, (where, name)
    for name in set(NAMES) - set(off) - {"code"}:
        assert MARKS[name] in out["otlp"], name
        assert MARKS[name] in out["page"], name
    if set(off) == set(NAMES):
        for where, text in out.items():
            assert SECRET not in text.lower(), where
        assert "span " in out["otlp"]  # pseudonyms
        assert "'dask.client.name': 'client " in out["otlp"]
        assert json.loads(out["status"])["finished"][0]["clients"][0].startswith("client ")
        assert "error.type" in out["otlp"]
        assert "'dask.span.root': 'span " in out["metrics"]
        assert "'dask.task.prefix': 'tasks " in out["metrics"]
