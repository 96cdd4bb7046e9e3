"""The results page in a real browser."""

import itertools
import shlex

import pytest
import torch
from PIL import Image

import test as testing
import train as training
from display.attention_maps import AttentionMap, even_grid
from display.pages.page import Card
from display.pages.results import ResultsPage
from tests.browser import check_page
from tests.conftest import draw_shapes
from util.images import to_image, to_tensor

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


def make_image(seed, size=64):
    return to_tensor(draw_shapes(seed, (size, size)))


def attention(network, stage, over, cells=16):
    """Return maps with uniform attention from each query position to its own row."""
    positions = even_grid(cells, cells)
    rows = torch.eye(cells)[[row for row, _ in positions]].unsqueeze(2) * cells
    entropy = torch.full((len(positions),), 4.0)
    return AttentionMap(network, stage, over, 0.25, (cells, cells), positions, rows.expand(-1, -1, cells), entropy)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Write a results page with hostile names and attention."""
    folder = tmp_path_factory.mktemp("<b>results")
    page = ResultsPage(folder, f"{HOSTILE[0]}: A → B", notes={"run": HOSTILE[0], "weights": "w" * 200})
    for stem in HOSTILE:
        images = {label: make_image(f"{stem}{label}") for label in LABELS}
        blocks = [
            attention("G_A", "bottleneck", "real_A"),
            attention("G_B", "up1", "real_B"),
        ]
        page.add(stem, images, blocks)
    page.save()
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_results_page(browser, results, width):
    check_page(browser, results / "index.html", width=width, images=len(HOSTILE) * (6 + 2))


def test_hostile_names_are_text(browser, results):
    browser.open(results / "index.html", width=1400)
    assert browser.run("[...document.querySelectorAll('h2 a')].map(e => e.textContent)") == HOSTILE
    assert browser.run("document.querySelector('h1').textContent") == f"{HOSTILE[0]}: A → B"
    assert browser.run("document.title") == f"{HOSTILE[0]}: A → B"
    assert browser.run("document.querySelector('dd').textContent") == HOSTILE[0]
    assert browser.run("document.scripts.length") == 3
    for number in range(len(HOSTILE)):
        link = f"document.querySelectorAll('h2 a')[{number}]"
        browser.run(f"{link}.click()")
        assert browser.run(f"document.querySelector(':target') === {link}.closest('article')")


def test_hostile_names_of_files_and_run(browser, tiny_data, tmp_path, capsys):
    """Files and a run with hostile names go through both scripts."""
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
    check_page(browser, tmp_path / "runs" / run / "web" / "index.html", width=1400, images=8)
    assert browser.run("document.querySelector('h1').textContent") == f"{run} · training"
    flags = ["--model", "test", "--dataroot", str(tmp_path / "photos"), "--results_dir", str(tmp_path / "results")]
    assert testing.main([*places[:-2], *flags]) == 0
    check_page(browser, tmp_path / "results" / run / "test_latest" / "index.html", width=1400, images=2 * len(names))
    assert browser.run("[...document.querySelectorAll('h2 a')].map(e => e.textContent)") == sorted(names)
    assert browser.run("document.querySelector('h1').textContent") == f"{run}: A → B"
    assert browser.run("document.scripts.length") == 3


def test_captions_and_alternative_texts(browser, results):
    browser.open(results / "index.html", width=390)
    card = "document.querySelectorAll('article')[1]"
    assert browser.run(f"[...{card}.querySelectorAll('figcaption')].map(e => e.textContent)") == [
        "A", "A → B", "A → B → A", "attention of G_A at bottleneck",
        "B", "B → A", "B → A → B", "attention of G_B at up1",
    ]  # fmt: skip
    alternatives = browser.run(f"[...{card}.querySelectorAll('img')].map(e => e.alt)")
    assert alternatives[1] == f"{HOSTILE[1]}: A → B"
    assert len(set(alternatives)) == 8


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_names_in_the_viewer(browser, results, number):
    browser.open(results / "index.html", width=1400)
    browser.run(f"document.querySelectorAll('.view')[{number}].click()")
    browser.wait("document.querySelector('#attention-status').textContent.startsWith('Attention from this point (row')")
    assert browser.run("document.querySelector('#viewing').textContent") == HOSTILE[number]
    assert browser.run("document.querySelector('.attention img').alt") == f"{HOSTILE[number]}: A"
    assert browser.problems() == []
    assert "<script" not in "".join(path.read_text() for path in results.rglob("*.js"))


# ---- filter, order, keys, slider


def scored(browser, tmp_path, names="b10 b9 a"):
    """Open a page of images whose scores grow in test order."""
    page = ResultsPage(tmp_path, "scored")
    for number, name in enumerate(names.split(), start=1):
        scores = {"L1": 10.0 * number, "PSNR": 5.0 * number if number > 1 else float("inf"), "SSIM": 0.25 * number}
        page.add(name, {label: make_image(f"{name}{label}", 16) for label in LABELS[:3]}, scores=scores)
    page.add("without", {"real_A": make_image("without", 16)})
    page.save()
    browser.open(tmp_path / "index.html", width=1400)


def shown(browser):
    cards = "[...document.querySelectorAll('article')].filter(card => card.offsetParent)"
    return browser.run(f"{cards}.map(card => card.querySelector('h2').textContent)")


def test_scores_and_their_summary(browser, tmp_path):
    scored(browser, tmp_path)
    assert browser.run("document.querySelectorAll('.remark')[1].textContent") == (
        "L1 20.0 of 255 · PSNR 10.0 dB · SSIM 0.500"
    )
    assert browser.run("document.querySelector('dd').textContent") == (
        "L1 20.0 of 255 · PSNR inf dB · SSIM 0.500; 3 images"
    )


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("", "b10 b9 a without"),
        ("name", "a b9 b10 without"),
        ("+L1", "b10 b9 a without"),
        ("-L1", "a b9 b10 without"),
        ("-PSNR", "b10 a b9 without"),
        ("-SSIM", "a b9 b10 without"),
    ],
)
def test_order(browser, tmp_path, order, expected):
    scored(browser, tmp_path)
    browser.run(f"toolbar.order.value = '{order}'; toolbar.order.onchange()")
    assert shown(browser) == expected.split()


@pytest.mark.parametrize(
    ("words", "expected"), [("B", "b10 b9"), ("ssim>0.5", "b9 a"), ("L1<=20 9", "b9"), ("nothing", ""), ("a>1", "")]
)
def test_filter(browser, tmp_path, words, expected):
    scored(browser, tmp_path)
    browser.press("/", *words)
    assert browser.run("toolbar.filter.value") == words
    assert shown(browser) == expected.split()
    assert browser.run("document.querySelector('.count').textContent") == f"{len(expected.split())} of 4 shown"


def test_keys(browser, tmp_path):
    scored(browser, tmp_path)
    browser.press("j", "j", "j", "k", "Enter")
    assert browser.run("viewer.open && document.querySelector('#viewing').textContent") == "b9"
    browser.press("n")
    assert browser.run("document.querySelector('#viewing').textContent") == "a"
    browser.press("p", "p", "p")
    assert browser.run("document.querySelector('#viewing').textContent") == "b10"
    browser.press("Escape")
    assert browser.run("viewer.open") is False
    assert browser.problems() == []


def test_the_ground_truth_stands_beside_the_translation(browser, tmp_path):
    page = ResultsPage(tmp_path, "pairs")
    page.add("0", {label: make_image(label) for label in ("real_A", "fake_B_rgb", "real_B_rgb")})
    page.save()
    check_page(browser, tmp_path / "index.html", width=1400, images=3)
    captions = "[...document.querySelectorAll('.strip:only-child figcaption')].map(e => e.textContent)"
    assert browser.run(captions) == ["A", "A → B, in color", "B, in color"]


@pytest.mark.parametrize("width", WIDTHS)
def test_slider_between_before_and_after(browser, tmp_path, width):
    scored(browser, tmp_path)
    browser.open(tmp_path / "index.html", width=width)
    browser.run("document.querySelector('[data-label=rec_A] img').click()")
    browser.wait("document.querySelector('.compare .after').naturalWidth")
    sources = "[...document.querySelectorAll('.compare img')].map(image => image.src.split('/').pop())"
    assert browser.run(sources) == ["b10_rec_A.png", "b10_real_A.png"]
    box = "document.querySelector('.compare .stage').getBoundingClientRect()"
    left, top, side = browser.run(f"(box => [box.left, box.top, box.width])({box})")
    divider = "document.querySelector('.divider').getBoundingClientRect()"
    middle = f"(({divider}.left + {divider}.right) / 2 - {left}) / {side}"
    assert browser.run(middle) == pytest.approx(0.5, abs=0.02)
    browser.click(left + side / 2, top + side / 2, drag_to=(left + side * 0.8, top + side / 2))
    assert browser.run(middle) == pytest.approx(0.8, abs=0.03)
    shown_part = browser.run("getComputedStyle(document.querySelector('.before')).clipPath")
    browser.press(*["ArrowLeft"] * 8)
    assert browser.run(middle) == pytest.approx(0.76, abs=0.03)
    assert browser.run("getComputedStyle(document.querySelector('.before')).clipPath") != shown_part
    browser.run("document.querySelector('[name=after]').value = 'fake_B'; showSide('after')")
    assert browser.run(sources)[0] == "b10_fake_B.png"
    assert browser.run("viewer.scrollWidth <= viewer.clientWidth && document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems() == []


def test_a_page_of_a_thousand_images_loads_only_those_near_the_window(browser, tmp_path):
    page = ResultsPage(tmp_path, "many")
    page.add("0000", {label: make_image(label, 16) for label in LABELS}, scores={"L1": 0})
    (card,) = page.cards
    for number in range(1, 1000):
        page.cards.append(Card(f"{number:04}", scores={"L1": number}))
        for figure in card.rows()[0] + card.rows()[1]:
            path = figure.path.replace("0000", f"{number:04}")
            (tmp_path / path).hardlink_to(tmp_path / figure.path)
            page.cards[-1].add(figure.label, path, page.names)
    page.save()
    browser.resize(1400)
    browser.call("Page.navigate", url=(tmp_path / "index.html").as_uri())
    browser.wait("document.title === 'many' && document.readyState === 'complete'")
    browser.wait("document.querySelector('article img').naturalWidth === 16")
    assert browser.run("document.querySelectorAll('article img').length") == 6000
    assert 6 <= browser.run("[...document.images].filter(image => image.naturalWidth).length") < 1000
    assert browser.run("getComputedStyle(document.querySelector('article')).contentVisibility") == "auto"
    browser.run("toolbar.filter.value = 'L1>=990'; filter(); toolbar.order.value = '-L1'; order()")
    assert shown(browser) == [f"{number:04}" for number in range(999, 989, -1)]


def test_results_hold_the_images_they_were_given(tmp_path):
    page = ResultsPage(tmp_path, "one direction")
    given = {"real": make_image("in"), "fake": make_image("out")}
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
        ResultsPage(tmp_path, "title").add(stem, {"real": make_image("in")})
