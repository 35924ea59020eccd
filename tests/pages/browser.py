"""Chromium without a window, driven over its DevTools protocol: how wide a page is, what it says and asks for, how it looks."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None and "CI" not in os.environ, reason="no chromium here: apt-get install chromium"
)
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--hide-scrollbars", "--no-first-run", "--remote-debugging-port=0"]


class Gone(Exception):
    """The page that was asked went away for the next one."""


@dataclass
class Tab:
    """One page, shown at one width."""

    socket: Any
    session: str
    said: list[str] = field(default_factory=list)  # errors and warnings of the console, and of scripts
    asked: list[str] = field(default_factory=list)  # every address but data: URIs
    _number: int = 0
    _loaded: set[str] = field(default_factory=set)  # what has loaded, by its loader's id: about:blank is loaded, too, and late at times

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is kept."""
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "sessionId": self.session, "method": method, "params": parameters}))
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer and any(word in answer["error"]["message"] for word in ("navigated", "context")):
                    raise Gone(answer)
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        """What the browser says next, kept where it is of this tab."""
        found: dict[str, Any] = json.loads(self.socket.recv(timeout=60))
        if found.get("sessionId") == self.session:
            self._keep(found)
        return found

    def _keep(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent" and not found["request"]["url"].startswith("data:"):
            self.asked.append(found["request"]["url"])
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            self.said.append(found["exceptionDetails"].get("exception", {}).get("description", found["exceptionDetails"]["text"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.said.append(" ".join(str(one.get("value", "")) for one in found["args"]))
        elif method == "Page.lifecycleEvent" and found["name"] == "load":
            self._loaded.add(found["loaderId"])

    def open(self, url: str) -> None:
        """Go there, and wait for all of it."""
        loader = self.call("Page.navigate", url=url)["loaderId"]
        while loader not in self._loaded:
            self._next()

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; the page's policy does not bind it."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = 120) -> None:
        """Until an expression is true, in this page or in the one that it leads to."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(Gone):
                if self.ask(script):
                    return
            assert time.monotonic() < deadline, script
            time.sleep(0.1)

    def shot(self, path: Path, whole: bool = False) -> Path:
        """A picture of what is seen first, or of the whole page."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser that reaches nothing but this machine; yields its DevTools socket."""
    command = ["chromium", *FLAGS, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 120
        while not (port_file.exists() and len(port_file.read_text().split()) == 2):
            assert process.poll() is None and time.monotonic() < deadline, "chromium did not start"
            time.sleep(0.1)
        port, path = port_file.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=2**27, open_timeout=60) as socket:
            yield socket
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def tab(socket: Any, width: int, height: int = 900) -> Iterator[Tab]:
    """A tab of its own, as wide as a screen: a phone's where it is narrow."""
    bare = Tab(socket, "")

    def root(method: str, **parameters: Any) -> dict[str, Any]:
        bare._number += 1
        socket.send(json.dumps({"id": 10**6 + bare._number, "method": method, "params": parameters}))
        while (answer := json.loads(socket.recv(timeout=60))).get("id") != 10**6 + bare._number:
            pass
        return answer["result"]

    target = root("Target.createTarget", url="about:blank")["targetId"]
    opened = Tab(socket, root("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
    for domain in ("Page", "Runtime", "Log", "Network"):
        opened.call(f"{domain}.enable")
    opened.call("Page.setLifecycleEventsEnabled", enabled=True)
    opened.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    try:
        yield opened
    finally:
        root("Target.closeTarget", targetId=target)
