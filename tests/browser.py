"""Headless Chromium, driven over its DevTools protocol."""

import base64
import itertools
import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

from tests.helpers import PATIENCE


class Browser:
    """One tab of a headless Chromium, and the errors in it."""

    def __init__(self, executable, profile):
        flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        flags += ["--disable-component-update", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium's sandbox does not start for root
        self.process = subprocess.Popen([executable, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not (port_file.is_file() and port_file.read_text().count("\n")):
            assert time.monotonic() < end, f"{executable} does not start"
            time.sleep(0.1)
        import websocket  # not for tests without pages

        port = port_file.read_text().split()[0]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
        with urllib.request.urlopen(request) as response:
            address = json.load(response)["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.ids = itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def send(self, method, **parameters):
        """Send a command and return the answer. Events that arrive meanwhile are kept."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(message)
        return message

    def call(self, method, **parameters):
        """Send a command and return its result."""
        message = self.send(method, **parameters)
        assert "error" not in message, message
        return message["result"]

    def resize(self, width):
        """Set the width of the window; a narrow one is a phone's."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 800
        )

    def open(self, path, *, width):
        """Load a file and every image on it, also those that would wait for scrolling."""
        self.events.clear()
        self.resize(width)
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))
        self.run(
            """document.querySelectorAll("article").forEach(card => { card.style.contentVisibility = "visible" })
            Promise.all([...document.images].map(image => {
                image.loading = "eager"
                return image.complete || new Promise(done => { image.onload = image.onerror = done })
            }))"""
        )

    def run(self, script):
        """Return the value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, x, y, *, drag_to=None):
        """Press the left button at a point of the window, and release it there or elsewhere."""
        points = [("mousePressed", x, y), *([("mouseMoved", *drag_to)] if drag_to else [])]
        for kind, at_x, at_y in [*points, ("mouseReleased", *(drag_to or (x, y)))]:
            self.call("Input.dispatchMouseEvent", type=kind, x=at_x, y=at_y, button="left", buttons=1, clickCount=1)

    def press(self, *keys):
        """Press keys, by their JavaScript names."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27}
            code = codes.get(key, 0)
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def wait(self, script):
        """Wait until a JavaScript expression is true, also while another page loads, when it has no answer."""
        end, answer = time.monotonic() + PATIENCE, {}
        while not answer.get("result", {}).get("result", {}).get("value"):
            assert time.monotonic() < end, f"never true: {script}: {answer}"
            time.sleep(0.05)
            answer = self.send("Runtime.evaluate", expression=f"Boolean({script})")

    def screenshot(self, path):
        """Save a screenshot of the window."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def problems(self):
        """Return the errors and warnings of the console, and requests for anything but files."""
        found = [
            event for event in self.events
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        ]  # fmt: skip
        requests = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in requests]
        return found + [url for url in urls if not url.startswith(("file:", "data:"))]

    def close(self):
        self.call("Browser.close")
        self.socket.close()
        self.process.wait(timeout=PATIENCE)


def check_page(browser, path, *, width, images):
    """Check a page: its images load, the console is empty, nothing is wider than the window or too small."""
    browser.open(path, width=width)
    shown = "[...document.images].filter(image => image.hasAttribute('src'))"
    assert browser.run(f"{shown}.length") == images
    assert browser.run(f"{shown}.filter(image => !image.naturalWidth).map(image => image.src)") == []
    assert browser.problems() == []
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.run(f"{wide}.map(e => e.outerHTML.slice(0, 200))") == []
    assert browser.run(f"Math.min(...{shown}.map(image => image.clientWidth))") >= 75
    text = "[...document.querySelectorAll('h1, h2, p, dt, dd, figcaption')]"
    assert browser.run(f"Math.min(...{text}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 12
