"""Losses and images from the training loop in the log, the console, loss_log.txt and the page."""

import importlib
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import termios
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

import test as testing
import train as training
from display.attention_maps import AttentionMap
from display.background import Background
from display.create import create_display, is_installed
from display.display import Display
from display.event_log import EventLog, LogReader
from display.events import End, Images, Losses, Metrics, Progress, Start, charts, from_json, to_json
from display.pages.training import PageSink
from display.sink import Sink
from display.sinks.console import ConsoleSink
from display.sinks.loss_log import LossLogSink
from options.train_options import TrainOptions
from tests.helpers import TINY

LABELS = ("real_A", "fake_B", "rec_A", "real_B", "fake_A", "rec_B")


def progress(epoch=1, epoch_images=1, *, epoch_size=10, batch_size=1):
    total = (epoch - 1) * epoch_size + epoch_images
    return Progress(
        step=total, epoch=epoch, epochs=4, epoch_images=epoch_images, epoch_size=epoch_size, images=total,
        seconds=total / 2, batch_size=batch_size, step_seconds=0.16, data_seconds=0.001,
    )  # fmt: skip


def losses():
    return {"D_A": torch.tensor(0.2444), "G_A": torch.tensor(0.576)}


def images(value=0.0, size=16):
    return {label: torch.full((1, 3, size, size), value) for label in LABELS}


def learning_rates():
    return {"lr_G": 0.0002, "lr_D": 0.0001}


def options(tmp_path, *flags):
    return TrainOptions().parse(["--checkpoints_dir", str(tmp_path), "--name", "run", *flags])


def display(run_dir, *sinks, losses_freq=1, at=None):
    """Start the display of a new run, or of one that resumes at a position."""
    run_dir.mkdir(exist_ok=True)
    shown = Display(EventLog(run_dir), sinks, at=at or progress(1, 0), losses_freq=losses_freq)
    shown.start({"name": "run"}, resumed=at is not None)
    return shown


def train(display, *, epochs, batch_size=1, epoch_size=10, pause=0.0):
    """Update a display as train.py does."""
    for epoch in epochs:
        for start in range(0, epoch_size, batch_size):
            size = min(batch_size, epoch_size - start)
            at = progress(epoch, start + size, epoch_size=epoch_size, batch_size=size)
            display.update(at, losses(), images, learning_rates)
            time.sleep(pause)
    display.close("finished")


def events(run_dir, kind=None):
    """Return the events of the log, all or those of one class."""
    return [event for event in LogReader(run_dir / "events.jsonl").read() if kind is None or isinstance(event, kind)]


# ---- frequencies


@pytest.mark.parametrize(
    ("frequency", "before", "after", "expected"),
    [
        (100, 99, 100, True),
        (100, 100, 101, False),
        (100, 96, 102, True),
        (100, 0, 99, False),
        (100, 0, 0, False),
        (3, 0, 16, True),
        (0, 0, 100, False),
    ],
)
def test_crossed(frequency, before, after, expected):
    assert progress(1, after, epoch_size=1000, batch_size=after - before).crossed(frequency) is expected


@pytest.mark.parametrize(("batch_size", "at"), [(1, [4, 8]), (3, [6, 9]), (8, [8]), (10, [10])])
def test_losses_are_shown_when_a_multiple_is_crossed(tmp_path, batch_size, at):
    log = tmp_path / "loss_log.txt"
    train(display(tmp_path, LossLogSink(log), losses_freq=4), epochs=[1], batch_size=batch_size)
    assert [int(count) for count in re.findall(r"iters: (\d+)", log.read_text())] == at
    assert [event.images for event in events(tmp_path, Losses)] == at


def test_losses_stay_on_the_device_until_they_are_shown(tmp_path):
    shown = display(tmp_path, losses_freq=2)
    shown.update(progress(1, 1), {"G_A": object()}, dict, dict)  # an object that fails when it is read
    with pytest.raises(AttributeError):
        shown.update(progress(1, 2), {"G_A": object()}, dict, dict)


def test_images_are_made_only_for_sinks_that_show_them(tmp_path):
    train(display(tmp_path, Sink()), epochs=[1])
    assert not (tmp_path / "web").exists()
    showing = Sink()
    showing.images_freq = 4
    train(display(tmp_path, Sink(), showing), epochs=[1])
    assert [event.images for event in events(tmp_path, Images)] == [4, 8]


def attention_maps(made):
    """Return attention maps of two generator blocks and a discriminator over `made`, with one query position each."""
    blocks = [("G_A", "block5", "real_A"), ("G_B", "up1", "real_B"), ("D_A", "layer3", "fake_B")]
    shape = len(next(iter(made.values()))), 1
    weights, entropy = torch.ones(*shape, 4, 4), torch.full(shape, 4.0)
    return [AttentionMap(net, stage, over, 0.5, (4, 4), [(1, 1)], weights, entropy) for net, stage, over in blocks]


def test_attention_of_generators_is_among_the_images(tmp_path):
    sink = Sink()
    sink.images_freq = 10
    tmp_path.joinpath("run").mkdir()
    shown = Display(EventLog(tmp_path / "run"), [sink], at=progress(1, 0), losses_freq=0, attention=attention_maps)
    shown.start({})
    train(shown, epochs=[1])
    (event,) = events(tmp_path / "run", Images)
    assert list(event.files) == [*LABELS, "attention_G_A_block5", "attention_G_B_up1"]
    assert event.attention == "web/images/epoch001_attention.js"
    expected = attention_maps(images())[0][0].figure(images()["real_A"][0])
    with Image.open(tmp_path / "run" / event.files["attention_G_A_block5"]) as figure:
        assert figure.tobytes() == expected.tobytes()


# ---- the log


def test_the_log_has_everything_in_full_precision(tmp_path):
    train(display(tmp_path, PageSink(tmp_path / "web", "run", names=("A", "B"), size=64, images_freq=0)), epochs=[1])
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["start", *["losses"] * 10, "images", "end"]
    assert lines[0]["options"] == {"name": "run"}
    assert lines[0]["resumed"] is False
    position = {"step": 3, "epoch": 1, "epoch_images": 3, "images": 3, "seconds": 1.5}
    assert position.items() <= lines[3].items()
    values = lines[3]["values"]
    assert values["G_A"] == losses()["G_A"].item()
    assert values["lr_D"] == 0.0001
    assert values["images_per_second"] == 2
    assert 10 < values["peak_memory_mb"] < 1e6
    assert lines[-2]["files"]["fake_B"] == "web/images/epoch001_fake_B.png"
    with Image.open(tmp_path / "web/images/epoch001_fake_B.png") as image:
        assert image.size == (16, 16)
    assert lines[-1]["reason"] == "finished"


def test_events_survive_the_log_and_non_finite_values_become_nan():
    at = progress(2, 3)
    metrics = Metrics.at(at, values={"kid": 1 / 3}, note="5 images", best="kid", is_best=True)
    for event in (
        End.at(at, reason="stopped"), Images.at(at, files={"a": "b"}), Losses.at(at, values={"G": 1 / 3}), metrics,
    ):  # fmt: skip
        assert from_json(to_json(event)) == event
    assert math.isnan(from_json(to_json(Metrics.at(at, values={"psnr": math.inf}, note=""))).values["psnr"])
    read = from_json(to_json(Losses.at(at, values={"G": math.nan, "D": math.inf, "E": 1.0})))
    assert math.isnan(read.values["G"])
    assert math.isnan(read.values["D"])
    assert read.values["E"] == 1
    start = from_json(to_json(Start.at(at, time="", resumed=False, options={"max_dataset_size": math.inf})))
    assert start.options == {"max_dataset_size": "inf"}


@pytest.mark.parametrize("line", ["{}", "[]", "half", '{"kind": "end"}', '{"kind": "other"}'])
def test_a_damaged_log_is_named(tmp_path, line):
    (tmp_path / "events.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"events\.jsonl is damaged: no event"):
        LogReader(tmp_path / "events.jsonl").read()


def test_a_reader_returns_new_events_and_leaves_half_a_line(tmp_path):
    log, reader = EventLog(tmp_path), LogReader(tmp_path / "events.jsonl")
    assert reader.read() == []
    first, second = (End.at(progress(1, count), reason="stopped") for count in (1, 2))
    log.write(first)
    with log.path.open("a") as file:
        file.write(to_json(second)[:20])
    assert reader.read() == [first]
    with log.path.open("a") as file:
        file.write(to_json(second)[20:] + "\n")
    assert reader.read() == [second]


def test_values_are_grouped_into_charts():
    names = ["G_A", "D_A", "gamma_G_A_block3", "lr_G", "images_per_second", "peak_memory_mb"]
    assert charts(names) == {
        "losses": ["G_A", "D_A"], "gammas": ["gamma_G_A_block3"], "learning rates": ["lr_G"],
        "images per second": ["images_per_second"], "peak memory, MB": ["peak_memory_mb"],
    }  # fmt: skip


# ---- a resumed run


def sinks(run_dir):
    page = PageSink(run_dir / "web", "run", names=("A", "B"), size=64, images_freq=4)
    return LossLogSink(run_dir / "loss_log.txt"), page


def lines_of_losses(run_dir):
    lines = (run_dir / "loss_log.txt").read_text().splitlines()
    return [line for line in lines if line.startswith("(")]


@pytest.mark.parametrize("position", [(1, 0), (1, 3), (2, 0), (2, 5), (2, 7), (3, 0)])
def test_a_run_killed_after_its_last_checkpoint_has_no_gap_and_no_double_line(tmp_path, position):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run_dir in (whole, broken):
        run_dir.mkdir()
        train(display(run_dir, *sinks(run_dir)), epochs=[1, 2, 3])
    for name in ("events.jsonl", "loss_log.txt"):  # killed in the middle of a line
        path = broken / name
        path.write_bytes(path.read_bytes()[:-30])
    epoch, epoch_images = position
    resumed = display(broken, *sinks(broken), at=progress(epoch, epoch_images))
    later = [broken / f"web/images/epoch{number:03d}_fake_B.png" for number in (2, 3) if number > epoch]
    assert not any(path.exists() for path in later)
    for step in range((epoch - 1) * 10 + epoch_images, 30):
        resumed.update(progress(step // 10 + 1, step % 10 + 1), losses(), images, learning_rates)
    resumed.close("finished")

    def kept(run_dir):
        others = [event for event in events(run_dir) if not isinstance(event, Start | Losses)]
        return [replace(event, seconds=0) for event in others]

    assert [event.images for event in events(broken, Losses)] == list(range(1, 31))
    assert [event.values["G_A"] for event in events(broken, Losses)] == [losses()["G_A"].item()] * 30
    assert kept(broken) == kept(whole)
    assert all(before.seconds <= after.seconds for before, after in pairwise(events(broken)))
    assert [event.resumed for event in events(broken, Start)] == [False, True]
    assert lines_of_losses(broken) == lines_of_losses(whole)
    names = [{path.name for path in run_dir.glob("web/images/*")} for run_dir in (whole, broken)]
    assert names[0] == names[1]
    assert len(names[0]) == 3 * len(LABELS)


def test_truncating_deletes_nothing_but_images_of_the_run(tmp_path):
    (tmp_path / "precious.png").touch()
    EventLog(tmp_path / "run").path.parent.mkdir()
    EventLog(tmp_path / "run").write(Images.at(progress(2, 1), files={"fake_B": "../precious.png"}))
    display(tmp_path / "run", at=progress(1, 1))
    assert (tmp_path / "precious.png").exists()
    assert events(tmp_path / "run", Images) == []


def test_a_new_run_of_an_old_name_has_a_log_of_its_own(tmp_path):
    for epochs in ([1, 2], [1]):
        train(display(tmp_path, LossLogSink(tmp_path / "loss_log.txt"), losses_freq=10), epochs=epochs)
    assert [event.images for event in events(tmp_path, Losses)] == [10]
    old = LogReader(tmp_path / "events.old.jsonl").read()
    assert [event.images for event in old if isinstance(event, Losses)] == [10, 20]
    assert re.findall(r"Training Loss|epoch: \d", (tmp_path / "loss_log.txt").read_text()) == [
        "Training Loss", "epoch: 1", "epoch: 2", "Training Loss", "epoch: 1",
    ]  # fmt: skip


def test_resuming_keeps_the_lines_of_an_earlier_run(tmp_path):
    log = LossLogSink(tmp_path / "loss_log.txt")
    train(display(tmp_path, log, losses_freq=5), epochs=[1])
    display(tmp_path, log, losses_freq=5)  # a new run, killed before its first line
    train(display(tmp_path, log, losses_freq=2, at=progress(1, 0)), epochs=[1])
    display(tmp_path, log, at=progress(1, 5))
    iters = [int(count) for count in re.findall(r"iters: (\d+)", (tmp_path / "loss_log.txt").read_text())]
    assert iters == [5, 10, 2, 4]
    assert [event.images for event in events(tmp_path, Losses)] == [2, 4]


# ---- console and loss_log.txt


def test_log_has_upstreams_format(tmp_path):
    train(display(tmp_path, LossLogSink(tmp_path / "log"), losses_freq=5), epochs=[3])
    header, *lines = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(r"================ Training Loss \(.+\) ================", header)
    assert lines == [f"(epoch: 3, iters: {iters}, time: 0.160, data: 0.001) D_A: 0.244 G_A: 0.576" for iters in (5, 10)]


def test_a_console_that_is_no_terminal_gets_plain_lines(tmp_path, capfd):
    train(display(tmp_path, ConsoleSink(), LossLogSink(tmp_path / "log"), losses_freq=5), epochs=[1, 2])
    out, err = capfd.readouterr()
    assert out.splitlines() == [line for line in (tmp_path / "log").read_text().splitlines() if line[0] == "("]
    assert len(out.splitlines()) == 4
    assert out.replace("\n", "").isprintable()
    assert err == ""


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    reading_end, terminal_end = pty.openpty()
    termios.tcsetwinsize(terminal_end, (24, 160))
    with os.fdopen(terminal_end, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        shown = display(tmp_path, ConsoleSink())
        for count in (1, 2, 3):
            shown.update(progress(2, count), losses(), dict, learning_rates)
            time.sleep(0.15)  # more than tqdm waits between two drawings
        shown.close("stopped")
        monkeypatch.undo()
        drawn = os.read(reading_end, 10_000).decode().replace("\r", "\n")
    os.close(reading_end)
    assert re.search(r"epoch 2/4 .* 3/10 +\d+\.\d+ images/s, \d\d:\d\d left  D_A 0.24 G_A 0.58", drawn)


# ---- page


def test_page_of_a_resumed_run_has_every_epoch(tmp_path):
    def page(at=None):
        sink = PageSink(tmp_path / "web", "run", names=("A", "B"), size=256, images_freq=7)
        return display(tmp_path, sink, at=at)

    train(page(), epochs=[1, 2])
    train(page(at=progress(2, 10)), epochs=[3])
    html = (tmp_path / "web/index.html").read_text()
    assert '"epochs":[[1,0,0],[2,0,0],[3,0,0]]' in html
    for label in LABELS:
        assert f'src="images/epoch003_{label}.png"' in html  # without scripts too
        for epoch in (1, 2, 3):
            assert (tmp_path / f"web/images/epoch{epoch:03d}_{label}.png").is_file()

    (tmp_path / "web/images/mine.png").touch()
    stopped = page()  # a new run under the old name
    assert [path.name for path in (tmp_path / "web/images").iterdir()] == ["mine.png"]
    stopped.close("stopped")
    train(page(), epochs=[2])
    assert '"epochs":[[2,0,0]]' in (tmp_path / "web/index.html").read_text()


def test_page_of_a_run_with_more_epochs_than_planned(tmp_path):
    sink = PageSink(tmp_path / "web", "run", names=("A", "B"), size=256, images_freq=0)
    train(display(tmp_path, sink), epochs=[9])  # of 4
    html = (tmp_path / "web/index.html").read_text()
    assert "epoch 4 of 4" in html
    assert 'value="1.0000"' in html and "100% done" in html
    assert progress(9, 5).done == 1


def test_page_is_written_when_a_multiple_is_crossed_and_at_the_end_of_an_epoch(tmp_path):
    web = tmp_path / "web"
    shown = display(tmp_path, PageSink(web, "run", names=("A", "B"), size=256, images_freq=4))
    shown.update(progress(1, 3, batch_size=3), losses(), images, learning_rates)
    assert not (web / "index.html").exists()
    shown.update(progress(1, 6, batch_size=3), losses(), images, learning_rates)
    assert "6" in re.findall(r"<dd>([^<]+)</dd>", (web / "index.html").read_text())
    shown.update(progress(1, 10, batch_size=1), losses(), images, learning_rates)
    assert "10" in re.findall(r"<dd>([^<]+)</dd>", (web / "index.html").read_text())


# ---- flags


def test_flags_choose_the_sinks(tmp_path):
    flags = ["--display_id", "0", "--no_html", "--print_freq", "7"]
    shown = create_display(options(tmp_path, *flags), tmp_path, progress(1, 0))
    assert [type(sink) for sink in shown.sinks] == [ConsoleSink, LossLogSink]
    assert shown.losses_freq == 7
    flags = ["--display_id", "-1", "--update_html_freq", "5", "--direction", "BtoA", "--display_winsize", "99"]
    page = create_display(options(tmp_path, *flags), tmp_path, progress(1, 0)).sinks[2]
    assert (page.images_freq, page.names, page.size) == (5, ("B", "A"), 99)


def test_a_run_can_resume_from_its_very_start(tmp_path):
    opt = options(tmp_path, "--display_id", "0", "--no_html", "--print_freq", "1")
    for resumed in (False, True):
        train(create_display(opt, tmp_path, progress(1, 0), resumed=resumed), epochs=[1])
    assert [event.resumed for event in events(tmp_path, Start)] == [False, True]
    assert [event.images for event in events(tmp_path, Losses)] == list(range(1, 11))
    assert len(lines_of_losses(tmp_path)) == 10


# ---- packages that may be missing


@pytest.fixture
def block(monkeypatch):
    """Makes a package look as if it were not installed."""

    def block(package):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return block


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_refused_before_anything_is_written(tiny_data, tmp_path, block, package):
    block(package)
    flags = ["--checkpoints_dir", str(tmp_path / "checkpoints"), "--name", "run", "--dataroot", str(tiny_data), *TINY]
    message = f"^--use_{package} needs the package {package}. Install it: pip install {package}$"
    with pytest.raises(ValueError, match=message):
        training.main([*flags, "--device", "cpu", "--display_id", "0", f"--use_{package}"])
    assert list(tmp_path.iterdir()) == []


def test_wandb_without_a_key_is_an_error(tiny_data, tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    flags = [*TINY, "--dataroot", tiny_data, "--checkpoints_dir", tmp_path, "--name", "run", "--use_wandb", "--no_html"]
    done = subprocess.run(
        [sys.executable, "train.py", *map(str, flags)],
        cwd=Path(testing.__file__).parent, env={**env, "HOME": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--use_wandb: No API key configured." in done.stderr and "Or set WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr


def test_test_py_refuses_a_missing_package_before_anything_is_written(tmp_path, block):
    run_dir = tmp_path / "checkpoints" / "run"
    run_dir.mkdir(parents=True)
    TrainOptions().parse(["--dataroot", str(tmp_path / "none")]).save(run_dir)
    files = sorted(tmp_path.rglob("*"))
    block("wandb")
    flags = ["--checkpoints_dir", str(tmp_path / "checkpoints"), "--results_dir", str(tmp_path / "results")]
    with pytest.raises(ValueError, match="--use_wandb needs the package wandb"):
        testing.main([*flags, "--name", "run", "--use_wandb"])
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_costs_a_run_no_events(tmp_path, block, package):
    train(display(tmp_path), epochs=[1])
    block(package)
    with pytest.raises(ValueError, match=f"--use_{package} needs"):
        create_display(options(tmp_path, f"--use_{package}", "--display_id", "0"), tmp_path, progress(1, 0))
    assert len(events(tmp_path, Losses)) == 10


def test_a_folder_is_no_installed_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as wandb makes it where training runs
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert not is_installed("wandb")
    (tmp_path / "wandb" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert is_installed("wandb")


def test_training_without_visdom_warns_once(tmp_path, block, capsys):
    block("visdom")
    opt = options(tmp_path, "--display_id", "1", "--no_html", "--print_freq", "1", "--display_freq", "1")
    shown = create_display(opt, tmp_path, progress(1, 0))
    assert not any(isinstance(sink, Background) for sink in shown.sinks)
    train(shown, epochs=[1, 2])
    out = capsys.readouterr().out
    warning = "visdom is not installed, so training runs without it. pip install visdom, or add --display_id 0.\n"
    assert out.count(warning) == 1
    assert "visdom" not in out.replace(warning, "")
    assert len(events(tmp_path, Losses)) == 20
    create_display(options(tmp_path, "--display_id", "0", "--no_html"), tmp_path, progress(1, 0)).close("stopped")
    assert "visdom" not in capsys.readouterr().out
