"""Visdom on a real server that is present, absent, late, hanging, or dies and comes back."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest

from display import background
from display.background import Background
from display.create import create_display
from display.events import Images, Losses
from display.pages.training import PageSink
from display.sinks import visdom as visdom_display
from display.sinks.visdom import Client
from scripts import replay
from tests.helpers import PATIENCE
from tests.test_display import LABELS, display, events, images, learning_rates, losses, options, progress, train

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")  # in visdom


@pytest.fixture
def port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(background, "GRACE", 60)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(background, "RETRY", 0.2)


@contextmanager
def visdom_server(tmp_path, port):
    """Start a real server. Its command line would first download scripts for browsers, which the tests do not need."""
    folder = tmp_path / "visdom"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", "from visdom.server.run_server import main; main()", "-bind_local"]
    command += ["-port", str(port), "-env_path", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: is_open(port))
            yield server
        finally:
            server.kill()


def is_open(port):
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def flags(port, *more):
    server = ["--display_server", "http://127.0.0.1", "--display_port", str(port), "--display_env", "lab"]
    return [*server, "--no_html", "--print_freq", "5", "--display_freq", "10", "--display_winsize", "64", *more]


def shown_on(tmp_path, port, *more, at=None):
    """Start the display of train.py with these flags, without its console."""
    (tmp_path / "run").mkdir(exist_ok=True)
    opt = options(tmp_path, *flags(port, *more))
    shown = create_display(opt, tmp_path / "run", at or progress(1, 0), resumed=at is not None)
    shown.sinks = shown.sinks[1:]
    return shown


def curves(port, chart="losses"):
    """Return the curves of a chart on the server: name -> (x, y); none where there is no window."""
    client, window = Client("http://127.0.0.1", port, "lab"), f"run_1_{chart}"
    with closing(client.session):
        content = json.loads(client.get_window_data(window))["content"] if client.win_exists(window) else {"data": []}
    return {curve["name"]: (curve["x"], curve["y"]) for curve in content["data"]}


def test_curves_and_images(tmp_path, port):
    with visdom_server(tmp_path, port):
        train(shown_on(tmp_path, port), epochs=[1])
        train(shown_on(tmp_path, port, at=progress(1, 10)), epochs=[2])

        assert {name: x for name, (x, _) in curves(port).items()} == {name: [0.5, 1.0, 1.5, 2.0] for name in losses()}
        assert curves(port)["G_A"][1] == [losses()["G_A"].item()] * 4
        assert curves(port, "learning_rates")["lr_D"] == ([0.5, 1.0, 1.5, 2.0], [0.0001] * 4)
        assert curves(port, "images_per_second").keys() == {"images_per_second"}
        assert curves(port, "peak_memory").keys() == {"peak_memory_mb"}
        measured = shown_on(tmp_path, port, at=progress(2, 10))
        for kid in (3.0, 2.0):
            measured.show_metrics(progress(2, 10), {"kid": kid}, note="")
        measured.update(progress(3, 1), losses(), dict, dict)
        measured.close("finished")
        assert curves(port, "metric_kid")["kid"][1] == [3.0, 2.0]
        client = Client("http://127.0.0.1", port, "lab")
        window = json.loads(client.get_window_data("run_1_images"))
        assert window["title"] == "run: epoch 2"
        assert window["content"]["caption"] == ", ".join(LABELS)
        assert window["content"]["src"].startswith("data:image/png;base64,")

        train(shown_on(tmp_path, port, "--display_ncols", "0"), epochs=[1])
        assert json.loads(client.get_window_data("run_1_fake_B"))["title"] == "run: epoch 1, fake_B"
        assert curves(port)["D_A"][0] == [0.5, 1.0]  # a new run replaces the curves
        client.session.close()


def test_absent(tmp_path, port, capfd):
    train(shown_on(tmp_path, port), epochs=[1])
    out, err = capfd.readouterr()
    assert out == (
        f"visdom at http://127.0.0.1:{port} does not answer. Training continues; the server gets everything when it "
        f"answers: start it with `python -m visdom.server -port {port}`, or add --display_id 0 to silence this\n"
    )
    assert err == ""
    assert len(events(tmp_path / "run", Losses)) == 2
    assert len(events(tmp_path / "run", Images)) == 1


def test_a_replay_to_an_absent_server_says_how_to_start_it(tmp_path, port):
    run = tmp_path / "run"
    run.mkdir()
    options(tmp_path, *flags(port)).save(run)
    train(display(run), epochs=[1])
    with pytest.raises(ConnectionError) as error:
        replay.main(["--checkpoints_dir", str(tmp_path), "--name", "run", "--to", "visdom"])
    assert str(error.value) == (
        f"visdom at http://127.0.0.1:{port} does not answer. Start it with `python -m visdom.server -port {port}`."
    )


def test_a_late_server_gets_everything(tmp_path, port, capfd, quick):
    shown = shown_on(tmp_path, port)
    for count in range(1, 8):
        shown.update(progress(1, count), losses(), images, learning_rates)
    wait_for(lambda: "does not answer" in capfd.readouterr().out)
    with visdom_server(tmp_path, port):
        wait_for(lambda: curves(port))
        for count in range(8, 11):
            shown.update(progress(1, count), losses(), images, learning_rates)
        shown.close("finished")
        assert curves(port)["G_A"] == ([0.5, 1.0], [losses()["G_A"].item()] * 2)
    assert capfd.readouterr().out.splitlines() == [
        f"visdom at http://127.0.0.1:{port} answers and has received everything"
    ]


def test_a_server_that_dies_and_comes_back_gets_everything(tmp_path, port, capfd, quick):
    shown = shown_on(tmp_path, port, "--print_freq", "1")
    with visdom_server(tmp_path, port) as server:
        shown.update(progress(1, 1), losses(), images, learning_rates)
        wait_for(lambda: curves(port))
        server.kill()
        server.wait()
        shown.update(progress(1, 2), losses(), images, learning_rates)
        wait_for(lambda: "does not answer" in capfd.readouterr().out)
    shown.update(progress(1, 3), losses(), images, learning_rates)
    with visdom_server(tmp_path, port):
        wait_for(lambda: curves(port))
        shown.update(progress(1, 4), losses(), images, learning_rates)
        shown.close("stopped")
        assert curves(port)["G_A"][0] == [0.1, 0.2, 0.3, 0.4]


def test_a_server_that_lost_its_windows_gets_them_again(tmp_path, port):
    shown = shown_on(tmp_path, port, "--print_freq", "1")
    with visdom_server(tmp_path, port):
        shown.update(progress(1, 1), losses(), images, learning_rates)
        wait_for(lambda: curves(port))
        client = Client("http://127.0.0.1", port, "lab")
        client.close("run_1_losses")
        client.session.close()
        assert not curves(port)
        shown.update(progress(1, 2), losses(), images, learning_rates)
        new = losses() | {"idt_A": losses()["G_A"]}
        shown.update(progress(1, 3), new, images, learning_rates)  # a new curve
        shown.close("stopped")
        assert curves(port)["D_A"][0] == [0.1, 0.2, 0.3]
        assert curves(port)["idt_A"][1] == [None, None, new["idt_A"].item()]


def background_thread(shown):
    (thread,) = [sink.thread for sink in shown.sinks if isinstance(sink, Background)]
    return thread


def test_training_does_not_wait_for_a_hanging_server(tmp_path, monkeypatch):
    monkeypatch.setattr(visdom_display, "TIMEOUT", PATIENCE)  # waiting for the server fails this test
    monkeypatch.setattr(background, "GRACE", 0.1)
    with closing(socket.create_server(("127.0.0.1", 0))) as hanging:  # accepts and never answers
        shown = shown_on(tmp_path, hanging.getsockname()[1], "--print_freq", "1")
        train(shown, epochs=[1, 2, 3])
        assert background_thread(shown).is_alive(), "the thread no longer waits for an answer"
    assert len(events(tmp_path / "run", Losses)) == 30
    wait_for(lambda: not background_thread(shown).is_alive())


def test_a_hanging_server_is_announced_once(tmp_path, monkeypatch, quick, capfd):
    monkeypatch.setattr(visdom_display, "TIMEOUT", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as hanging:
        shown = shown_on(tmp_path, hanging.getsockname()[1], "--print_freq", "1")
        shown.update(progress(1, 1), losses(), images, learning_rates)
        out = []
        wait_for(lambda: out.append(capfd.readouterr().out) or "does not answer" in out[-1])
        shown.close("finished")
    assert ("".join(out) + capfd.readouterr().out).count("does not answer. Training continues") == 1


def test_undelivered_values_are_reported(tmp_path, port, monkeypatch, capfd):
    monkeypatch.setattr(background, "GRACE", 0.1)
    shown = shown_on(tmp_path, port, "--print_freq", "1")
    with visdom_server(tmp_path, port) as server:
        shown.update(progress(1, 1), losses(), images, learning_rates)
        wait_for(lambda: curves(port))
        server.send_signal(signal.SIGSTOP)  # hangs in the middle of a run
        shown.update(progress(1, 2), losses(), images, learning_rates)
        shown.close("finished")
        message = "did not receive everything in time. `python -m scripts.replay` sends everything again."
        assert message in capfd.readouterr().out
    assert len(events(tmp_path / "run", Losses)) == 2


def test_an_unexpected_error_of_a_sink_is_shown(tmp_path, port, monkeypatch, capfd):
    def broken(self, events):
        raise RuntimeError("the library changed")

    monkeypatch.setattr(visdom_display.VisdomSink, "show", broken)
    with visdom_server(tmp_path, port):
        shown = shown_on(tmp_path, port, "--print_freq", "1")
        shown.update(progress(1, 1), losses(), images, learning_rates)
        wait_for(lambda: not background_thread(shown).is_alive())
        shown.close("finished")
    said = "".join(capfd.readouterr())
    assert "shows nothing more. Training continues. `python -m scripts.replay`" in said
    assert "RuntimeError: the library changed" in said


def test_the_thread_starts_after_the_workers_of_the_data_loader(tmp_path, port):
    shown = shown_on(tmp_path, port)
    thread = background_thread(shown)
    assert not thread.is_alive()
    shown.update(progress(1, 1), losses(), images, learning_rates)
    assert thread.is_alive()
    assert thread.daemon
    shown.close("stopped")
    wait_for(lambda: not thread.is_alive())


def test_replay(tmp_path, port, capfd):
    page = PageSink(tmp_path / "run/web", "run", names=("A", "B"), size=64, images_freq=0)
    train(display(tmp_path / "run", page), epochs=[1, 2])
    flags_of_run = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--to", "visdom"]
    with pytest.raises(ConnectionError):
        replay.main([*flags_of_run, *flags(port)])
    with visdom_server(tmp_path, port):
        for _ in range(2):  # the second replaces the first
            assert replay.main([*flags_of_run, *flags(port)]) == 0
        assert curves(port)["G_A"] == ([count / 10 for count in range(1, 21)], [losses()["G_A"].item()] * 20)
        client = Client("http://127.0.0.1", port, "lab")
        assert json.loads(client.get_window_data("run_1_images"))["title"] == "run: epoch 2"
        client.session.close()
