"""Firefox and WebKit (the engine of Safari), as Debian packages them, each by the protocol that it speaks itself.

Playwright drives builds of its own of both, which would have to be downloaded. Debian's Firefox speaks Marionette over
TCP, its WebKitGTK comes with a WebDriver over HTTP; commands and answers of both are those of W3C's WebDriver.
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
from pathlib import Path
from typing import Any

KEYS = {
    "Tab": "\ue004", "Enter": "\ue007", "Shift": "\ue008", "Escape": "\ue00c", "ArrowLeft": "\ue012",
    "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015",
}  # fmt: skip
ALL_KEYS = "\ue000"  # select all of a field's text is not needed: fields are emptied by script
PATIENCE = 30.0  # seconds for which anything is waited for


class Engine:
    """A browser with one window. `ask` sends a command of WebDriver and returns its answer's value."""

    name = ""

    def ask(self, what: str, **values: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def press(self, *keys: str) -> None:
        """Press keys one after another; "Shift+A" holds one down."""
        steps = []
        for key in keys:
            parts = [KEYS.get(part, part) for part in key.split("+")] if len(key) > 1 else [key]
            steps += [{"type": "keyDown", "value": part} for part in parts]
            steps += [{"type": "keyUp", "value": part} for part in parts[::-1]]
        self.ask("PerformActions", actions=[{"type": "key", "id": "keyboard", "actions": steps}])

    def read(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives on the page."""
        return self.ask("ExecuteScript", script=f"return {expression}", args=[])

    def text(self, selector: str) -> str:
        return str(self.read(f"document.querySelector({selector!r}).innerText"))

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
        self.profile = Path(tempfile.mkdtemp())
        (self.profile / "user.js").write_text(
            'user_pref("marionette.port", 0);\n'
            'user_pref("browser.shell.checkDefaultBrowser", false);\n'
            'user_pref("datareporting.policy.dataSubmissionEnabled", false);\n'
            'user_pref("network.connectivity-service.enabled", false);\n'
        )
        self.number = 0
        self.process = subprocess.Popen(
            ["firefox-esr", "--marionette", "--headless", "--no-remote", "--profile", str(self.profile)],
            env={**os.environ, "HOME": str(self.profile), "MOZ_HEADLESS_WIDTH": str(width), "MOZ_HEADLESS_HEIGHT": str(height)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = int(_once(lambda: (self.profile / "MarionetteActivePort").read_text()))
        self.socket = _once(lambda: socket.create_connection(("127.0.0.1", port), PATIENCE))
        self._receive()  # its greeting
        self.version = self.ask("NewSession")["capabilities"]["browserVersion"]
        self.ask("SetWindowRect", width=width, height=height)

    def ask(self, what: str, **values: Any) -> Any:
        self.number += 1
        data = json.dumps([0, self.number, f"WebDriver:{what}", values]).encode()
        self.socket.sendall(f"{len(data)}:".encode() + data)
        _, _, error, answer = self._receive()
        assert error is None, error
        return answer["value"] if isinstance(answer, Mapping) and set(answer) == {"value"} else answer

    def _receive(self) -> Any:
        length = b""
        while (byte := self.socket.recv(1)) != b":":
            length += byte
        data = b""
        while len(data) < int(length):
            data += self.socket.recv(int(length) - len(data))
        return json.loads(data)

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


class WebKit(Engine):
    """WebDriver over HTTP, to WebKitGTK's small browser on a screen that nobody sees."""

    name = "webkit"
    paths: Mapping[str, tuple[str, str]] = {
        "Navigate": ("POST", "/url"), "PerformActions": ("POST", "/actions"), "ExecuteScript": ("POST", "/execute/sync"),
        "TakeScreenshot": ("GET", "/screenshot"), "SetWindowRect": ("POST", "/window/rect"), "Refresh": ("POST", "/refresh"),
    }  # fmt: skip

    def __init__(self, width: int, height: int) -> None:
        reads, writes = os.pipe()
        self.screen = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writes), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp"],
            pass_fds=[writes], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(writes)
        with os.fdopen(reads) as pipe:
            display = f":{pipe.readline().strip()}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.home = Path(tempfile.mkdtemp())
        self.driver = subprocess.Popen(
            ["WebKitWebDriver", f"--port={port}"],
            env={**os.environ, "DISPLAY": display, "HOME": str(self.home), "GDK_BACKEND": "x11"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _once(lambda: socket.create_connection(("127.0.0.1", port), PATIENCE).close())
        self.host, self.session = f"127.0.0.1:{port}", ""
        opened = self._send("POST", "/session", {"capabilities": {"alwaysMatch": {"browserName": "MiniBrowser"}}})
        self.session, self.version = f"/session/{opened['sessionId']}", opened["capabilities"]["browserVersion"]
        self.ask("SetWindowRect", x=0, y=0, width=width, height=height)

    def ask(self, what: str, **values: Any) -> Any:
        method, path = self.paths[what]
        return self._send(method, self.session + path, values)

    def _send(self, method: str, path: str, values: Mapping[str, Any]) -> Any:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request(method, path, json.dumps(values) if method == "POST" else None)
        answer = json.loads(connection.getresponse().read())["value"]
        connection.close()
        assert not (isinstance(answer, Mapping) and "error" in answer), answer
        return answer

    def close(self) -> None:
        self._send("DELETE", self.session, {})
        for process in (self.driver, self.screen):
            process.terminate()
            process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


def _once(attempt):
    """Return what an attempt gives as soon as it can."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except (OSError, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
