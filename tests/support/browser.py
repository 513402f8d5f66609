"""A headless Chromium, driven over its DevTools protocol: pages at a width, in a colour scheme, and what is on them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tornado.websocket import websocket_connect

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
#: In CI a missing browser is a failure.
needs_browser = pytest.mark.skipif(PROGRAM is None and not os.environ.get("CI"), reason="Chromium is not installed")


class Browser:
    """One page."""

    def __init__(self, socket):
        self._socket = socket
        self._number = 0
        #: What pages wrote to the console, such as violations of the Content-Security-Policy.
        self.messages = []

    async def call(self, method, session=True, until=None, **params):
        """Call a method of the protocol; return its result, or the parameters of the event to wait for."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        await self._socket.write_message(json.dumps(message | ({"sessionId": self.session} if session else {})))
        result = None
        while True:
            answer = json.loads(await asyncio.wait_for(self._socket.read_message(), 60))
            if answer.get("method") == "Log.entryAdded":
                self.messages.append(answer["params"]["entry"]["text"])
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                result = answer["result"]
                if until is None:
                    return result
            elif until and result is not None and answer.get("method") == until:
                return answer["params"]

    async def open(self, url, width=1280, height=900, scheme="light"):
        """Go to a page."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.call("Page.navigate", until="Page.loadEventFired", url=url)

    async def run(self, expression):
        """Evaluate JavaScript in the page, which the protocol may in spite of the page's policy."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    async def press(self, key, code):
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "char" else {}
            if kind != "char" or text:
                await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    async def click(self, x, y):
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    async def screenshot(self, path):
        """Take a picture of the whole page."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    async def overflow(self):
        """Pixels that the page is wider than its window, and the elements that stick out of it."""
        return await self.run(
            """(() => { const width = document.documentElement.clientWidth;
            const out = [...document.querySelectorAll('body *')].filter(each => each.checkVisibility()
                && !each.closest('.unseen, thead, svg') && each.getBoundingClientRect().right > width + 0.5);
            return [document.documentElement.scrollWidth - width,
                    out.slice(0, 5).map(each => each.outerHTML.slice(0, 200))] })()"""
        )


@asynccontextmanager
async def browser(folder):
    """Start Chromium with a profile in a folder."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *(
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
        ),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    socket = None
    try:
        while True:
            line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            if "DevTools listening on " in line:
                break
            if not line:
                raise RuntimeError("Chromium ended")
        rest = asyncio.create_task(process.stderr.read())
        socket = await websocket_connect(line.partition("DevTools listening on ")[2].strip(), max_message_size=2**28)
        page = Browser(socket)
        target = await page.call("Target.createTarget", session=False, url="about:blank")
        attached = await page.call("Target.attachToTarget", session=False, targetId=target["targetId"], flatten=True)
        page.session = attached["sessionId"]
        for domain in ("Page", "Log", "Accessibility"):
            await page.call(f"{domain}.enable")
        yield page
        await page.call("Browser.close", session=False)
        await process.wait()
        await rest
        while await socket.read_message() is not None:  # at its end, the connection is closed
            pass
    finally:
        if socket:
            socket.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
