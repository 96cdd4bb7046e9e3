"""How the networks of a model are optimized: Adam, mixed precision, gradient sums, schedules and averaged weights."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from training.schedules import make_scheduler, set_epoch
from util import distributed
from util.device import autocast


def create_optimization(opt: Any, device: torch.device) -> "Optimization":
    """The optimization that the flags ask for, to give to `model.prepare_training`.

    Raises:
        ValueError: the device does not support the precision.
    """
    if opt.precision == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision fp16 is for NVIDIA GPUs, not for {device.type}: use bf16 or fp32")
    return Optimization(
        device,
        precision=opt.precision,
        betas=(opt.beta1, opt.beta2),
        ema_decay=opt.ema_decay,
        lr_policy=opt.lr_policy,
        n_epochs=opt.n_epochs,
        n_epochs_decay=opt.n_epochs_decay,
        lr_decay_iters=opt.lr_decay_iters,
        first_epoch=opt.epoch_count,
    )


class Optimization:
    """The optimizers of a model and all they need; a model is given one and calls it in its `step`.

    Args:
        device: of the networks.
        precision: of the forward pass: fp32, bf16, or fp16, for which losses are scaled against underflow.
        betas: of Adam (Kingma and Ba 2015, arXiv:1412.6980).
        ema_decay: of the averaged networks; 0 = none are kept.
        lr_policy, n_epochs, n_epochs_decay, lr_decay_iters, first_epoch: see `training.schedules`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        precision: str = "fp32",
        betas: tuple[float, float] = (0.5, 0.999),
        ema_decay: float = 0.0,
        lr_policy: str = "linear",
        n_epochs: int = 100,
        n_epochs_decay: int = 100,
        lr_decay_iters: int = 50,
        first_epoch: int = 1,
    ):
        self.device, self.precision, self.betas, self.ema_decay = device, precision, betas, ema_decay
        self.schedule = partial(
            make_scheduler, policy=lr_policy, n_epochs=n_epochs, n_epochs_decay=n_epochs_decay,
            lr_decay_iters=lr_decay_iters, epoch=first_epoch,
        )  # fmt: skip
        self.optimizers: dict[str, Optimizer] = {}
        self.schedulers: dict[str, LRScheduler] = {}
        self.averages: list[tuple[nn.Module, nn.Module]] = []  # (average, network)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.updates = 0
        self.lr_halvings = 0  # applied on top of the schedules
        self.share = 1.0  # of this process in the loss of a step over all processes
        self.step_losses: dict[str, Tensor] = {}  # since the last update
        self.stepped: set[str] = set()  # optimizers, since the last update of the scale
        self.epoch_losses: dict[str, Tensor] = {}

    def add(self, name: str, nets: Iterable[nn.Module], *, lr: float) -> None:
        """Let `backward(name, loss)` and `update(name)` train the weights of `nets`, with the initial rate `lr`."""
        parameters = [parameter for net in nets for parameter in net.parameters()]
        self.optimizers[name] = Adam(parameters, lr=lr, betas=self.betas, fused=True)
        self.schedulers[name] = self.schedule(self.optimizers[name])

    def add_averages(self, model: nn.Module, *names: str) -> None:
        """Keep an exponential moving average of the named networks as children `{name}_ema` of the model."""
        if self.ema_decay:
            for name in names:
                net = model.get_submodule(name)
                average = copy.deepcopy(net).requires_grad_(False).eval()
                model.add_module(f"{name}_ema", average)
                self.averages.append((average, net))

    def begin_step(self, *, share: float) -> None:
        """Say which share of the images of the next step over all processes is this process's."""
        self.share = share

    def autocast(self) -> torch.autocast:
        """The context of a forward pass, in the precision of this run. Leave it before `backward`."""
        return autocast(self.device, self.precision)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The weights that the optimizer `name` trains."""
        return [parameter for group in self.optimizers[name].param_groups for parameter in group["params"]]

    def backward(self, name: str, *losses: Tensor) -> None:
        """Accumulate the gradients of the sum of `losses` (scalars) for the weights of one optimizer alone.

        Each process passes the mean over its own images. The graph is freed, so a loss of several independent terms
        takes less memory in several calls.
        """
        if name not in self.step_losses:
            self.optimizers[name].zero_grad()
        loss = sum(losses[1:], start=losses[0])
        scaled = self.scaler.scale(loss)
        scaled.backward(torch.full_like(scaled, self.share), inputs=self.parameters(name))
        self.step_losses[name] = self.step_losses.get(name, 0) + loss.detach() * self.share

    def update(self, name: str) -> None:
        """Step the optimizer `name` with the gradients since its last update, summed over all processes."""
        if name in self.stepped:  # the scaler allows one step of an optimizer between two updates of the scale
            self._update_scale()
        optimizer, loss = self.optimizers[name], self.step_losses.pop(name)
        gradients = [parameter.grad for parameter in self.parameters(name) if parameter.grad is not None]
        distributed.all_reduce([loss, *gradients])
        self.scaler.step(optimizer)
        self.stepped.add(name)
        self.epoch_losses[name] = self.epoch_losses[name] + loss if name in self.epoch_losses else loss

    def end_step(self) -> None:
        """Update the averages and the scale of losses; a model calls it at the end of each step."""
        self._update_scale()
        for average, net in self.averages:
            update_average(average, net, decay=self.ema_decay, updates=self.updates)
        self.updates += 1

    def _update_scale(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.update()
        self.stepped.clear()

    def end_epoch(self) -> None:
        """Step the schedules; plateau watches the loss of the first optimizer, summed over the epoch."""
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(self.epoch_losses[next(iter(self.optimizers))].item())
            else:
                scheduler.step()
        self.epoch_losses = {}

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the next step, to be logged beside the losses: lr_G and so on."""
        return {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def set_lr_halvings(self, halvings: int) -> None:
        """Multiply the learning rates of flags and schedules by 0.5 ** halvings."""
        factor = 0.5 ** (halvings - self.lr_halvings)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] *= factor
            if isinstance(scheduler := self.schedulers[name], LambdaLR):
                scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        self.lr_halvings = halvings

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside the weights of the networks; tensors and plain values only."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "updates": self.updates,
            "scaler": self.scaler.state_dict(),
            "halvings": self.lr_halvings,
            "epoch_losses": self.epoch_losses,
        }

    def load_state_dict(self, state: dict[str, Any], *, epoch: int) -> None:
        """Restore what `state_dict` returned, to resume in `epoch`.

        Learning rate and betas stay those of the flags, except for plateau, whose rate is a result of the run.
        """
        self.set_lr_halvings(state["halvings"])
        for name, optimizer in self.optimizers.items():
            saved, scheduler = state["optimizers"][name], self.schedulers[name]
            optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
            same_policy = scheduler.state_dict().keys() == state["schedulers"][name].keys()
            if isinstance(scheduler, LambdaLR):
                if same_policy:
                    scheduler.load_state_dict(state["schedulers"][name] | {"base_lrs": scheduler.base_lrs})
                set_epoch(scheduler, epoch)
            elif same_policy:
                scheduler.load_state_dict(state["schedulers"][name])
                optimizer.param_groups[0]["lr"] = saved["param_groups"][0]["lr"]
        self.updates = state["updates"]
        if scaler := state.get("scaler"):
            self.scaler.load_state_dict(scaler)
        self.epoch_losses = {name: loss.to(self.device) for name, loss in state["epoch_losses"].items()}


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, *, decay: float, updates: int) -> None:
    """Move weights and batch statistics of `average` towards those of `net`; copy other buffers.

    The decay rises with the number of updates so far, as (1 + n) / (10 + n), up to `decay`; otherwise the random
    initialization would stay in the average for long.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for (name, kept), buffer in zip(average.named_buffers(), net.buffers(), strict=True):
        # the latest statistics do not suit averaged weights: images come out too dark
        kept.lerp_(buffer, 1 - decay) if name.endswith(("running_mean", "running_var")) else kept.copy_(buffer)
