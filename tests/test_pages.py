"""The pages, as a real browser shows them: headless Chromium, spoken to over its DevTools protocol."""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import time
import urllib.request
from contextlib import closing

import pytest
import torch
import websocket
from PIL import Image

import test as testing
import train as training
from tests.conftest import draw_shapes
from util.attention import AttentionMap, heat_colours, overlay, query_points
from util.display import Progress
from util.display.event_log import EventLog
from util.display.events import Images
from util.display.html import PageSink
from util.html import ResultsPage
from util.images import to_image

LABELS = ("real_A", "fake_B", "rec_A", "real_B", "fake_A", "rec_B")
HOSTILE = [
    "<img src=x onerror=document.title=1>",
    "\"quotes' & ampersands&lt;",
    "100%25#1?x=y",
    "folder/with space/über→",
    "</style></title><script>document.title = 2",
    "two\nlines",
    "x" * 120,
]
WIDTHS = (390, 1400)


class Browser:
    """One tab of a headless Chromium, and what it complains about."""

    def __init__(self, executable, profile):
        flags = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        flags += ["--disable-component-update", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium's sandbox does not start for root
        self.process = subprocess.Popen([executable, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = profile / "DevToolsActivePort"
        for _ in range(600):
            if port_file.is_file() and port_file.read_text().count("\n"):
                break
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
        with urllib.request.urlopen(request) as response:
            address = json.load(response)["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.ids = itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command; returns its result. Events that come meanwhile are kept."""
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, path, *, width):
        """Load a file and every picture on it, also those that would wait for scrolling."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 800
        )
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
        """The value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def complaints(self):
        """What the console would show in red or yellow, and requests for anything but files."""
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
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None and os.environ.get("CI") != "true":
        pytest.skip("needs Chromium: apt-get install chromium")
    assert executable, "Chromium is missing: apt-get install chromium"
    with closing(Browser(executable, tmp_path_factory.mktemp("chromium"))) as browser:
        yield browser


def picture(seed, size=64):
    image = draw_shapes(seed, (size, size))
    return torch.tensor(list(image.tobytes())).view(size, size, 3).permute(2, 0, 1) / 127.5 - 1


def attention(network, stage, over, cells=16):
    """Four points that look evenly at their own row."""
    points = query_points(cells, cells)
    rows = torch.eye(cells)[[row for row, _ in points]].unsqueeze(2) / cells
    return AttentionMap(network, stage, over, points, rows.expand(-1, -1, cells))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results page of hostile names, with attention."""
    folder = tmp_path_factory.mktemp("<b>results")
    page = ResultsPage(folder, f"{HOSTILE[0]}: A → B", notes={"run": HOSTILE[0], "weights": "w" * 200})
    for stem in HOSTILE:
        images = {label: picture(f"{stem}{label}") for label in LABELS}
        blocks = [
            attention("G_A", "bottleneck", "real_A"),
            attention("G_B", "up1", "real_B"),
        ]
        page.add(stem, images, blocks)
    page.save()
    return folder


def check_page(browser, path, *, width, pictures):
    """No picture missing or broken, nothing on the console, nothing to scroll sideways for, nothing too small."""
    browser.open(path, width=width)
    assert browser.run("document.images.length") == pictures
    assert browser.run("[...document.images].filter(image => !image.naturalWidth).map(image => image.src)") == []
    assert browser.complaints() == []
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert browser.run(f"{wide}.map(e => e.outerHTML.slice(0, 200))") == []
    assert browser.run("Math.min(...[...document.images].map(image => image.clientWidth))") >= 75
    text = "[...document.querySelectorAll('h1, h2, p, dt, dd, figcaption')]"
    assert browser.run(f"Math.min(...{text}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 12


@pytest.mark.parametrize("width", WIDTHS)
def test_results_page(browser, results, width):
    check_page(browser, results / "index.html", width=width, pictures=len(HOSTILE) * (6 + 2 * 4))


def test_hostile_names_are_text(browser, results):
    browser.open(results / "index.html", width=1400)
    assert browser.run("[...document.querySelectorAll('h2 a')].map(e => e.textContent)") == HOSTILE
    assert browser.run("document.querySelector('h1').textContent") == f"{HOSTILE[0]}: A → B"
    assert browser.run("document.title") == f"{HOSTILE[0]}: A → B"
    assert browser.run("document.querySelector('dd').textContent") == HOSTILE[0]
    assert browser.run("document.scripts.length") == 0
    for number in range(len(HOSTILE)):
        link = f"document.querySelectorAll('h2 a')[{number}]"
        browser.run(f"{link}.click()")
        assert browser.run(f"document.querySelector(':target') === {link}.closest('article')")


def test_hostile_names_of_files_and_run(browser, tiny_data, tmp_path, capsys):
    """From files on disk through both scripts, with a run named as badly."""
    run = "<i>&amp; 50% #1 'über' \"q\""
    stems = ["<script>document.title=1<", "#", "%41", "a b", "ü→", "'\"", "two\nlines"]
    names = [f"{stem}/{stem}" for stem in stems]
    for name in names:
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes((tiny_data / "testA" / "0.png").read_bytes())
    places = ["--checkpoints_dir", str(tmp_path / "runs"), "--name", run, "--device", "cpu", "--display_id", "0"]
    small = ["--netG", "resnet_6blocks", "--ngf", "8", "--ndf", "8", "--crop_size", "32", "--load_size", "32"]
    short = ["--dataroot", str(tiny_data), "--max_dataset_size", "1", "--n_epochs", "1", "--n_epochs_decay", "0"]
    assert training.main([*places, *small, *short]) == 0
    assert f"python test.py --name {shlex.quote(run)}" in capsys.readouterr().out
    check_page(browser, tmp_path / "runs" / run / "web" / "index.html", width=1400, pictures=8)
    assert browser.run("document.querySelector('h1').textContent") == f"{run} · training"
    flags = ["--model", "test", "--dataroot", str(tmp_path / "photos"), "--results_dir", str(tmp_path / "results")]
    assert testing.main([*places[:-2], *flags]) == 0
    check_page(browser, tmp_path / "results" / run / "test_latest" / "index.html", width=1400, pictures=2 * len(names))
    assert browser.run("[...document.querySelectorAll('h2 a')].map(e => e.textContent)") == sorted(names)
    assert browser.run("document.querySelector('h1').textContent") == f"{run}: A → B"
    assert browser.run("document.scripts.length") == 0


def test_captions_and_alternative_texts(browser, results):
    browser.open(results / "index.html", width=390)
    card = "document.querySelectorAll('article')[1]"
    assert browser.run(f"[...{card}.querySelectorAll('figcaption')].map(e => e.textContent)") == [
        "A", "A → B", "A → B → A", "B", "B → A", "B → A → B",
    ]  # fmt: skip
    alternatives = browser.run(f"[...{card}.querySelectorAll('img')].map(e => e.alt)")
    assert alternatives[1] == f"{HOSTILE[1]}: A → B"
    assert len(set(alternatives)) == 14
    assert browser.run(f"{card}.querySelector('.attention p').textContent").startswith("G_A, bottleneck: ")


@pytest.mark.parametrize("width", WIDTHS)
def test_training_page(browser, tmp_path, width):
    sink = PageSink(tmp_path / "web", HOSTILE[4], names=("B", "A"), size=256, images_freq=1)
    labels = (*LABELS, "idt_A", "idt_B")
    for epoch in (1, 2, 3):
        at = Progress(
            step=9 * epoch, epoch=epoch, epochs=200, epoch_images=9, epoch_size=9, images=9 * epoch, batch_size=1,
            seconds=9.0 * epoch,
        )  # fmt: skip
        pictures = {label: picture(f"{epoch}{label}", size=128)[None] for label in labels}
        sink.show([Images.at(at, pictures=EventLog(tmp_path).save_pictures(at, pictures))])
    check_page(browser, tmp_path / "web/index.html", width=width, pictures=24)
    assert browser.run("[...document.querySelectorAll('h2 a')].map(e => e.textContent)") == [
        "epoch 3",
        "epoch 2",
        "epoch 1",
    ]
    assert browser.run("[...document.querySelectorAll('article:first-child figcaption')].map(e => e.textContent)") == [
        "B", "B → A", "B → A → B", "B → B", "A", "A → B", "A → B → A", "A → A",
    ]  # fmt: skip


def test_results_hold_the_pictures_they_were_given(tmp_path):
    page = ResultsPage(tmp_path, "one direction")
    given = {"real": picture("in"), "fake": picture("out")}
    page.add("a/1", given)
    page.add("b/1", given)
    page.save()
    for stem, label in itertools.product(("a/1", "b/1"), given):
        with Image.open(tmp_path / f"images/{stem}_{label}.png") as image:
            assert image.tobytes() == to_image(given[label]).tobytes()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["index.html"]


@pytest.mark.parametrize("stem", ["../1", "a/../../1", "/1"])
def test_results_stay_in_their_folder(tmp_path, stem):
    with pytest.raises(ValueError, match="leads out of"):
        ResultsPage(tmp_path, "title").add(stem, {"real": picture("in")})


# ---- attention


def test_query_points_are_spread_and_inside():
    assert query_points(16, 32) == [(4, 8), (4, 24), (12, 8), (12, 24)]
    assert query_points(1, 2) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (24, 40), (256, 192)])
def test_overlay_is_bright_where_the_weight_is(height, width):
    weights = torch.zeros(8, 8)
    weights[1, 6] = 0.02  # small, yet the largest
    image = overlay(torch.zeros(3, height, width), weights, (6, 1))
    assert min(image.size) >= 128
    assert image.width * height == image.height * width

    def colour(row, column):
        return image.getpixel((int((column + 0.5) / 8 * image.width), int((row + 0.5) / 8 * image.height)))

    bright, dark = colour(1, 6), colour(4, 4)
    assert sum(bright) > sum(dark) + 200
    assert len(set(dark)) == 1  # grey: the picture shines through
    unit = min(image.size) / 64
    x, y = 1.5 / 8 * image.width, 6.5 / 8 * image.height
    red, _, blue = image.getpixel((int(x + 2.7 * unit), int(y)))
    assert blue > 200 > 100 > red  # the ring is around (6, 1)


def test_overlay_takes_grey_pictures_and_empty_maps():
    assert overlay(torch.zeros(1, 64, 64), torch.zeros(4, 4), (1, 1)).mode == "RGB"


def test_heat_colours_grow_brighter_evenly():
    colours = heat_colours(torch.linspace(0, 1, 50)[None])
    brightness = (colours[:, 0] * torch.tensor([[0.30], [0.59], [0.11]])).sum(0)
    assert (brightness.diff() > 0).all()
