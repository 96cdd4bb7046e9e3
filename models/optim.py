"""Adam, the learning-rate policies and the running average of a generator's weights."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

POLICIES = ("linear", "step", "plateau", "cosine")


def adam(parameters: Iterable[nn.Parameter], *, lr: float, beta1: float = 0.5, beta2: float = 0.999) -> Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) in its fused form."""
    return Adam(parameters, lr=lr, betas=(beta1, beta2), fused=True)


def rate_factor(policy: str, epoch: int, *, n_epochs: int, n_epochs_decay: int, lr_decay_iters: int) -> float:
    """The learning rate in `epoch` (1-based) as a fraction of the full rate.

    linear: full for n_epochs, then falling by equal steps; the last of n_epochs_decay epochs still learns.
    step: a tenth after every lr_decay_iters epochs. cosine: half a cosine wave over the whole run.
    """
    if policy == "linear":
        return 1 - max(0, epoch - n_epochs) / (n_epochs_decay + 1)
    if policy == "step":
        return 0.1 ** ((epoch - 1) // lr_decay_iters)
    assert policy == "cosine"
    return (1 + math.cos(math.pi * (epoch - 1) / (n_epochs + n_epochs_decay))) / 2


def make_scheduler(
    optimizer: Optimizer, policy: str, *, n_epochs: int, n_epochs_decay: int, lr_decay_iters: int, epoch: int = 1
) -> LRScheduler:
    """A scheduler to step at the end of each epoch, where `epoch` is the first. See `rate_factor` for the policies.

    plateau multiplies the rate by 0.2 whenever the loss that its step is given has not fallen by 1% in 5 epochs.
    """
    if policy not in POLICIES:
        raise ValueError(f"--lr_policy {policy}: choose from {', '.join(POLICIES)}")
    if policy == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.2, threshold=0.01, patience=5)
    lengths = {"n_epochs": n_epochs, "n_epochs_decay": n_epochs_decay, "lr_decay_iters": lr_decay_iters}
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # where LambdaLR looks for the full rate when it does not start at the first
    return LambdaLR(optimizer, lambda done: rate_factor(policy, done + 1, **lengths), last_epoch=epoch - 2)


def go_to_epoch(scheduler: LambdaLR, epoch: int) -> None:
    """Set the rate that belongs to `epoch`, 1-based."""
    scheduler.last_epoch = epoch - 1
    for group, full, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = full * factor(epoch - 1)


@torch.no_grad()
def update_ema(average: nn.Module, net: nn.Module, *, decay: float, updates: int) -> None:
    """Move weights and batch statistics of `average` towards those of `net`; other buffers are taken over.

    The decay rises with the number of updates so far, as (1 + n) / (10 + n), up to `decay`: otherwise the random start
    would stay in the average for long.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    for (name, kept), buffer in zip(average.named_buffers(), net.buffers(), strict=True):
        # statistics of the latest weights alone do not suit averaged ones: pictures come out too dark
        kept.lerp_(buffer, 1 - decay) if name.endswith(("running_mean", "running_var")) else kept.copy_(buffer)
