"""Debian's chromium without a window, driven through the pipe of its debugging protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
TIMEOUT_SECONDS = 60.0
_FORGET = "if (location.protocol === 'file:') localStorage.clear();"


class Browser:
    """One page of one browser. `requests` and `complaints` collect what a page does unasked."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands = commands
        self._replies = replies
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._events: list[str] = []
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = answer["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        # A page remembers its theme: each one is seen as on a first visit.
        self.call("Page.addScriptToEvaluateOnNewDocument", source=_FORGET)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of one command. Events that come before it are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            reply = self._read()
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply["error"])
                return reply["result"]

    def show(self, page: str, width: int, is_dark: bool = False) -> None:
        """Loads an address in a window of that width, and returns once it is loaded."""
        self.requests.clear()
        self.complaints.clear()
        self._events.clear()
        self.resize(width, is_dark)
        self.call("Page.navigate", url=page)
        self._wait_for("Page.loadEventFired")
        self._settle()

    def resize(self, width: int, is_dark: bool = False) -> None:
        """Gives the page another width, and its reader another preference."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=1200,
            deviceScaleFactor=1, mobile=width < 500,
        )
        scheme = "dark" if is_dark else "light"
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self._settle()

    def _settle(self) -> None:
        """Scripts of a page act after its events: two frames and a moment."""
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
            "() => setTimeout(done, 30))))"
        )

    def evaluate(self, expression: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the page down to 6000 pixels."""
        height = min(6000, self.evaluate("document.documentElement.scrollHeight"))
        width = self.evaluate("innerWidth")
        area = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=area)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _wait_for(self, event: str) -> None:
        while event not in self._events:
            self._read()

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._replies, 1 << 20)
            assert piece, "chromium ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        reply: dict[str, Any] = json.loads(message)
        if "method" in reply:
            self._note(reply["method"], reply["params"])
        return reply

    def _note(self, event: str, details: dict[str, Any]) -> None:
        self._events.append(event)
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Network.loadingFailed" and not details.get("canceled"):
            self.complaints.append(details["errorText"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning"):
            self.complaints.append(str(details["args"]))
        elif event == "Log.entryAdded":
            self.complaints.append(str(details["entry"]))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    assert CHROMIUM is not None
    command_end, commands = os.pipe()
    replies, reply_end = os.pipe()
    process = subprocess.Popen(
        # The protocol's pipes are the descriptors 3 and 4. Not every sh knows numbers above 9.
        ["bash", "-c", f'exec "$@" 3<&{command_end} 4>&{reply_end}', "bash", CHROMIUM,
         "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(command_end, reply_end), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    os.close(command_end)
    os.close(reply_end)
    page = Browser(commands, replies)
    try:
        page.attach()
        yield page
    finally:
        os.close(commands)
        os.close(replies)
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Chromium ends when its pipe does."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
