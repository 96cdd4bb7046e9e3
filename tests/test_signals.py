"""Signals, alone and repeated, and output that nobody reads any more."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import PATIENCE
from tests.test_cli import ONE_THREAD, ROOT, TINY, logged_losses
from util import signals
from util.signals import stop_requests


@pytest.fixture
def hangups():
    """Restores what SIGHUP does."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_what_reaches_a_process_twice_is_one_request(monkeypatch, capsys):
    monkeypatch.setattr(signals, "ONE_REQUEST", math.inf)  # however slow the machine is
    with stop_requests() as received:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # from a scheduler and from torchrun
            signal.raise_signal(number)
        assert received == [signal.SIGINT]
    assert capsys.readouterr().out.count("finishing this step") == 1


def test_a_later_signal_acts_as_ever(monkeypatch, capsys):
    monkeypatch.setattr(signals, "ONE_REQUEST", 0.0)
    with pytest.raises(KeyboardInterrupt), stop_requests():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second did nothing")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_nohup_ignores_stays_ignored(hangups):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests() as received:
        signal.raise_signal(signal.SIGHUP)
        assert received == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_run_is_saved_when_its_terminal_is_closed(tiny_data, tmp_path):
    """So it is after Ctrl-C when the output goes through `| tee`, which the same signal ends."""
    flags = ["--checkpoints_dir", tmp_path, "--name", "run", "--dataroot", tiny_data, "--num_threads", "1"]
    command = [sys.executable, ROOT / "train.py", *TINY, *flags, "--n_epochs", "1000"]
    with subprocess.Popen(
        [*map(str, command)], cwd=tmp_path, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if line.startswith("(epoch: 1, iters: 2"):
                break
        process.stdout.close()
        os.killpg(process.pid, signal.SIGHUP)
    assert process.returncode == 128 + signal.SIGHUP
    state = torch.load(tmp_path / "run" / "latest_state.pth", weights_only=True)
    assert state["total_images"] == len(logged_losses(tmp_path / "run")) >= 2


def test_an_output_that_is_full_is_an_error(tiny_data, tmp_path):
    command = [sys.executable, ROOT / "train.py", "--dry_run", "--dataroot", tiny_data, *TINY]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=ONE_THREAD, stdout=full, check=False, timeout=PATIENCE
        )
    assert done.returncode != 0
