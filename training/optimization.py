"""Optimization of the networks of a model: Adam, mixed precision, gradients, schedules and averaged weights."""

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
from util.device import autocast, choose_precision


def create_optimization(opt: Any, device: torch.device) -> "Optimization":
    """Create the optimization that `model.prepare_training` takes, from flags.

    Raises:
        ValueError: the device does not support the --precision.
    """
    if opt.precision == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision fp16 is for NVIDIA GPUs, not for {device.type}: use bf16 or fp32")
    return Optimization(
        device,
        precision=choose_precision(opt.precision, device),
        betas=(opt.beta1, opt.beta2),
        ema_decay=opt.ema_decay,
        ema_halflife=opt.ema_halflife,
        lr_policy=opt.lr_policy,
        n_epochs=opt.n_epochs,
        n_epochs_decay=opt.n_epochs_decay,
        lr_decay_iters=opt.lr_decay_iters,
        first_epoch=opt.epoch_count,
        by_time=opt.train_minutes > 0,
        cuda_graphs=opt.cuda_graphs,
    )


class Optimization:
    """The optimizers of a model, with schedules, loss scaling and averaged weights. A model calls it in its `step`.

    Args:
        device: of the networks.
        precision: of forward passes: fp32, bf16, or fp16, for which losses are scaled against underflow.
        betas: of Adam (Kingma and Ba 2015, arXiv:1412.6980).
        ema_decay: of averaged weights, see `ramped_decay`; 0 for none.
        ema_halflife: of averaged weights, in images, see `halflife_decay`; it replaces ema_decay unless it is 0.
        lr_policy: see `training.schedules.make_scheduler`, as for the next three.
        n_epochs: epochs at the full learning rate.
        n_epochs_decay: epochs after these.
        lr_decay_iters: epochs between steps of the policy step.
        first_epoch: number of the first epoch, from 1.
        by_time: the run may end before its epochs do, so learning rates follow its progress.
        cuda_graphs: compiled networks replay CUDA graphs, which overwrite the results of the step before.

    Raises:
        ValueError: the policy is unknown, or has no schedule that could follow the progress.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        precision: str = "fp32",
        betas: tuple[float, float] = (0.5, 0.999),
        ema_decay: float = 0.0,
        ema_halflife: float = 0.0,
        lr_policy: str = "linear",
        n_epochs: int = 100,
        n_epochs_decay: int = 100,
        lr_decay_iters: int = 50,
        first_epoch: int = 1,
        by_time: bool = False,
        cuda_graphs: bool = False,
    ):
        if by_time and lr_policy == "plateau":
            raise ValueError("lr_policy=plateau follows the losses, not the time: choose another one")
        self.device, self.precision, self.betas = device, precision, betas
        self.ema_decay, self.ema_halflife = ema_decay, ema_halflife
        self.schedule = partial(
            make_scheduler, policy=lr_policy, n_epochs=n_epochs, n_epochs_decay=n_epochs_decay,
            lr_decay_iters=lr_decay_iters, epoch=first_epoch,
        )  # fmt: skip
        self.by_time, self.epochs = by_time, n_epochs + n_epochs_decay
        self.cuda_graphs = cuda_graphs
        self.optimizers: dict[str, Optimizer] = {}
        self.schedulers: dict[str, LRScheduler] = {}
        self.averages: list[WeightAverage] = []
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.updates = 0
        self.step_images, self.images_before = 1, 0  # over all processes, in this step and before it
        self.lr_halvings = 0  # after non-finite losses, in addition to the schedules
        self.share = 1.0  # of this process in the images of a step over all processes
        self.progress = 0.0  # of the run, 0 to 1
        self.step_losses: dict[str, Tensor] = {}  # since the last update
        self.stepped: set[str] = set()  # optimizers, since the last update of the loss scale
        self.epoch_losses: dict[str, Tensor] = {}

    def add(self, name: str, nets: Iterable[nn.Module], *, lr: float) -> None:
        """Create the optimizer `name` for the weights of `nets`, with the initial learning rate `lr`."""
        parameters = [parameter for net in nets for parameter in net.parameters()]
        self.optimizers[name] = Adam(parameters, lr=lr, betas=self.betas, fused=True)
        self.schedulers[name] = self.schedule(self.optimizers[name])

    def add_averages(self, model: nn.Module, *names: str) -> None:
        """Keep an exponential moving average of each named network as the child `{name}_ema`, if a decay is given."""
        if self.ema_decay or self.ema_halflife:
            for name in names:
                net = model.get_submodule(name)
                average = copy.deepcopy(net).requires_grad_(False).eval()
                model.add_module(f"{name}_ema", average)
                self.averages.append(WeightAverage(average, net))

    def begin_step(self, *, share: float, progress: float, images: int, images_before: int) -> None:
        """Prepare the next step.

        Args:
            share: of this process in the images of the step over all processes.
            progress: share of the run that is done, 0 to 1. With `by_time`, learning rates are those of the epoch that
                this share falls into.
            images: of the step, over all processes.
            images_before: images that the run has seen before this step.
        """
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        self.share, self.progress, self.step_images, self.images_before = share, progress, images, images_before
        if self.by_time:
            for scheduler in self.schedulers.values():
                assert isinstance(scheduler, LambdaLR)
                set_epoch(scheduler, min(1 + int(progress * self.epochs), self.epochs))

    def autocast(self) -> torch.autocast:
        """A context for forward passes in the precision of the run. Leave it before `backward`."""
        return autocast(self.device, self.precision)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The weights of the optimizer `name`."""
        return [parameter for group in self.optimizers[name].param_groups for parameter in group["params"]]

    def backward(self, name: str, *losses: Tensor, share: float = 1.0) -> None:
        """Accumulate the gradients of the sum of `losses` (scalars) for the weights of one optimizer only.

        Each process passes the mean loss over its own images. Autograd graphs are freed, so several calls for
        independent losses take less memory than one.

        Args:
            share: of the images that the losses are about in the batch of this process.
        """
        share *= self.share
        if name not in self.step_losses:
            if name in self.stepped:  # GradScaler allows one step of an optimizer per update of the scale
                self._update_scale()
            self.optimizers[name].zero_grad()
        loss = sum(losses[1:], start=losses[0])
        scaled = self.scaler.scale(loss)
        scaled.backward(torch.full_like(scaled, share), inputs=self.parameters(name))
        self.step_losses[name] = self.step_losses.get(name, 0) + loss.detach() * share

    def update(self, name: str) -> None:
        """Step the optimizer `name` with the gradients since its last step, summed over all processes."""
        optimizer, loss = self.optimizers[name], self.step_losses.pop(name)
        gradients = [parameter.grad for parameter in self.parameters(name) if parameter.grad is not None]
        distributed.all_reduce([loss, *gradients])
        self.scaler.step(optimizer)
        self.stepped.add(name)
        self.epoch_losses[name] = self.epoch_losses[name] + loss if name in self.epoch_losses else loss

    def end_step(self) -> None:
        """Update the averages and the loss scale. A model calls it at the end of each training step."""
        self._update_scale()
        if self.ema_halflife:
            seen = self.images_before + self.step_images
            decay = halflife_decay(self.ema_halflife, images=self.step_images, seen=seen)
        else:
            decay = ramped_decay(self.ema_decay, updates=self.updates)
        for average in self.averages:
            average.update(decay=decay)
        self.updates += 1

    def _update_scale(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.update()
        self.stepped.clear()

    def end_epoch(self) -> None:
        """Step the schedules. Plateau uses the loss of the first optimizer, summed over the epoch."""
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(self.epoch_losses[next(iter(self.optimizers))].item())
            else:
                scheduler.step()
        self.epoch_losses = {}

    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the next step, to log with the losses, by names such as lr_G."""
        return {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def loss_scale(self) -> float | None:
        """The factor of fp16 losses; None in other precisions. It is read from the GPU, which takes a moment."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def set_lr_halvings(self, halvings: int) -> None:
        """Multiply the learning rates of flags and schedules by 0.5**halvings."""
        factor = 0.5 ** (halvings - self.lr_halvings)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] *= factor
            if isinstance(scheduler := self.schedulers[name], LambdaLR):
                scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]
        self.lr_halvings = halvings

    def state_dict(self) -> dict[str, Any]:
        """The state that resuming needs in addition to weights, as tensors and plain values."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "updates": self.updates,
            "scaler": self.scaler.state_dict(),
            "halvings": self.lr_halvings,
            "epoch_losses": self.epoch_losses,
        }

    def load_state_dict(self, state: dict[str, Any], *, epoch: int) -> None:
        """Restore the result of `state_dict`, to resume in `epoch`.

        Learning rates and betas stay those of the flags, except for plateau, whose learning rate depends on the losses.

        Raises:
            KeyError, ValueError, TypeError, RuntimeError: the state belongs to another model.
        """
        self.set_lr_halvings(state["halvings"])
        for name, optimizer in self.optimizers.items():
            saved, scheduler = state["optimizers"][name], self.schedulers[name]
            optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
            match_memory_format(optimizer)
            same_policy = isinstance(scheduler, ReduceLROnPlateau) == ("best" in state["schedulers"][name])
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


def match_memory_format(optimizer: Optimizer) -> None:
    """Give averages of gradients the memory format of their weights, which fused Adam needs on GPUs.

    They have another one if the checkpoint is from another device, or from a run that was not compiled.
    """
    for weight, averages in optimizer.state.items():
        for name, average in averages.items():
            if isinstance(average, Tensor) and average.shape == weight.shape and average.stride() != weight.stride():
                averages[name] = torch.empty_like(weight).copy_(average)


def ramped_decay(decay: float, *, updates: int) -> float:
    """The decay of a moving average after n updates: (1 + n) / (10 + n), at most `decay`.

    So the initial random weights do not stay in the average for long.
    """
    return min(decay, (1 + updates) / (10 + updates))


def halflife_decay(halflife: float, *, images: int, seen: int) -> float:
    """The decay of a moving average in a step on `images` images that halves older weights in `halflife` images.

    The half-life is at most a twentieth of the images `seen` so far, those of the step included. So the average forgets
    the initial random weights, and suits a short run too.

    Reference: Karras et al. 2020, Training Generative Adversarial Networks with Limited Data, arXiv:2006.06676, whose
    code has this ramp.
    """
    return 0.5 ** (images / min(halflife, 0.05 * seen))


class WeightAverage:
    """A moving average of a network.

    Args:
        average: a copy of the network.
        net: the network in training.
    """

    def __init__(self, average: nn.Module, net: nn.Module):
        self.average, self.net = average, net
        # Collected once: walking through all modules takes longer than the update.
        self.weights: list[Tensor] = list(average.parameters())
        self.sources: list[Tensor] = list(net.parameters())
        self.has_buffers = next(net.buffers(), None) is not None

    @torch.no_grad()
    def update(self, *, decay: float) -> None:
        """Move weights and batch statistics towards those of the network, and copy other buffers."""
        torch._foreach_lerp_(self.weights, self.sources, 1 - decay)
        if self.has_buffers:
            # Looked up anew: unlike weights, buffers may be replaced, as by Module.to.
            kept, latest = dict(self.average.named_buffers()), dict(self.net.named_buffers())
            # The latest batch statistics do not suit averaged weights: images would be too dark.
            means = [name for name in kept if name.endswith(("running_mean", "running_var"))]
            others = [name for name in kept if name not in means]
            if means:
                torch._foreach_lerp_([kept[name] for name in means], [latest[name] for name in means], 1 - decay)
            if others:
                torch._foreach_copy_([kept[name] for name in others], [latest[name] for name in others])
