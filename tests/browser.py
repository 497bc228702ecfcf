"""Chromium without a window and without a network, spoken to through a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""Names of Chromium, as Linux distributions call it."""

PATIENCE = 120
"""Seconds that an answer or an event may take on a busy machine."""

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--force-device-scale-factor=1", "--remote-debugging-pipe"),
)


def find_chromium() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Browser:
    """A process of Chromium, to be opened in a `with` statement.

    Args:
        program: the path of Chromium.

    Raises:
        RuntimeError: from any of its calls, where Chromium does not start, ends, or falls silent.
    """

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, to_browser = os.pipe()
        from_browser, theirs_out = os.pipe()
        # Chromium reads its orders from descriptor 3 and answers on 4.
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash"),
                *(program, *FLAGS, f"--user-data-dir={self._profile.name}"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._to, self._from = to_browser, from_browser
        self._unread = b""
        self._count = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._to)  # Chromium ends with its pipe
        os.close(self._from)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its children too
            self._process.wait()
        self._profile.cleanup()

    def open(self, path: Path, width: int = 1200, height: int = 900) -> Page:
        """A new page that shows a file, with no network, once all of it is loaded."""
        return Page(self, path.resolve().as_uri(), width, height)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One order of the DevTools protocol, and its answer."""
        self._count += 1
        order = {"id": self._count, "method": method, "params": params}
        order |= {} if session is None else {"sessionId": session}
        try:
            os.write(self._to, json.dumps(order).encode() + b"\0")
        except BrokenPipeError:
            raise RuntimeError("Chromium has ended") from None
        while (message := self._read()).get("id") != self._count:
            self._events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def wait_for(self, method: str, session: str) -> None:
        """Read until an event of a page has come."""
        while not any(e["method"] == method for e in self.events(session)):
            self._events.append(self._read())

    def events(self, session: str) -> list[dict[str, Any]]:
        """All events of a page so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._from], [], [], PATIENCE)[0]:
                raise RuntimeError(f"Chromium has said nothing for {PATIENCE} seconds")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        if answer.get("method") == "Inspector.targetCrashed":
            raise RuntimeError("the page has crashed")
        return answer


class Page:
    """One page."""

    def __init__(self, browser: Browser, address: str, width: int, height: int) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")
        attached = browser.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Inspector", "Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call(
            "Network.emulateNetworkConditions",
            **{"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
        )
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=address)
        browser.wait_for("Page.loadEventFired", self._session)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and exceptions of the page's scripts."""
        found = []
        for event in self._browser.events(self._session):
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(json.dumps(params["args"]))
            elif event["method"] == "Log.entryAdded":
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """What the page asked for, the beginning of each address."""
        return [
            event["params"]["request"]["url"][:60]
            for event in self._browser.events(self._session)
            if event["method"] == "Network.requestWillBeSent"
        ]

    def show_as(self, scheme: str = "light", media: str = "screen") -> None:
        """Light or dark, on the screen or on paper."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of what is seen, or of the whole page."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
