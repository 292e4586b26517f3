"""A real headless Chromium for tests of pages, over the pipe of its debugging protocol, which needs no package.

`find()` looks at the variable CHROMIUM, then for the usual names on PATH, then for what `python tests/chromium.py` laid
into the virtual environment: Debian's package, unpacked there without root.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)
_STARTER = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""The browser takes its orders from file descriptor 3 and answers on 4."""


_OURS = Path(sys.prefix, "chromium", "chromium")


def find() -> str | None:
    """The browser's program, if there is one."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in (*_NAMES, str(_OURS)) if (path := shutil.which(name))), None)


def fetch(program: Path) -> None:
    """Debian's Chromium and the libraries of it that are missing here, in the folder of `program`."""
    simulated = ["apt-get", "install", "--simulate", "--no-install-recommends", "chromium"]
    told = subprocess.run(simulated, check=True, capture_output=True, text=True).stdout
    names = [line.split()[1] for line in told.splitlines() if line.startswith("Inst ")]
    folder = program.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", *names], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        package.unlink()
    libraries = ":".join(sorted({str(path.parent) for path in folder.glob("usr/lib/**/*.so*")}))
    real = folder / "usr" / "lib" / "chromium" / "chromium"
    program.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{real}" "$@"\n')
    program.chmod(0o755)


class Browser:
    """One tab. `events` are all that it told, such as requests, console messages and refusals, in order."""

    def __init__(self, to: int, back: int) -> None:
        self._to = to
        self._back = back
        self._rest = b""
        self._last = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Security"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What a method of the protocol answers."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._last:
                assert "error" not in told, told
                return dict(told["result"])
            self.events.append(told)

    def open(
        self, path: Path, *, width: int = 1100, height: int = 900, scheme: str = "light", media: str = "screen"
    ) -> None:
        """Show a local file, as a `media` of "print" too, and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.told("Page.loadEventFired"):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def told(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a kind since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def screenshot(self, *, whole: bool = True) -> bytes:
        """The page as a PNG, or what of it is in view."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._back, 1 << 16)
            assert more, "the browser is gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Browser]:
    """A browser of its own, whose profile lies in `folder`."""
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    command = [sys.executable, "-c", _STARTER, str(theirs_in), str(theirs_out), program, *_FLAGS]
    process = subprocess.Popen(
        [*command, "--remote-debugging-pipe", f"--user-data-dir={folder}"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(to, back)
    finally:
        os.close(to)
        os.close(back)
        process.terminate()
        process.wait(timeout=20)


if __name__ == "__main__" and find() is None:
    fetch(_OURS)
