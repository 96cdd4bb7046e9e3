"""Saving where a run is, going on there, and going back there."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.image_folder import DataError
from models.base_model import BaseModel
from options.base_options import Options, from_portable, read_saved
from options.train_options import TrainOptions, changed_flags, continue_command
from util import distributed
from util.checkpoint import load_networks, no_weights
from util.finite import agreed
from util.init_from import init_from
from util.saves import OLD, WEIGHTS, read_state, save_checkpoint, save_label, to_set_aside, whole_save

SAVED = ("epoch", "epoch_images", "total_images", "steps")  # of a Position


@dataclass
class Position:
    """Where a run is: the epoch, from 1; the images of it that are done, and of all; the steps.

    `continued` says that the run was here before, so that its log goes on.
    """

    epoch: int
    epoch_images: int = 0
    total_images: int = 0
    steps: int = 0
    continued: bool = False

    def advance(self, images: int) -> None:
        """A step with so many images is done."""
        self.steps += 1
        self.epoch_images += images
        self.total_images += images

    def next_epoch(self) -> None:
        """An epoch is done."""
        self.epoch += 1
        self.epoch_images = 0


def random_state() -> dict:
    """The states of torch's random generators."""
    state: dict = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def save_run(
    model: BaseModel, position: Position, options: dict[str, Any], run_dir: Path, label: str, *, pictures: int
) -> None:
    """Save weights and all that `resume` goes on with, by the first of all processes; `pictures` are in an epoch."""
    state = {"options": options, "model": model.training_state(), "random": random_state()}
    processes = distributed.gather({"pools": state["model"]["pools"], "random": state["random"]})
    place = {name: getattr(position, name) for name in SAVED} | {"pictures": pictures}
    with agreed():
        if distributed.is_main():
            save_checkpoint(model, run_dir, label, place | state | {"other_processes": processes[1:]})


def take_over(model: BaseModel, state: dict[str, Any]) -> Position:
    """Give `model` and the random generators what a run has saved beside its weights; returns where to start.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: it was saved for another model.
    """
    start = Position(**{name: state[name] for name in SAVED}, continued=True)
    saved = [{"pools": state["model"]["pools"], "random": state["random"]}, *state["other_processes"]]
    new = {"pools": {name: [] for name in model.pools}, "random": random_state()}  # of a process that joins
    own = [*saved, new][min(distributed.rank(), len(saved))]
    model.load_training_state(state["model"] | {"pools": own["pools"]}, epoch=start.epoch)
    torch.set_rng_state(own["random"]["cpu"])
    if "cuda" in own["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(own["random"]["cuda"][: torch.cuda.device_count()])
    if len(saved) != distributed.count():
        print(f"saved by {len(saved)} processes, continued by {distributed.count()}: not exactly the same run any more")
    return start


def roll_back(model: BaseModel, run_dir: Path) -> Position:
    """Give `model` the latest save of its run, but half the learning rate of now; returns where to start."""
    halvings, state = model.halvings, read_state(run_dir, "latest")
    if state is None:
        raise ValueError(f"{run_dir} holds no save to go back to")
    load_networks(model, run_dir, "latest")
    start = take_over(model, state)
    model.halve_rates(halvings + 1)
    return start


def saved_state(run_dir: Path, flags: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run goes on with beside its weights. ValueError if there are neither weights nor this."""
    label = save_label(flags["epoch"], flags["load_iter"])
    state = read_state(run_dir, label)
    if state is None and not any(run_dir.glob(WEIGHTS.format(label=glob.escape(label), network="*"))):
        raise no_weights(run_dir, WEIGHTS.format(label=label, network="*"))
    return state


def parse_options(argv: Sequence[str] | None, run_dir: Path, state: dict[str, Any] | None) -> Options:
    """The options of a run that goes on: those of its state, and what the command line changes, if it may."""
    saved = from_portable(state["options"]) if state and "options" in state else read_saved(run_dir)
    opt = TrainOptions().parse(argv, saved)
    if changed := changed_flags(opt, saved):
        if not opt.override:
            message = f"--continue_train with other flags than before: {', '.join(changed)}"
            raise DataError(f"{message}; leave them out or add --override", mend=["--override"])
        print(f"going on with other flags: {', '.join(changed)}")
    return opt


def resume(opt: Options, model: BaseModel, pictures: int, *, run_dir: Path, state: dict[str, Any] | None) -> Position:
    """Where to start with so many pictures an epoch.

    With --continue_train, `model` and the random generators take over what the run has saved.
    """
    start = Position(opt.epoch_count)
    label = save_label(opt.epoch, opt.load_iter)
    if not opt.continue_train:
        if label != "latest" and not opt.init_from:
            raise ValueError("--epoch and --load_iter choose a save: they need --continue_train or --init_from")
        if any(run_dir.glob("latest_net_*.pth")):
            kept = "it" if to_set_aside(run_dir) else "the longer one before it" if whole_save(run_dir, OLD) else ""
            advice = f"; to go on with {kept}: {continue_command(opt)} --epoch {OLD}" if kept else ""
            print(f"{run_dir} holds a run already, which this one replaces{advice}")
        if opt.init_from:
            start_from(opt, model, run_dir)
        return start
    filled = load_networks(model, run_dir, label)
    if state is None or not filled:
        print(f"only weights go on: optimizers and schedules start anew, in epoch {opt.epoch_count}")
        return start
    try:
        start = take_over(model, state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{label}_state.pth in {run_dir} does not belong to this model: {error}") from error
    if opt.given("epoch_count") and opt.epoch_count != start.epoch:
        raise ValueError(
            f"--epoch_count {opt.epoch_count}: the saved state goes on in epoch {start.epoch}; leave it out"
        )
    if start.epoch_images >= pictures:
        raise ValueError(
            f"the run has seen {start.epoch_images} pictures of an epoch, but now there are {pictures}: "
            "continue with those it was started with, or start a new run"
        )
    if (before := state.get("pictures", pictures)) != pictures:
        print(f"saved with {before} pictures, continued with {pictures}: not exactly the same run any more")
    place = f", {start.epoch_images} of the {pictures} of this epoch" if start.epoch_images else ""
    print(f"continuing {opt.name} in epoch {start.epoch} after {start.total_images} images{place}")
    return start


def start_from(opt: Options, model: BaseModel, run_dir: Path) -> None:
    """Load what fits of the weights that --init_from names, and list the rest."""
    source = Path(opt.init_from)
    if not source.exists():
        source = Path(opt.checkpoints_dir) / opt.init_from
    if not source.exists():
        raise ValueError(f"--init_from {opt.init_from}: no such file or folder, nor a run in {opt.checkpoints_dir}")
    if source.resolve() == run_dir.resolve():
        raise ValueError(f"--init_from {source}: the new run would overwrite it; choose another --name")
    if source.is_file() and save_label(opt.epoch, opt.load_iter) != "latest":
        raise ValueError(f"--init_from {source} is one file: --epoch and --load_iter choose among those of a run")
    trained = read_saved(source if source.is_dir() else source.parent).get("direction", opt.direction)
    print(init_from(model, source, save_label(opt.epoch, opt.load_iter), reverse=trained != opt.direction))
