"""A headless Chromium, told what to do over its debugging pipe: no driver, no further package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"),
    "--no-sandbox",  # it shows this project's own page only, maybe as root in a container
)
LAUNCHER = """import fcntl, os, sys
high = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3]]  # may be 3 or 4
for copy, number in zip(high, (3, 4)):
    os.dup2(copy, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
MISSING = (
    "no Chromium here: install the package `chromium`, name the program in CHROMIUM=/path, or say"
    " CHROMIUM=none where there is to be none"
)


def find_chromium() -> str | None:
    """The program; None where CHROMIUM=none. AssertionError if there is none."""
    named = os.environ.get("CHROMIUM")
    if named == "none":
        return None
    found = [path for path in map(shutil.which, [named] if named else NAMES) if path]
    assert found, MISSING
    return found[0]


class Page:
    """One tab."""

    def __init__(self, read: FileIO, write: FileIO) -> None:
        self._read, self._write = read, write
        self._rest, self._n_sent, self._session = b"", 0, {}
        self.problems: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """Show a file and wait until it is loaded."""
        self._call("Page.navigate", url=path.resolve().as_uri())
        self._wait(lambda message: message.get("method") == "Page.loadEventFired")

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """The size of the window in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if is_phone else 1}
        self._call("Emulation.setDeviceMetricsOverride", **size, mobile=is_phone)

    def emulate(self, media: str = "", scheme: str = "light") -> None:
        """Show it as in print, or in the dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, wherever that is."""
        box = self.evaluate(
            f"(e => (e.scrollIntoView({{block: 'center', behavior: 'instant'}}),"
            " e.getBoundingClientRect().toJSON()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, **at, button="left", clickCount=1)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What is seen, or the whole page, as PNG."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters):
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": parameters, **self._session}
        self._write.write(json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda message: message.get("id") == self._n_sent)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _wait(self, is_wanted):
        while True:
            message = self._next()
            self._note(message)
            if is_wanted(message):
                return message

    def _next(self):
        while b"\0" not in self._rest:
            received = self._read.read(1 << 16)
            assert received, "Chromium has ended"
            self._rest += received
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _note(self, message) -> None:
        """Keep what the console shows in red or yellow, and every address that is asked for."""
        what, about = message.get("method"), message.get("params", {})
        if what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.problems.append(about["entry"]["text"])
        elif what == "Runtime.exceptionThrown":
            self.problems.append(str(about["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.problems.append(str(about["args"]))
        elif what == "Network.requestWillBeSent":
            address = about["request"]["url"]
            if not address.startswith(("file:", "data:")):
                self.problems.append(f"asks for {address}")


@contextmanager
def chromium(program: str):
    """A page of a fresh browser; the browser ends with the block."""
    to_read, from_here = os.pipe()  # what it reads on its descriptor 3
    from_it, to_write = os.pipe()  # what it writes on 4
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", LAUNCHER, str(to_read), str(to_write)]
        browser = subprocess.Popen(
            [*command, program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        with FileIO(from_it, "r") as read, FileIO(from_here, "w") as write:
            try:
                yield Page(read, write)
            finally:
                browser.terminate()
                browser.wait(10)
