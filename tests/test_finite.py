"""Losses that are not finite: the run stops or rolls back with a lower learning rate, and no such weights are saved."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train as training
from models.cycle_gan_model import CycleGANModel
from tests.test_cli import TINY, logged_losses, script, train
from training.checkpoints import read_state, save_checkpoint
from training.finite import LossGuard, NotFiniteError


def test_the_error_names_losses_and_files():
    guard = LossGuard()
    guard.check({"G": torch.tensor(1.0), "D": torch.tensor(2.0)}, ["a.png"])
    losses = {"G": torch.tensor(torch.inf), "D": torch.tensor(1.0), "idt": torch.tensor(torch.nan)}
    with pytest.raises(NotFiniteError, match=r"^G is inf, idt is nan in the step on a.png, b.png$"):
        guard.check(losses, ["a.png", "b.png"])
    guard.settle()


class OnGPU(torch.Tensor):
    """A tensor that says it is on the second GPU."""

    is_cuda = True
    device = torch.device("cuda", 1)


def test_the_copy_of_losses_is_awaited_on_their_own_device(monkeypatch):
    """Also if another device is current, whose stream does not contain the copy."""
    calls = []

    class Event:
        def record(self, stream=None):
            calls.append(f"recorded on {stream or 'cuda:0'}")
            return self

        def synchronize(self):
            calls.append("waited")

    def current_stream(device="cuda:0"):
        return SimpleNamespace(record_event=lambda: Event().record(str(device)))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    guard = LossGuard()
    guard.check({"G": torch.tensor(1.0).as_subclass(OnGPU)}, ["a.png"])
    assert calls == ["recorded on cuda:1"], "a step does not wait for the copy"
    guard.settle()
    assert calls == ["recorded on cuda:1", "waited"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = nn.Sequential(nn.Linear(1, 1))
    save_checkpoint(model, tmp_path, "latest", {"good": True})
    nn.init.constant_(model[0].weight, torch.nan)
    with pytest.raises(NotFiniteError, match=r"^0 has weights that are not finite"):
        save_checkpoint(model, tmp_path, "latest", {"good": False})
    state = read_state(tmp_path, "latest")
    assert state and state["good"]


# The second step has a loss of NaN.
EXPLODE = [
    "--lr",
    "1e30",
    "--save_latest_freq",
    "1",
    "--serial_batches",
    "--no_html",
]


def test_a_run_stops_at_a_non_finite_loss(tiny_data, tmp_path):
    done = script("train.py", "--dataroot", tiny_data, *TINY, *EXPLODE, "--name", "run", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    files = f"{tiny_data}/trainA/1.png, {tiny_data}/trainB/1.png"
    assert re.fullmatch(rf"train.py: error: G_A is nan, .* in the step on {files}\. .*rollback\n", done.stderr)
    run_dir = tmp_path / "checkpoints" / "run"
    state = read_state(run_dir, "latest")
    assert state and state["total_images"] == 1
    assert len(logged_losses(run_dir)) == 1


def test_a_run_rolls_back_three_times(tiny_data, tmp_path, capsys):
    with pytest.raises(NotFiniteError, match=r"G_A is nan.*1\.png.* halving the learning rate 3 times was not enough"):
        train(tmp_path, "--dataroot", tiny_data, *EXPLODE, "--on_nan", "rollback", "--num_threads", "1")
    shown = capsys.readouterr().out
    assert [f"half the learning rates ({times} of 3)" in shown for times in (1, 2, 3, 4)] == [True, True, True, False]
    state = read_state(tmp_path / "run", "latest")
    assert state and state["total_images"] == 1 and state["model"]["halvings"] == 3


@pytest.mark.parametrize("policy", ["step", "plateau"])
def test_a_run_that_rolled_back_has_half_the_learning_rate_after_resuming(
    policy, tiny_data, tmp_path, monkeypatch, capsys
):
    """One step has a non-finite loss, once. The run ends and is resumed."""
    step, seen = CycleGANModel.step, []

    def fail_once(model, batch):
        losses, images = step(model, batch)
        seen.append(batch["A_paths"])
        return (losses | {"G_A": losses["G_A"] * torch.nan} if len(seen) == 3 else losses), images

    monkeypatch.setattr(CycleGANModel, "step", fail_once)
    flags = ["--dataroot", tiny_data, "--save_latest_freq", "1", "--lr_policy", policy, "--on_nan", "rollback"]
    run_dir = train(tmp_path, *flags, "--n_epochs", "0")
    places = ["--checkpoints_dir", str(tmp_path), "--name", "run", "--continue_train", "--n_epochs", "1"]
    assert training.main(places) == 0
    assert seen[2] == seen[3], "the step is repeated"
    assert len(seen) == 11 and "with half the learning rates (1 of 3)" in capsys.readouterr().out
    state = torch.load(run_dir / "latest_state.pth")["model"]
    learning_rates = {group["lr"] for optimizer in state["optimizers"].values() for group in optimizer["param_groups"]}
    assert learning_rates == {0.0001}
