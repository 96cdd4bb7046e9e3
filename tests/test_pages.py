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
from util.attention import AttentionMap, even_grid, heat_colours, overlay
from util.display import Progress
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


def picture(seed, size=64):
    image = draw_shapes(seed, (size, size))
    return torch.tensor(list(image.tobytes())).view(size, size, 3).permute(2, 0, 1) / 127.5 - 1


def attention(network, stage, over, cells=16):
    """Four points that look evenly at their own row."""
    points = even_grid(cells, cells)
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
    sink = PageSink(tmp_path, HOSTILE[4], names=("B", "A"), size=256, images_freq=1)
    labels = (*LABELS, "idt_A", "idt_B")
    for epoch in (1, 2, 3):
        at = Progress(
            epoch=epoch, epochs=200, epoch_images=9, epoch_size=9, total_images=9 * epoch, batch_size=1,
            step_seconds=0.1, data_seconds=0,
        )  # fmt: skip
        sink.end_epoch(at, {label: picture(f"{epoch}{label}", size=128)[None] for label in labels})
    check_page(browser, tmp_path / "index.html", width=width, pictures=24)
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


def test_even_grid_are_spread_and_inside():
    assert even_grid(16, 32) == [(4, 8), (4, 24), (12, 8), (12, 24)]
    assert even_grid(1, 2) == [(0, 0), (0, 1)]


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
