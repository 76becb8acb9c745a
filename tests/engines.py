"""Firefox and WebKit (Safari's engine) as Debian packages them, each by the protocol that it speaks itself.

Playwright drives builds of its own of both, which would have to be downloaded. Debian's Firefox speaks Marionette over
TCP, Debian's WebKitGTK has a WebDriver over HTTP; commands and answers of both are those of W3C's WebDriver.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

KEYS = {
    "Enter": "\ue007", "Shift": "\ue008", "Escape": "\ue00c", "ArrowLeft": "\ue012", "ArrowUp": "\ue013",
    "ArrowRight": "\ue014", "ArrowDown": "\ue015",
}  # fmt: skip
PATIENCE = 60.0  # seconds for which anything is waited for
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
PREFERENCES = """
user_pref("marionette.port", 0);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
"""


class Engine:
    """A browser with one window. `ask` sends a command of WebDriver and returns the value of its answer."""

    name = ""

    def ask(self, what: str, **values: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def press(self, *keys: str) -> None:
        """Press keys one after another; "Shift+A" holds the first down."""
        steps = []
        for key in keys:
            parts = [KEYS.get(part, part) for part in (key.split("+") if len(key) > 1 else [key])]
            steps += [{"type": "keyDown", "value": part} for part in parts]
            steps += [{"type": "keyUp", "value": part} for part in parts[::-1]]
        self.ask("PerformActions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])

    def read(self, expression: str) -> Any:
        """Return what an expression gives on the page; `$` finds an element there."""
        script = f"const $ = (selector) => document.querySelector(selector); return {expression}"
        return self.ask("ExecuteScript", script=script, args=[])

    def wait(self, expression: str) -> None:
        """Wait until an expression holds on the page."""
        end = time.monotonic() + PATIENCE
        while not self.read(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{self.name}: {expression} does not come true"
            time.sleep(0.02)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.ask("TakeScreenshot")))


class Firefox(Engine):
    """Marionette: `[0, number, command, values]` goes, `[1, number, error, answer]` comes, each after its length."""

    name = "firefox"

    def __init__(self, width: int, height: int) -> None:
        self.profile, self.number = Path(tempfile.mkdtemp()), 0
        (self.profile / "user.js").write_text(PREFERENCES)
        self.process = subprocess.Popen(
            ["firefox-esr", "--marionette", "--headless", "--no-remote", "--profile", str(self.profile)],
            env={**os.environ, "HOME": str(self.profile)}, **QUIET,
        )  # fmt: skip
        port = _soon(lambda: int((self.profile / "MarionetteActivePort").read_text()))
        self.socket = _soon(lambda: socket.create_connection(("127.0.0.1", port), PATIENCE))
        self._receive()  # its greeting
        self.version = self.ask("NewSession")["capabilities"]["browserVersion"]
        self.ask("SetWindowRect", width=width, height=height)

    def ask(self, what: str, **values: Any) -> Any:
        self.number += 1
        data = json.dumps([0, self.number, f"WebDriver:{what}", values]).encode()
        self.socket.sendall(f"{len(data)}:".encode() + data)
        _, number, error, answer = self._receive()
        assert (number, error) == (self.number, None)
        return answer["value"] if isinstance(answer, Mapping) and set(answer) == {"value"} else answer

    def _receive(self) -> Any:
        length, data = b"", b""
        while not length.endswith(b":"):
            length += self._some(1)
        while len(data) < int(length[:-1]):
            data += self._some(int(length[:-1]) - len(data))
        return json.loads(data)

    def _some(self, number: int) -> bytes:
        data = self.socket.recv(number)
        assert data, "firefox is gone"
        return data

    def close(self) -> None:
        self.socket.close()
        _end(self.process)
        shutil.rmtree(self.profile, ignore_errors=True)


class WebKit(Engine):
    """WebDriver over HTTP, to WebKitGTK's small browser on a screen that nobody sees."""

    name = "webkit"
    paths: Mapping[str, tuple[str, str]] = {
        "Navigate": ("POST", "/url"), "Refresh": ("POST", "/refresh"), "PerformActions": ("POST", "/actions"),
        "ExecuteScript": ("POST", "/execute/sync"), "TakeScreenshot": ("GET", "/screenshot"),
        "SetWindowRect": ("POST", "/window/rect"), "DeleteSession": ("DELETE", ""),
    }  # fmt: skip

    def __init__(self, width: int, height: int) -> None:
        reads, writes = os.pipe()
        self.screen = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writes), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"],
            pass_fds=[writes], **QUIET,
        )  # fmt: skip
        os.close(writes)
        with os.fdopen(reads) as pipe:
            display = f":{pipe.readline().strip()}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.host, self.session, self.home = f"127.0.0.1:{port}", "/session", Path(tempfile.mkdtemp())
        environment = {**os.environ, "DISPLAY": display, "HOME": str(self.home), "GDK_BACKEND": "x11"}
        self.driver = subprocess.Popen(["WebKitWebDriver", f"--port={port}"], env=environment, **QUIET)
        _soon(lambda: socket.create_connection(("127.0.0.1", port), PATIENCE).close())
        opened = self._send("POST", "/session", {"capabilities": {}})
        self.session, self.version = f"/session/{opened['sessionId']}", opened["capabilities"]["browserVersion"]
        self.ask("SetWindowRect", x=0, y=0, width=width, height=height)

    def ask(self, what: str, **values: Any) -> Any:
        method, path = self.paths[what]
        return self._send(method, self.session + path, values)

    def _send(self, method: str, path: str, values: Mapping[str, Any]) -> Any:
        with closing(http.client.HTTPConnection(self.host, timeout=PATIENCE)) as connection:
            connection.request(method, path, json.dumps(values) if method == "POST" else None)
            answer = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(answer, Mapping) and "error" in answer), answer
        return answer

    def close(self) -> None:
        self.ask("DeleteSession")
        _end(self.driver)
        _end(self.screen)
        shutil.rmtree(self.home, ignore_errors=True)


def _soon(attempt: Callable[[], Any]) -> Any:
    """Return what an attempt gives as soon as it succeeds."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except (OSError, ValueError):
            assert time.monotonic() < end, "the browser does not come up"
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()
