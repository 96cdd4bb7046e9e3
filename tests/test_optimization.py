"""Learning-rate schedules, averaged weights and loss scaling."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from options.train_options import TrainOptions
from tests.helpers import random_batch, training_model
from training.optimization import WeightAverage, halflife_decay, ramped_decay
from training.schedules import make_scheduler


def learning_rates(policy: str, *, losses: Sequence[float] = (), epoch: int = 1) -> list[float]:
    """The learning rate of each epoch in a run of 4 + 4 epochs with lr=1 that starts in `epoch`."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    scheduler = make_scheduler(optimizer, policy, n_epochs=4, n_epochs_decay=4, lr_decay_iters=3, epoch=epoch)
    result = []
    for done in range(8 - epoch + 1):
        result.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.zeros(1)
        optimizer.step()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(losses[done])
        else:
            scheduler.step()
    return result


def test_linear_is_constant_then_falls_and_is_above_0_in_the_last_epoch():
    assert learning_rates("linear") == pytest.approx([1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_step_divides_by_10():
    assert learning_rates("step") == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_falls_all_the_time():
    assert learning_rates("cosine") == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])


def test_plateau_depends_on_the_loss():
    assert learning_rates("plateau", losses=[8, 7, 6, 5, 4, 3, 2, 1]) == pytest.approx([1] * 8)
    assert learning_rates("plateau", losses=[1] * 8) == pytest.approx([1] * 7 + [0.2])


@pytest.mark.parametrize("policy", ["linear", "step", "cosine"])
def test_a_run_that_starts_in_a_later_epoch_has_its_learning_rate(policy):
    assert learning_rates(policy, epoch=4) == pytest.approx(learning_rates(policy)[3:])


def test_unknown_policy_lists_the_choices():
    with pytest.raises(ValueError, match="policy='poly': choose from linear, step, plateau, cosine"):
        learning_rates("poly")


def test_ema_averages_weights_and_statistics_and_copies_counters():
    net = nn.BatchNorm2d(2)
    average = copy.deepcopy(net)
    net.weight.data.fill_(3.0)
    net.running_mean.fill_(5.0)
    WeightAverage(average, net).update(decay=0.1)
    torch.testing.assert_close(average.weight.data, torch.full((2,), 0.1 * 1 + 0.9 * 3))
    torch.testing.assert_close(average.running_mean, torch.full((2,), 0.9 * 5))
    net.num_batches_tracked.fill_(7)
    WeightAverage(average, net).update(decay=0.5)
    assert average.num_batches_tracked == 7
    torch.testing.assert_close(average.weight.data, torch.full((2,), 0.5 * 2.8 + 0.5 * 3))


def test_the_decay_of_averages_rises():
    assert [ramped_decay(0.999, updates=n) for n in (0, 90, 10**6)] == pytest.approx([0.1, 0.91, 0.999])
    assert halflife_decay(1000, images=8, seen=10**6) == pytest.approx(0.5 ** (8 / 1000))
    assert halflife_decay(1000, images=8, seen=2000) == pytest.approx(0.5 ** (8 / 100)), "a twentieth of 2000"
    weight = torch.tensor(1.0)
    for step in range(125):
        weight *= halflife_decay(1000, images=8, seen=10**6 + 8 * step)
    assert weight.item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["cycle_gan", "sagan"])
def test_averages_by_half_life(model, precision):
    flags = ["--netG", "sagan", "--netD", "sagan"] if model == "sagan" else []
    trained = training_model("--model", model, *flags, "--ema_halflife", "60", "--precision", precision)
    name = "netG" if model == "sagan" else "netG_A"
    net, average = (next(trained.get_submodule(each).parameters()) for each in (name, f"{name}_ema"))
    expected = average.clone()
    for before, half_life in ((20, 1.1), (1000, 50.1), (2000, 60)):  # a twentieth of what is seen, at most 60
        trained.optimization.begin_step(share=1.0, progress=0.5, images=2, images_before=before)
        trained.step(random_batch(2))
        decay = 0.5 ** (2 / half_life)
        expected = decay * expected + (1 - decay) * net.detach()
        torch.testing.assert_close(average, expected)


def test_one_decay_is_chosen(capsys):
    with pytest.raises(SystemExit):
        TrainOptions().parse(["--ema_decay", "0.9", "--ema_halflife", "100"])
    assert "--ema_decay and --ema_halflife are two ways" in capsys.readouterr().err
    sagan = TrainOptions().parse(["--model", "sagan", "--ema_halflife", "100"])
    assert sagan.ema_halflife == 100
    resumed = TrainOptions().parse(["--model", "sagan", "--ema_decay", "0.9"], sagan.as_dict())
    assert (resumed.ema_decay, resumed.ema_halflife) == (0.9, 0)


def test_several_steps_of_a_discriminator_update_the_scale_in_between():
    """GradScaler refuses to step an optimizer twice without an update of the scale."""
    model = training_model("--model", "sagan", "--netG", "sagan", "--netD", "sagan", "--d_steps", "3")
    model.optimization.scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    scales = []
    update = model.optimization.scaler.update
    model.optimization.scaler.update = lambda: update() or scales.append(model.optimization.scaler.get_scale())
    losses, _ = model.step(random_batch(2))
    assert all(loss.isfinite() for loss in losses.values())
    assert scales == [2.0**17, 2.0**18, 2.0**19], "twice before a step of D, and at the end"
    steps = {name: next(iter(opt.state.values()))["step"] for name, opt in model.optimization.optimizers.items()}
    assert steps == {"G": 1, "D": 3}


def test_gradients_are_unscaled_by_their_own_scale():
    averages = []
    for enabled in (True, False):
        torch.manual_seed(0)
        model = training_model("--model", "sagan", "--netG", "sagan", "--netD", "sagan", "--d_steps", "2")
        model.optimization.scaler = torch.amp.GradScaler("cpu", growth_interval=1, enabled=enabled)
        model.step(random_batch(2))
        averages.append([state["exp_avg_sq"] for state in model.optimization.optimizers["D"].state.values()])
    torch.testing.assert_close(*averages)


def test_learning_rates_follow_the_progress_of_a_run_whose_time_is_limited():
    flags = ["--model", "cycle_gan", "--n_epochs", "1", "--n_epochs_decay", "3", "--train_minutes", "1"]
    optimization = training_model(*flags).optimization
    rates = []
    for progress in (0, 0.2, 0.3, 0.6, 0.99, 1):
        optimization.begin_step(share=1.0, progress=progress, images=1, images_before=0)
        rates.append(optimization.learning_rates()["lr_G"] / 0.0002)
    assert rates == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match="lr_policy=plateau follows the losses"):
        training_model(*flags, "--lr_policy", "plateau")


def test_averages_of_gradients_take_the_memory_format_of_their_weights():
    """Fused Adam on GPUs needs that. A checkpoint may come from a CPU, where another format is faster."""
    flags = ["--model", "cycle_gan", "--pool_size", "0"]
    before, after = training_model(*flags), training_model(*flags)
    before.step(random_batch())
    after.load_state_dict(before.state_dict())
    after.to(memory_format=torch.channels_last)
    after.optimization.load_state_dict(copy.deepcopy(before.optimization.state_dict()), epoch=1)
    for name, optimizer in after.optimization.optimizers.items():
        saved = before.optimization.optimizers[name].state
        for (weight, state), (_, expected) in zip(optimizer.state.items(), saved.items(), strict=True):
            assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == weight.stride()
            assert torch.equal(state["exp_avg"], expected["exp_avg"])
            assert torch.equal(state["exp_avg_sq"], expected["exp_avg_sq"])
    assert any(weight.is_contiguous(memory_format=torch.channels_last) for weight in after.netG_A.parameters())
    losses, _ = after.step(random_batch())
    assert all(loss.isfinite() for loss in losses.values())
