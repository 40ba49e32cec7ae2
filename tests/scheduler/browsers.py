"""A real Chromium without a window, driven by WebDriver's own JSON over HTTP."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "THE PAGE IS NOT TRIED: no chromium and chromedriver on the PATH"

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ENTER = "\ue007"


class Browser:
    """One window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http = http
        self._at = f"/session/{session}"

    def open(self, url: str) -> None:
        self._ask("POST", "url", {"url": url})

    def run(self, script: str) -> Any:
        """The value of a JavaScript body that returns one."""
        return self._ask("POST", "execute/sync", {"script": script, "args": []})

    def wait(self, script: str) -> None:
        """Until a script returns true; within 10 s."""
        waiting = f"""const done = arguments[0], end = Date.now() + 10000;
            (function look() {{
                if ((() => {{ {script} }})()) done(true);
                else if (Date.now() > end) done(false);
                else setTimeout(look, 20);
            }})();"""
        assert self._ask("POST", "execute/async", {"script": waiting, "args": []}), f"never true: {script}"

    def find(self, selector: str) -> str:
        found: str = self._ask("POST", "element", {"using": "css selector", "value": selector})[_ELEMENT]
        return found

    def type(self, selector: str, text: str) -> None:
        self._ask("POST", f"element/{self.find(selector)}/value", {"text": text})

    def press_enter(self, selector: str) -> None:
        """As with the keyboard alone: the element gets the focus and Enter."""
        self.type(selector, _ENTER)

    def complaints(self) -> list[str]:
        """What the browser itself has logged: refused scripts, errors, missing files."""
        return [line["message"] for line in self._ask("POST", "se/log", {"type": "browser"})]

    def _ask(self, method: str, what: str, body: dict[str, Any]) -> Any:
        answer = self._http.request(method, f"{self._at}/{what}", json=body)
        told = answer.json()["value"]
        assert answer.status_code == 200, told
        return told


@contextlib.contextmanager
def driver() -> Iterator[httpx.Client]:
    """A chromedriver on a free port."""
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = None
        while port is None:
            line = process.stdout.readline()
            assert line, "chromedriver has ended"
            port = re.search(r"started successfully on port (\d+)", line)
        with httpx.Client(base_url=f"http://127.0.0.1:{port[1]}", timeout=60) as http:
            yield http
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def browsing(http: httpx.Client, *, width: int, height: int) -> Iterator[Browser]:
    """A window of that size, as a phone's if it is narrow."""
    options: dict[str, Any] = {
        "binary": CHROMIUM,
        "args": [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={max(width, 500)},{height}",
        ],
    }
    if width < 500:
        metrics = {"width": width, "height": height, "pixelRatio": 1.0, "touch": True}
        options["mobileEmulation"] = {"deviceMetrics": metrics}
    wanted = {"browserName": "chrome", "goog:loggingPrefs": {"browser": "ALL"}, "goog:chromeOptions": options}
    made = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
    session = made["sessionId"]
    http.post(f"/session/{session}/timeouts", json={"script": 20_000})
    try:
        yield Browser(http, session)
    finally:
        http.delete(f"/session/{session}")
