"""Learning-rate schedules (--lr_policy)."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from options.choices import LR_POLICIES


def lr_factor(policy: str, epoch: int, *, n_epochs: int, n_epochs_decay: int, lr_decay_iters: int) -> float:
    """The learning rate in `epoch`, from 1, as a fraction of the initial learning rate.

    Args:
        policy: linear (constant for n_epochs, then equal steps towards 0, which would come after the last epoch), step
            (a tenth after every lr_decay_iters epochs) or cosine (half a cosine wave over the whole run).
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
    """Create a scheduler, to step at the end of each epoch.

    Args:
        policy: see `lr_factor`; or plateau, which multiplies the learning rate by 0.2 when the loss given to its step
            has not fallen by 1% in 5 epochs.
        epoch: number of the first epoch, from 1.

    Raises:
        ValueError: the policy is unknown.
    """
    if policy not in LR_POLICIES:
        raise ValueError(f"policy={policy!r}: choose from {', '.join(LR_POLICIES)}")
    if policy == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.2, threshold=0.01, patience=5)
    lengths = {"n_epochs": n_epochs, "n_epochs_decay": n_epochs_decay, "lr_decay_iters": lr_decay_iters}
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # LambdaLR requires it if it does not start in the first epoch
    return LambdaLR(optimizer, lambda done: lr_factor(policy, done + 1, **lengths), last_epoch=epoch - 2)


def set_epoch(scheduler: LambdaLR, epoch: int) -> None:
    """Set the learning rates to those of `epoch`, from 1."""
    scheduler.last_epoch = epoch - 1
    for group, initial, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = initial * factor(epoch - 1)
