"""The page of a run in training, in a real browser."""

import numpy as np
import pytest

from display.event_log import EventLog
from display.events import End, Health, Images, Losses, Metrics, Progress, Start
from display.history import History
from display.pages.charts import BUCKETS, limits, summarize
from display.pages.training import PageSink
from tests.browser import check_page
from tests.test_pages import HOSTILE, LABELS, WIDTHS, attention, make_image

SIZE = 64  # images an epoch


def at(epoch, epochs=4, epoch_images=SIZE):
    images = SIZE * (epoch - 1) + epoch_images
    return Progress(
        step=images, epoch=epoch, epochs=epochs, epoch_images=epoch_images, epoch_size=SIZE, images=images,
        seconds=images * 0.5, batch_size=1,
    )  # fmt: skip


def write_events(folder, epochs, *, losses=None):
    """Write a log with two events of losses per epoch."""
    log = EventLog(folder)
    for epoch in range(1, epochs + 1):
        for count in (SIZE // 2, SIZE):
            position = at(epoch, epoch_images=count)
            values = {"G_A": 1 / position.images, "G_B": 2 / position.images, "lr_G": 2e-4}
            log.write(Losses.at(position, values=losses(position.images) if losses else values))


def make_sink(folder, name="run", *, options=None):
    command = f"python train.py --name '{name}' --continue_train"
    sink = PageSink(folder / "web", name, names=("A", "B"), size=256, images_freq=1, command=command)
    sink.show([Start.at(at(1, epoch_images=0), time="", resumed=False, options=options or {"lr": 0.0002})])
    return sink


def end_epoch(sink, epoch, images, maps=()):
    """Write the images of the end of an epoch and show them."""
    log = EventLog(sink.folder.parent)
    files = log.save_images(at(epoch), images)
    event = Images.at(at(epoch), files=files, attention=log.save_attention(at(epoch), maps))
    log.write(event)
    sink.show([event])


def make_images(epoch, labels=LABELS, size=128):
    return {label: make_image(f"{epoch}{label}", size)[None] for label in labels}


def set_epoch(browser, index):
    browser.run(f"timeline.value = {index}; timeline.oninput()")


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_a_run(browser, tmp_path, width):
    write_events(tmp_path, 3)
    sink = make_sink(tmp_path, HOSTILE[4], options={"name": HOSTILE[0]})
    labels = (*LABELS, "idt_A", "idt_B")
    for epoch in (1, 2, 3):
        end_epoch(sink, epoch, make_images(epoch, labels))
    path = tmp_path / "web" / "index.html"
    check_page(browser, path, width=width, images=8)
    assert browser.run("document.querySelector('h1').textContent") == f"{HOSTILE[4]} · training"
    assert browser.run("document.querySelector('.count').textContent") == "epoch 3 of 4"
    assert browser.run("document.querySelector('progress').value") == 0.75
    assert browser.run("document.querySelector('code').textContent").startswith(f"python train.py --name '{HOSTILE[4]}")
    assert browser.run("document.querySelector('details dd').textContent") == HOSTILE[0]
    terms = browser.run(
        "[...document.querySelector('.notes').children].map(e => [...e.children].map(e => e.innerText))"
    )
    assert dict(terms) | {"updated": ""} == {
        "run": HOSTILE[4], "images seen": "192", "time so far": "01:36", "time left": "00:32", "updated": "",
    }  # fmt: skip
    assert browser.run("[...document.querySelectorAll('article figcaption')].map(e => e.textContent)") == [
        "A", "A → B", "A → B → A", "A → A", "B", "B → A", "B → A → B", "B → B",
    ]  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_findings_stand_at_the_top_until_they_are_over(browser, tmp_path, width):
    write_events(tmp_path, 3)
    sink = make_sink(tmp_path)
    end_epoch(sink, 1, make_images(1))
    found = {"subject": "G_A", "sentence": HOSTILE[0], "advice": "Try --lr_D 0.0001.", "figure": 0.5}
    for epoch, check, over in ((1, "flat output", False), (2, "mode collapse", False), (3, "mode collapse", True)):
        EventLog(tmp_path).write(Health.at(at(epoch), check=check, over=over, **found))
    end_epoch(sink, 3, make_images(3))
    check_page(browser, tmp_path / "web" / "index.html", width=width, images=6)
    texts = browser.run("[...document.querySelectorAll('.health p > *')].map(e => e.textContent)")
    assert texts == ["flat output", f"{HOSTILE[0]} Try --lr_D 0.0001.", "since epoch 1, image 64"]
    sizes = "[...document.querySelectorAll('.health *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert browser.run(f"Math.min(...{sizes})") >= 12
    assert browser.run("document.querySelector('.health').getBoundingClientRect().top") < 400


def test_timeline(browser, tmp_path):
    write_events(tmp_path, 3)
    sink = make_sink(tmp_path)
    end_epoch(sink, 1, make_images(1, LABELS[:2]))
    for epoch in (2, 3):
        end_epoch(sink, epoch, make_images(epoch), [attention("G_A", "up1", "real_A")])  # resumed with attention
    browser.open(tmp_path / "web" / "index.html", width=1400)
    sources = "[...document.querySelectorAll('article img')].map(image => image.src.split('/').pop())"
    heading = "document.querySelector('article h2').textContent"
    line = "document.querySelector('.current').getAttribute('x1') / 400"
    assert browser.run(sources) == [f"epoch003_{label}.png" for label in LABELS]
    assert browser.run(line) == 1
    set_epoch(browser, 0)
    assert browser.run(heading) == "epoch 1"
    assert browser.run(sources) == ["epoch001_real_A.png", "epoch001_fake_B.png"]
    assert browser.run(line) == pytest.approx(1 / 3)
    browser.run("document.querySelector('.view').click()")
    assert browser.run("viewer.open && attentionPane.hidden")  # no attention yet
    browser.press("n")
    browser.wait("document.querySelector('#attention-status').textContent.startsWith('Attention from')")
    assert browser.run("document.querySelector('#viewing').textContent") == "epoch 2"
    browser.press("Escape")
    browser.run("timeline.focus()")
    browser.press("ArrowRight")
    assert browser.run(f"[{heading}, timeline.getAttribute('aria-valuetext')]") == ["epoch 3", "epoch 3"]
    assert browser.run(
        "[...document.querySelectorAll('article img')].every(image => image.alt.startsWith('epoch 3: '))"
    )
    assert browser.run(f"document.querySelector('.play').click(), {heading}") == "epoch 1"
    browser.wait(f"{heading} === 'epoch 3' && document.querySelector('.play').textContent === 'Play'")
    assert browser.problems() == []


def test_refresh_keeps_the_position(browser, tmp_path):
    write_events(tmp_path, 2)
    sink = make_sink(tmp_path, options={f"flag{number}": number for number in range(400)})
    for epoch in (1, 2):
        end_epoch(sink, epoch, make_images(epoch))
    path = tmp_path / "web" / "index.html"
    browser.open(path, width=1400)
    browser.run("document.querySelector('details').open = true; scrollTo(0, 700)")
    set_epoch(browser, 0)
    end_epoch(sink, 3, make_images(3))
    browser.run("document.body.dataset.old = 'yes'; setTimeout(refresh)")
    browser.wait("document.readyState === 'complete' && !document.body.dataset.old")
    assert browser.run("document.querySelector('.count').textContent") == "epoch 3 of 4"
    assert browser.run("document.querySelector('article h2').textContent") == "epoch 1"
    assert browser.run("scrollY") == pytest.approx(700, abs=2)
    set_epoch(browser, 2)
    end_epoch(sink, 4, make_images(4))
    browser.run("document.body.dataset.old = 'yes'; setTimeout(refresh)")
    browser.wait("document.readyState === 'complete' && !document.body.dataset.old")
    # the timeline was at its end and stays there
    assert browser.run("document.querySelector('article h2').textContent") == "epoch 4"
    assert browser.run("data.refresh") == 30
    sink.show([End.at(at(4), reason="finished")])
    browser.open(path, width=1400)
    assert browser.run("data.refresh") == 0
    assert "refresh" not in path.read_text().partition("<style>")[0]


def test_thousands_of_epochs(browser, tmp_path):
    write_events(tmp_path, 5000)
    sink = make_sink(tmp_path)
    end_epoch(sink, 1, make_images(1, size=16))
    for path in list((tmp_path / "web" / "images").iterdir()):
        for epoch in range(2, 5001):
            path.with_name(path.name.replace("epoch001", f"epoch{epoch:03d}")).hardlink_to(path)
    sink.write(at(5000, epochs=5000), running=True)
    page = tmp_path / "web" / "index.html"
    assert page.stat().st_size < 400_000
    browser.open(page, width=1400)
    assert browser.run("document.images.length") < 20
    set_epoch(browser, 4321)
    assert browser.run("document.querySelector('article img').src").endswith("/epoch4322_real_A.png")
    browser.wait("document.querySelector('article img').naturalWidth === 16")


def test_a_page_without_losses_has_no_curves(browser, tmp_path):
    end_epoch(make_sink(tmp_path), 1, make_images(1))
    browser.open(tmp_path / "web" / "index.html", width=390)
    assert browser.run("document.querySelector('.charts')") is None
    assert browser.run("document.querySelector('article h2').textContent") == "epoch 1"
    assert browser.problems() == []


# ---- curves


def test_curves_of_the_page(browser, tmp_path):
    losses = {"G_A": 0.5, "G_B": 1.5, "gamma_G_A_block1": 0.0, HOSTILE[0]: 1.0, "images_per_second": 12.5}
    write_events(tmp_path, 4, losses=lambda images: losses | {"D_A": float("nan"), "G_A": images / SIZE})
    end_epoch(make_sink(tmp_path), 4, make_images(4))
    browser.open(tmp_path / "web" / "index.html", width=1400)
    charts = browser.run("[...document.querySelectorAll('.chart figcaption')].map(e => e.innerText.split('\\n'))")
    assert [text.replace("\xa0", " ") for chart in charts for text in chart] == [
        "G_A 4", "G_B 1.5", "gamma_G_A_block1 0", f"{HOSTILE[0]} 1", "images_per_second 12.5", "D_A nan",
    ]  # fmt: skip
    points = browser.run("document.querySelector('.line').getAttribute('points')")
    xy = np.array([[float(number) for number in point.split(",")] for point in points.split()])
    assert xy[:, 0] == pytest.approx(np.arange(1, 9) / 8 * 400, abs=0.1)
    low, high = (float(browser.run(f"document.querySelector('.{name}').textContent")) for name in ("low", "high"))
    assert high - xy[:, 1] / 120 * (high - low) == pytest.approx(np.arange(1, 9) / 2, abs=0.03)
    assert browser.problems() == []


def test_the_best_point_of_a_metric_is_marked(browser, tmp_path):
    write_events(tmp_path, 4)
    sink = make_sink(tmp_path)
    end_epoch(sink, 4, make_images(4))
    for epoch, kid, ssim in ((1, 30.0, 0.1), (2, 12.5, 0.4), (4, 20.0, float("nan"))):
        event = Metrics.at(at(epoch), values={"kid": kid, "ssim": ssim}, note="features; 5 images", best="kid")
        EventLog(tmp_path).write(event)
        sink.show([event])
    browser.open(tmp_path / "web" / "index.html", width=1400)
    charts = browser.run("[...document.querySelectorAll('.chart figcaption')].map(e => e.innerText)")
    assert [text.replace("\xa0", " ") for text in charts[:2]] == [
        "KID x1000 20, best 12.5 at 128 images", "SSIM nan, best 0.4 at 128 images",
    ]  # fmt: skip
    dots = browser.run("[...document.querySelectorAll('.dot')].map(e => e.getAttribute('points'))")
    places = [[float(number) for number in dot.replace(" ", ",").split(",")] for dot in dots]
    assert len(places) == 2 and all(place[:2] == place[2:] for place in places)
    assert all(place[0] == 200 for place in places), "halfway"
    assert places[0][1] > 100 and places[1][1] < 20, "low KID, high SSIM"
    assert "features; 5 images" in browser.run("document.querySelector('.notes').innerText")
    assert browser.problems() == []


def test_summary_of_a_curve():
    x = np.arange(1, 100_001)
    mean_x, mean, least, most = summarize(x, np.sin(x), 100_000)
    assert len(mean_x) == BUCKETS
    assert (least <= mean).all() and (mean <= most).all()
    assert (np.diff(mean_x) > 0).all()
    assert least.min() == np.sin(x).min() and most.max() == np.sin(x).max()
    assert [list(column) for column in summarize([1, 2, 3], [5, float("nan"), 7], 3)] == [
        [1, 3],
        [5, 7],
        [5, 7],
        [5, 7],
    ]


def test_limits_leave_out_the_start():
    mean = np.concatenate([[1000], np.linspace(1, 2, 199)])
    low, high = limits([(mean, mean, mean, mean)])
    assert 0.8 < low < 1 and 2 < high < 2.3
    assert limits([summarize([1], [3], 1)]) == (pytest.approx(2.7), pytest.approx(3.3))
    assert limits([summarize([1], [float("nan")], 1)]) == (0, 1)


def test_history_reads_new_events(tmp_path):
    history = History(tmp_path / "events.jsonl")
    history.read()
    assert history.curves == {}
    write_events(tmp_path, 2)
    history.read()
    history.read()
    assert history.curves["G_A"][0] == [32, 64, 96, 128]
    assert history.ends == {1: 64, 2: 128}
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "losses", "epo')  # still being written
    history.read()
    assert history.ends == {1: 64, 2: 128}


def test_attention_of_an_earlier_run_is_gone(tmp_path):
    sink = make_sink(tmp_path)
    end_epoch(sink, 1, make_images(1, size=16), [attention("G_A", "up1", "real_A")])
    assert '"epochs":[[1,0,1]]' in (tmp_path / "web" / "index.html").read_text()
    end_epoch(make_sink(tmp_path), 1, make_images(1, size=16))
    assert '"epochs":[[1,0,0]]' in (tmp_path / "web" / "index.html").read_text()
