"""What every model shares: optimizers and schedules, the update of one group of networks, the state that is saved."""

import copy
from argparse import ArgumentParser
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from data.base_dataset import BaseDataset
from models import optim
from models.networks.attention import attention_blocks
from util import distributed
from util.image_pool import ImagePool

if TYPE_CHECKING:
    from util.attention import AttentionMap

Images = dict[str, Tensor]
Losses = dict[str, Tensor]
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class BaseModel(nn.Module):
    """A set of networks and how they are trained.

    Every child module is a network, saved under its own name: netG_A is latest_net_G_A.pth. `__init__(opt)` builds what
    inference needs and `prepare_training(opt)` the rest. A subclass writes these two, `forward` and `step`.
    """

    results_title = "{A} → {B}"  # of the results page, with the names of the domains filled in
    test_dataset_mode = ""  # for test.py, where it is not the one of training

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: dict[str, Optimizer] = {}
        self.schedulers: dict[str, LRScheduler] = {}
        self.pools: dict[str, ImagePool] = {}
        self.ema_decay = 0.0
        self.updates = 0
        self.halvings = 0  # of the learning rates, beside their schedules
        self.epoch_losses: dict[str, Tensor] = {}
        self.low_precision: torch.dtype | None = None  # what networks compute in, where not float32
        self.scaler = torch.amp.GradScaler(enabled=False)
        self.backward_losses: dict[str, Tensor] = {}  # since the last update
        self.share = 1.0  # of this process in the loss of a step over all; set before each step

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the model's own flags and defaults to the parser and return it."""
        return parser

    def add_discriminators(self, opt: Any) -> None:
        """Build the discriminators, if the model has any, on its device; testing shows their attention."""

    def prepare_training(self, opt: Any) -> None:
        """Build discriminators, losses and optimizers; subclasses call this first, on the device they train on."""
        self.set_precision(opt.precision)
        self.ema_decay = opt.ema_decay

    def set_precision(self, precision: str) -> None:
        """Compute networks in fp32, bf16 or, on NVIDIA GPUs alone, fp16, where losses are scaled against underflow."""
        if precision == "fp16" and self.device.type != "cuda":
            raise ValueError(f"--precision fp16 is for NVIDIA GPUs, not for {self.device.type}: use bf16 or fp32")
        self.low_precision = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """One training step on a batch of the loader. Returns losses (scalars) and images (B, C, H, W) in [-1, 1]."""
        raise TypeError(f"{type(self).__name__} cannot be trained")

    def gammas(self) -> Losses:
        """How much each attention block adds, to be logged beside the losses: gamma_G_A_block5 and so on."""
        return {
            f"gamma_{name.removeprefix('net')}_{stage}": block.gamma.detach()[0]
            for name, net in self.named_children()
            if not name.endswith("_ema")
            for stage, block in attention_blocks(net).items()
        }

    def preview(self, images: Images) -> Images:
        """The pictures (N, C, H, W) in [-1, 1] to show for a step that returned `images`.

        Draws no random numbers. Of several processes only the first calls it.
        """
        return images

    def overview(self, dataset: BaseDataset) -> Images:
        """Pictures (C, H, W) in [-1, 1] of a whole data set, for the top of the results page: caption -> picture."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parameters()).device

    def inputs(self, batch: dict, *names: str) -> list[Tensor]:
        """The named images of a batch, (B, C, H, W) in [-1, 1], on the model's device."""
        if missing := [name for name in names if name not in batch]:
            raise ValueError(
                f"{type(self).__name__} needs {', '.join(missing)} from its data: choose another --dataset_mode"
            )
        return [batch[name].to(self.device, non_blocking=True) for name in names]

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: half precision if --precision says so. Leave it before `backward`."""
        return torch.autocast(self.device.type, self.low_precision, enabled=self.low_precision is not None)

    def add_optimizer(self, name: str, nets: list[nn.Module], opt: Any, *, lr: float) -> None:
        """Let `backward(name, loss)` and `update(name)` train the weights of `nets`, at the full rate `lr`."""
        parameters = [parameter for net in nets for parameter in net.parameters()]
        self.optimizers[name] = optim.adam(parameters, lr=lr, beta1=opt.beta1, beta2=opt.beta2)
        self.schedulers[name] = optim.make_scheduler(
            self.optimizers[name],
            opt.lr_policy,
            n_epochs=opt.n_epochs,
            n_epochs_decay=opt.n_epochs_decay,
            lr_decay_iters=opt.lr_decay_iters,
            epoch=opt.epoch_count,
        )

    def trained(self, name: str) -> list[nn.Parameter]:
        """The weights that the optimizer `name` trains."""
        return [parameter for group in self.optimizers[name].param_groups for parameter in group["params"]]

    def backward(self, name: str, *losses: Tensor) -> None:
        """Add up the gradients of all losses (scalars) since the last `update`, for the weights of one optimizer alone.

        Of several processes, each gives the mean over its own pictures. What was kept for this pass is freed: a loss
        that falls into parts takes less memory in several calls.
        """
        if name not in self.backward_losses:
            self.optimizers[name].zero_grad()
        loss = sum(losses[1:], start=losses[0])
        scaled = self.scaler.scale(loss)
        scaled.backward(torch.full_like(scaled, self.share), inputs=self.trained(name))
        self.backward_losses[name] = self.backward_losses.get(name, 0) + loss.detach() * self.share

    def update(self, name: str) -> None:
        """One step of the optimizer `name` down the gradients of `backward`; of several processes, down their sum."""
        optimizer, loss = self.optimizers[name], self.backward_losses.pop(name)
        gradients = [parameter.grad for parameter in self.trained(name) if parameter.grad is not None]
        distributed.add_up([loss, *gradients])
        self.scaler.step(optimizer)
        self.epoch_losses[name] = self.epoch_losses[name] + loss if name in self.epoch_losses else loss

    def end_epoch(self) -> None:
        """Step the learning-rate schedules; plateau judges the first optimizer's loss, summed over the epoch."""
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(self.epoch_losses[next(iter(self.optimizers))].item())
            else:
                scheduler.step()
        self.epoch_losses = {}

    def learning_rates(self) -> dict[str, float]:
        """Those of the next step, to be logged beside the losses: lr_G and so on."""
        return {f"lr_{name}": optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}

    def halve_rates(self, times: int) -> None:
        """Make the learning rates those of the flags and schedules, halved so many times."""
        factor = 0.5 ** (times - self.halvings)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] *= factor
            if isinstance(scheduler := self.schedulers[name], LambdaLR):
                scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        self.halvings = times

    def add_ema(self, *names: str) -> None:
        """Keep an exponential moving average of the named networks, as networks `{name}_ema`, if --ema_decay is set."""
        if self.ema_decay:
            for name in names:
                average = copy.deepcopy(self.get_submodule(name)).requires_grad_(False).eval()
                self.add_module(f"{name}_ema", average)

    def end_step(self) -> None:
        """Move the averages towards their networks, and the scale of losses; to call at the end of each step."""
        if self.scaler.is_enabled():
            self.scaler.update()
        for name, average in self.named_children():
            if name.endswith("_ema"):
                net = self.get_submodule(name.removesuffix("_ema"))
                optim.update_ema(average, net, decay=self.ema_decay, updates=self.updates)
        self.updates += 1

    def summary(self, *, verbose: bool = False) -> str:
        """A line a network with its number of weights; with `verbose`, its layers."""
        lines = []
        for name, net in self.named_children():
            weights = sum(parameter.numel() for parameter in net.parameters())
            lines += [f"{name}: {weights / 1e6:.3f} M weights", *([str(net)] if verbose else [])]
        return "\n".join([*lines, f"computing on {self.device}"])

    def check_sizes(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Raise ValueError if a network cannot take pictures of these (width, height); only shapes are computed."""
        for name, net in self.named_children():
            shapes_only = copy.deepcopy(net).to("meta")
            channels = next(weight for weight in net.parameters() if weight.dim() == 4).shape[1]
            advice = (
                "use --preprocess resize_and_crop; --crop_size: multiples of 4 for ResNets, of 128 or 256 for U-Nets"
            )
            if name.startswith("netD"):
                advice = "use larger ones, or fewer layers: --netD n_layers --n_layers_D 1"
            for width, height in sizes:
                try:
                    made = shapes_only(torch.empty(1, channels, height, width, device="meta")).shape[2:]
                except (RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"{name} cannot take pictures of {width}x{height} pixels: {advice} ({error})"
                    ) from error
                if name.startswith("netG") and made != (height, width):
                    raise ValueError(f"{name} makes {made[1]}x{made[0]} pixels of {width}x{height}: {advice}")

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """Labels of the files that may hold the weights of network `name`, best first.

        `reverse` asks for the other direction than the run was trained in; ValueError if there is none.
        """
        if reverse:
            raise ValueError(f"{type(self).__name__} translates in one direction: leave out --direction")
        return [name.removeprefix("net")]

    def translators(self) -> dict[str, tuple[str, nn.Module]]:
        """Generators whose attention the pages show: name there -> (label of the image to show it over, network)."""
        return {}

    def judges(self) -> dict[str, tuple[tuple[str, ...], nn.Module]]:
        """Discriminators whose attention the pages show, where they have been built.

        Name there -> (labels of the images that the network takes, joined channel by channel, network); it is shown
        over the last of these.
        """
        return {}

    def watch(self) -> AbstractContextManager["list[AttentionMap]"]:
        """The context whose list receives where the attention blocks of translators and judges look in it."""
        from util.attention import watch  # it imports from this package

        judges = {name: (labels[-1], net) for name, (labels, net) in self.judges().items()}
        return watch(self.translators() | judges)

    def run_judges(self, images: Images) -> None:
        """Run the judges on images (B, C, H, W) in [-1, 1], to watch them."""
        for labels, net in self.judges().values():
            net(torch.cat([images[label] for label in labels], 1))

    def run_translators(self, images: Images) -> None:
        """Run the translators on images (B, C, H, W) in [-1, 1] that `preview` returned, to watch them."""
        for label, net in self.translators().values():
            net(images[label])

    @torch.no_grad()
    def attention(self, images: Images) -> "list[AttentionMap]":
        """Where the attention blocks look in the first of the images that `preview` returned, batches of one.

        The networks run in eval mode: no random number is drawn and none of their values changes.
        """
        modes = {module: module.training for module in self.modules()}
        first = {label: image[:1] for label, image in images.items()}
        with self.autocast(), self.eval().watch() as maps:
            self.run_translators(first)
            self.run_judges(first)
        for module, training in modes.items():
            module.training = training
        return maps

    def training_state(self) -> dict[str, Any]:
        """All that continuing needs beside the networks' weights; tensors and plain values only."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "pools": {name: [image.cpu() for image in pool.images] for name, pool in self.pools.items()},
            "updates": self.updates,
            "scaler": self.scaler.state_dict(),
            "halvings": self.halvings,
            "epoch_losses": self.epoch_losses,
        }

    def load_training_state(self, state: dict[str, Any], *, epoch: int) -> None:
        """Take over what `training_state` returned, to go on in `epoch`.

        Learning rate and betas stay those of the flags, but for plateau, whose rate is a result of the run.
        """
        self.halve_rates(state["halvings"])
        for name, optimizer in self.optimizers.items():
            saved, scheduler = state["optimizers"][name], self.schedulers[name]
            optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})
            same_policy = scheduler.state_dict().keys() == state["schedulers"][name].keys()
            if isinstance(scheduler, LambdaLR):
                if same_policy:
                    scheduler.load_state_dict(state["schedulers"][name] | {"base_lrs": scheduler.base_lrs})
                optim.go_to_epoch(scheduler, epoch)
            elif same_policy:
                scheduler.load_state_dict(state["schedulers"][name])
                optimizer.param_groups[0]["lr"] = saved["param_groups"][0]["lr"]
        for name, pool in self.pools.items():
            pool.images = [image.to(self.device) for image in state["pools"][name]]
        self.updates = state["updates"]
        if scaler := state.get("scaler"):
            self.scaler.load_state_dict(scaler)
        self.epoch_losses = {name: loss.to(self.device) for name, loss in state["epoch_losses"].items()}
