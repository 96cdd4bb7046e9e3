"""What a run shows while it trains."""

import io
import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import time
from contextlib import closing

import pytest
import torch

from options.train_options import TrainOptions
from test import main as run_test
from tests.test_cli import train as run_training
from util.display import Display, Progress, create_display, crossed
from util.display import visdom as visdom_display
from util.display.console import ConsoleSink
from util.display.html import PageSink
from util.display.visdom import VisdomSink, connect

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")  # in visdom

LABELS = ("real_A", "fake_B", "rec_A", "real_B", "fake_A", "rec_B")


def progress(epoch=1, epoch_images=1, *, epoch_size=10, batch_size=1):
    total = (epoch - 1) * epoch_size + epoch_images
    return Progress(
        epoch=epoch, epochs=4, epoch_images=epoch_images, epoch_size=epoch_size, total_images=total,
        batch_size=batch_size, step_seconds=0.16, data_seconds=0.001,
    )  # fmt: skip


def losses():
    return {"D_A": torch.tensor(0.2444), "G_A": torch.tensor(0.576)}


def images(value=0.0, size=16):
    return {label: torch.full((1, 3, size, size), value) for label in LABELS}


def options(tmp_path, *flags):
    return TrainOptions().parse(["--checkpoints_dir", str(tmp_path), "--name", "run", *flags])


def train(display, *, epochs, batch_size=1, epoch_size=10):
    """Call a display as train.py does."""
    for epoch in epochs:
        for start in range(0, epoch_size, batch_size):
            size = min(batch_size, epoch_size - start)
            at = progress(epoch, start + size, epoch_size=epoch_size, batch_size=size)
            display.update(at, losses(), images)
        display.end_epoch(at, images)
    display.close()


# ---- when


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
    assert crossed(frequency, before, after) is expected


@pytest.mark.parametrize(("batch_size", "at"), [(1, [4, 8]), (3, [6, 9]), (8, [8]), (10, [10])])
def test_losses_are_shown_when_a_multiple_is_crossed(tmp_path, batch_size, at):
    log = tmp_path / "loss_log.txt"
    train(Display([ConsoleSink(log, losses_freq=4)]), epochs=[1], batch_size=batch_size)
    assert [int(count) for count in re.findall(r"iters: (\d+)", log.read_text())] == at


def test_losses_stay_on_the_device_until_they_are_shown(tmp_path):
    display = Display([ConsoleSink(tmp_path / "loss_log.txt", losses_freq=2)])
    display.update(progress(1, 1), {"G_A": object()}, dict)  # anything that reads the loss fails
    with pytest.raises(AttributeError):
        display.update(progress(1, 2), {"G_A": object()}, dict)
    display.close()


# ---- console and loss_log.txt


def test_log_has_upstreams_format(tmp_path):
    train(Display([ConsoleSink(tmp_path / "log", losses_freq=5)]), epochs=[3])
    header, *lines = (tmp_path / "log").read_text().splitlines()
    assert re.fullmatch(r"================ Training Loss \(.+\) ================", header)
    assert lines == [f"(epoch: 3, iters: {iters}, time: 0.160, data: 0.001) D_A: 0.244 G_A: 0.576" for iters in (5, 10)]


def test_log_goes_on_when_a_run_continues(tmp_path):
    for epoch in (1, 2):
        train(Display([ConsoleSink(tmp_path / "log", losses_freq=10)]), epochs=[epoch])
    assert re.findall(r"Training Loss|epoch: \d", (tmp_path / "log").read_text()) == [
        "Training Loss", "epoch: 1", "Training Loss", "epoch: 2",
    ]  # fmt: skip


def test_a_console_that_is_no_terminal_gets_plain_lines(tmp_path, capfd):
    train(Display([ConsoleSink(tmp_path / "log", losses_freq=5)]), epochs=[1, 2])
    out, err = capfd.readouterr()
    assert out.splitlines() == [line for line in (tmp_path / "log").read_text().splitlines() if line[0] == "("]
    assert len(out.splitlines()) == 4
    assert out.replace("\n", "").isprintable()
    assert err == ""


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        display = Display([ConsoleSink(tmp_path / "log", losses_freq=1)])
        for count in (1, 2, 3):
            display.update(progress(2, count), losses(), dict)
            time.sleep(0.15)  # more than tqdm waits between two drawings
        display.close()
        monkeypatch.undo()
        drawn = os.read(ours, 10_000).decode().replace("\r", "\n")
    os.close(ours)
    assert re.search(r"epoch 2/4 .* 3/10 +\d+\.\d+ images/s, \d\d:\d\d left  D_A 0.24 G_A 0.58", drawn)


# ---- visdom


@pytest.fixture(scope="module")
def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def visdom_server(tmp_path, free_port):
    """A real server. Its command line would first download scripts for browsers, which the tests do without."""
    folder = tmp_path / "visdom"
    folder.mkdir()
    command = [sys.executable, "-c", "from visdom.server.run_server import main; main()", "-bind_local"]
    command += ["-port", str(free_port), "-env_path", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(300):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", free_port)) == 0:
                    break
            time.sleep(0.1)
        yield server
        server.kill()


def test_visdom_shows_curves_and_images(tmp_path, visdom_server, free_port):
    flags = ["--display_server", "http://127.0.0.1", "--display_port", str(free_port), "--display_env", "lab"]
    flags += ["--no_html", "--print_freq", "5", "--display_freq", "10", "--display_winsize", "64"]
    (tmp_path / "run").mkdir()
    train(create_display(options(tmp_path, *flags), tmp_path / "run"), epochs=[1])
    train(create_display(options(tmp_path, *flags, "--continue_train"), tmp_path / "run"), epochs=[2])

    client = connect("http://127.0.0.1", free_port, "lab")
    curves = json.loads(client.get_window_data("run_1_losses"))["content"]["data"]
    assert {curve["name"]: curve["x"] for curve in curves} == {name: [0.5, 1.0, 1.5, 2.0] for name in losses()}
    assert curves[1]["y"] == pytest.approx([0.576] * 4)
    pictures = json.loads(client.get_window_data("run_1_images"))
    assert pictures["title"] == "run: epoch 2"
    assert pictures["content"]["caption"] == ", ".join(LABELS)
    assert pictures["content"]["src"].startswith("data:image/png;base64,")

    train(create_display(options(tmp_path, *flags, "--display_ncols", "0"), tmp_path / "run"), epochs=[1])
    assert json.loads(client.get_window_data("run_1_fake_B"))["title"] == "run: epoch 1, fake_B"
    curves = json.loads(client.get_window_data("run_1_losses"))["content"]["data"]
    assert curves[0]["x"] == [0.5, 1.0]  # a run that starts anew has curves of its own
    client.session.close()


def test_training_goes_on_without_a_visdom_server(tmp_path, free_port, capfd):
    (tmp_path / "run").mkdir()
    flags = ["--display_server", "http://127.0.0.1", "--display_port", str(free_port), "--display_freq", "1"]
    train(create_display(options(tmp_path, *flags, "--no_html"), tmp_path / "run"), epochs=[1])
    out, err = capfd.readouterr()
    assert out == (
        f"visdom not reachable at http://127.0.0.1:{free_port}: start it with "
        f"`python -m visdom.server -port {free_port}`, or --display_id 0 to silence this\n"
    )
    assert err == ""


def test_training_goes_on_when_the_visdom_server_goes(visdom_server, free_port, capfd):
    client = connect("http://127.0.0.1", free_port, "main")
    sink = VisdomSink(
        client, "run", display_id=1, columns=4, size=64, append=False, losses_freq=1, images_freq=1
    )  # fmt: skip
    visdom_server.kill()
    visdom_server.wait()
    train(Display([sink]), epochs=[1])
    client.session.close()
    assert capfd.readouterr().out == "visdom does not answer any more: training goes on without it\n"


def test_a_visdom_server_that_never_answers_costs_one_short_wait(monkeypatch, capfd):
    monkeypatch.setattr(visdom_display, "TIMEOUT", 0.3)
    with closing(socket.create_server(("127.0.0.1", 0))) as hanging:
        started = time.monotonic()
        assert connect("127.0.0.1", hanging.getsockname()[1], "main") is None
    assert time.monotonic() - started < 3
    assert capfd.readouterr().out.startswith("visdom not reachable at 127.0.0.1:")


# ---- page


def test_page_of_a_continued_run_has_every_epoch(tmp_path):
    def page():
        return Display([PageSink(tmp_path / "web", "run", names=("A", "B"), size=256, images_freq=7)])

    train(page(), epochs=[1, 2])
    train(page(), epochs=[3])
    html = (tmp_path / "web/index.html").read_text()
    assert '"epochs":[[1,0,0],[2,0,0],[3,0,0]]' in html
    for label in LABELS:
        assert f'src="images/epoch003_{label}.png"' in html  # without scripts too
        for epoch in (1, 2, 3):
            assert (tmp_path / f"web/images/epoch{epoch:03d}_{label}.png").is_file()

    train(page(), epochs=[1])  # a new run under the old name
    assert '"epochs":[[1,0,0]]' in (tmp_path / "web/index.html").read_text()


def test_page_is_written_when_a_multiple_is_crossed_and_at_the_end_of_an_epoch(tmp_path):
    display = Display([PageSink(tmp_path, "run", names=("A", "B"), size=256, images_freq=4)])
    display.update(progress(1, 3, batch_size=3), losses(), images)
    assert not (tmp_path / "index.html").exists()
    display.update(progress(1, 6, batch_size=3), losses(), images)
    assert "6" in re.findall(r"<dd>([^<]+)</dd>", (tmp_path / "index.html").read_text())
    display.end_epoch(progress(1, 7), images)
    assert "7" in re.findall(r"<dd>([^<]+)</dd>", (tmp_path / "index.html").read_text())


# ---- flags


def test_flags_choose_the_sinks(tmp_path):
    display = create_display(options(tmp_path, "--display_id", "0", "--no_html", "--print_freq", "7"), tmp_path)
    assert [type(sink) for sink in display.sinks] == [ConsoleSink]
    assert display.sinks[0].losses_freq == 7
    flags = ["--display_id", "-1", "--update_html_freq", "5", "--direction", "BtoA", "--display_winsize", "99"]
    page = create_display(options(tmp_path, *flags), tmp_path).sinks[1]
    assert (page.images_freq, page.names, page.size) == (5, ("B", "A"), 99)


def test_wandb_gets_losses_pictures_and_results(tiny_data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run_training(tmp_path, "--dataroot", tiny_data, "--use_wandb", "--display_freq", "5").is_dir()
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--results_dir", str(tmp_path / "results")]
    assert run_test([*places, "--use_wandb", "--num_test", "2"]) == 0
    for folder, count in (("run", 2 * 8), ("results/run/test_latest", 2 * 6)):
        assert len(list(tmp_path.glob(f"{folder}/wandb/offline-run-*/files/media/images/*.png"))) == count


def test_wandb_has_to_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not
    monkeypatch.delitem(sys.modules, "util.display.wandb", raising=False)
    with pytest.raises(ValueError, match=r"--use_wandb: .*; pip install wandb"):
        create_display(options(tmp_path, "--use_wandb", "--display_id", "0"), tmp_path)
