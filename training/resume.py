"""The position and state of a run, and resuming from a checkpoint."""

import glob
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.base_model import BaseModel
from models.feature_queue import FeatureQueue
from models.image_pool import ImagePool
from models.weights import load_networks, no_weights
from options.base_options import Options, from_portable, read_saved
from options.train_options import TrainOptions, changed_flags, run_flags
from training.checkpoints import read_state, replaced_checkpoint, save_checkpoint
from training.finite import all_or_none
from training.init_from import init_from
from training.optimization import Optimization
from util import distributed
from util.checkpoint_files import OLD, WEIGHTS, checkpoint_label, complete_checkpoint
from util.errors import RemediedError

log = logging.getLogger(__name__)

SAVED = ("epoch", "epoch_images", "total_images", "steps", "seconds")  # of a Position


@dataclass
class Position:
    """The position of a run.

    Attributes:
        epoch: the current epoch, from 1.
        epoch_images: images seen in this epoch.
        total_images: images seen in all epochs.
        steps: training steps.
        seconds: time of training, counted in a run of --train_minutes.
        resumed: whether the run was resumed, so that logs are appended to.
    """

    epoch: int
    epoch_images: int = 0
    total_images: int = 0
    steps: int = 0
    seconds: float = 0.0
    resumed: bool = False

    def advance(self, images: int) -> None:
        """Count a step on this many images."""
        self.steps += 1
        self.epoch_images += images
        self.total_images += images

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch += 1
        self.epoch_images = 0


def resume_command(opt: Options) -> str:
    """The command that resumes a run, with the same number of processes."""
    return f"{distributed.launcher()} train.py {run_flags(opt)} --continue_train"


def random_state() -> dict:
    """The states of torch's RNGs, of the CPU and of the GPU in use."""
    state: dict = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def pools_and_queues(model: BaseModel) -> dict[str, ImagePool | FeatureQueue]:
    """The image pools and feature queues of a model, by name."""
    return {**model.pools, **model.queues}


def training_state(model: BaseModel, optimization: Optimization) -> dict[str, Any]:
    """The state that resuming needs in addition to weights and random state, as tensors and plain values."""
    pools = {name: [image.cpu() for image in pool.images] for name, pool in pools_and_queues(model).items()}
    return optimization.state_dict() | {"pools": pools}


def load_training_state(model: BaseModel, optimization: Optimization, state: dict[str, Any], *, epoch: int) -> None:
    """Restore the result of `training_state`, to resume in `epoch`."""
    optimization.load_state_dict(state, epoch=epoch)
    for name, pool in pools_and_queues(model).items():
        pool.images = [image.to(model.device) for image in state["pools"][name]]


def save_run(
    model: BaseModel,
    optimization: Optimization,
    position: Position,
    options: dict[str, Any],
    run_dir: Path,
    label: str,
    *,
    epoch_size: int,
    threads: dict[str, Any],
    best: dict[str, Any] | None = None,
) -> None:
    """Save a checkpoint: weights and the state that `resume` needs. Rank 0 writes it.

    Args:
        epoch_size: images in an epoch.
        threads: the state of the ThreadChooser.
        best: the state of the Evaluator, if there is one.
    """
    state = {"options": options, "model": training_state(model, optimization), "random": random_state()}
    processes = distributed.gather({"pools": state["model"]["pools"], "random": state["random"]})
    place = {name: getattr(position, name) for name in SAVED} | {
        "epoch_size": epoch_size,
        "threads": threads,
        "best": best,
    }
    with all_or_none():
        if distributed.is_main():
            save_checkpoint(model, run_dir, label, place | state | {"other_processes": processes[1:]})


def restore(model: BaseModel, optimization: Optimization, state: dict[str, Any]) -> Position:
    """Restore the state of a checkpoint, including the random state but not the weights. Returns the position.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: the state belongs to another model.
    """
    start = Position(**{name: state[name] for name in SAVED if name in state}, resumed=True)
    saved = [{"pools": state["model"]["pools"], "random": state["random"]}, *state["other_processes"]]
    new = {"pools": {name: [] for name in pools_and_queues(model)}, "random": random_state()}  # of a process that joins
    own = [*saved, new][min(distributed.rank(), len(saved))]
    load_training_state(model, optimization, state["model"] | {"pools": own["pools"]}, epoch=start.epoch)
    torch.set_rng_state(own["random"]["cpu"])
    if "cuda" in own["random"] and model.device.type == "cuda":
        torch.cuda.set_rng_state(own["random"]["cuda"], model.device)
    if len(saved) != distributed.world_size():
        log.warning(
            "saved by %d processes, resumed by %d: not bit-identical to the run so far",
            len(saved),
            distributed.world_size(),
        )
    return start


def roll_back(model: BaseModel, optimization: Optimization, run_dir: Path) -> Position:
    """Restore the latest checkpoint of a run with half the current learning rates. Returns the position."""
    halvings, state = optimization.lr_halvings, read_state(run_dir, "latest")
    if state is None:
        raise ValueError(f"{run_dir} has no checkpoint to roll back to")
    load_networks(model, run_dir, "latest")
    start = restore(model, optimization, state)
    optimization.set_lr_halvings(halvings + 1)
    return start


def saved_state(run_dir: Path, flags: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the checkpoint to resume; None if there are only weights. ValueError if there is no checkpoint."""
    label = checkpoint_label(flags["epoch"], flags["load_iter"])
    state = read_state(run_dir, label)
    if state is None and not any(run_dir.glob(WEIGHTS.format(label=glob.escape(label), network="*"))):
        raise no_weights(run_dir, WEIGHTS.format(label=label, network="*"))
    return state


def parse_options(argv: Sequence[str] | None, run_dir: Path, state: dict[str, Any] | None) -> Options:
    """The options of a resumed run: those of its state, changed by the command line.

    Raises:
        RemediedError: the command line changes flags that have to stay, without --override.
    """
    saved = from_portable(state["options"]) if state and "options" in state else read_saved(run_dir)
    opt = TrainOptions().parse(argv, saved)
    if changed := changed_flags(opt, saved):
        if not opt.override:
            message = f"--continue_train with other flags than before: {', '.join(changed)}"
            raise RemediedError(f"{message}. Omit them, or override the saved ones.", remedy={"override": True})
        log.info("resuming with other flags: %s", ", ".join(changed))
    return opt


def resume(
    opt: Options,
    model: BaseModel,
    optimization: Optimization,
    *,
    epoch_size: int,
    run_dir: Path,
    state: dict[str, Any] | None,
) -> Position:
    """Prepare the start of training and return the position.

    With --continue_train, weights, optimization and random state are restored from the checkpoint. With --init_from,
    weights are loaded.

    Args:
        epoch_size: images in an epoch.
        run_dir: the folder of the run.
        state: the result of `saved_state`.

    Raises:
        ValueError: the checkpoint does not suit the model, the dataset or the flags.
    """
    if not opt.continue_train:
        start_new(opt, model, run_dir)
        return Position(opt.epoch_count)
    label = checkpoint_label(opt.epoch, opt.load_iter)
    if state is not None:
        check_networks(model, state, opt.name)
    filled = load_networks(model, run_dir, label)
    if state is None or not filled:
        kept = f"; the run so far stays as --epoch {OLD}" if label == "latest" and replaced_checkpoint(run_dir) else ""
        log.info("only the weights are resumed: all else starts over, in epoch %d%s", opt.epoch_count, kept)
        return Position(opt.epoch_count)
    try:
        start = restore(model, optimization, state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{label}_state.pth in {run_dir} does not belong to this model: {error}") from error
    if opt.given("epoch_count") and opt.epoch_count != start.epoch:
        raise ValueError(f"--epoch_count {opt.epoch_count}: the checkpoint resumes in epoch {start.epoch}; omit it")
    if start.epoch_images >= epoch_size:
        raise ValueError(
            f"the run has seen {start.epoch_images} images of an epoch, but now there are {epoch_size}: "
            "resume with the dataset that it was started with, or start a new run"
        )
    if (before := state.get("epoch_size", epoch_size)) != epoch_size:
        log.warning("saved with %d images, resumed with %d: not bit-identical to the run so far", before, epoch_size)
    place = f", {start.epoch_images} of the {epoch_size} of this epoch" if start.epoch_images else ""
    log.info("resuming %s in epoch %d after %d images%s", opt.name, start.epoch, start.total_images, place)
    return start


def start_new(opt: Options, model: BaseModel, run_dir: Path) -> None:
    """Load the weights of --init_from, if it is set, and say which run in `run_dir` the new one replaces.

    Raises:
        ValueError: the flags choose a checkpoint to resume, or the weights do not suit the model.
    """
    if checkpoint_label(opt.epoch, opt.load_iter) != "latest" and not opt.init_from:
        raise ValueError("--epoch and --load_iter choose a checkpoint: they need --continue_train or --init_from")
    if any(run_dir.glob("latest_net_*.pth")):
        if replaced_checkpoint(run_dir):
            kept = "it"
        else:
            kept = "the longer run before it" if complete_checkpoint(run_dir, OLD) else ""
        advice = f"; to resume {kept}: {resume_command(opt)} --epoch {OLD}" if kept else ""
        log.info("%s already holds a run, which this one replaces%s", run_dir, advice)
    if opt.init_from:
        start_from(opt, model, run_dir)


def check_networks(model: BaseModel, state: dict[str, Any], name: str) -> None:
    """Raise ValueError if the state of a checkpoint of the run `name` is one of other networks than the model has."""
    saved = {Path(file).stem.partition("_net_")[2].removesuffix("_ema") for file in state.get("files", ())}
    wanted = {child.removeprefix("net").removesuffix("_ema") for child, _ in model.named_children()}
    if saved and saved != wanted:
        raise RemediedError(
            f"the run has the networks {', '.join(sorted(saved))}, and with these flags {', '.join(sorted(wanted))}: "
            "--lambda_projected, for one, adds some. Resume with the flags of the run, or start another one, under "
            "another --name, from its weights.",
            remedy={"init_from": name},
        )


def start_from(opt: Options, model: BaseModel, run_dir: Path) -> None:
    """Load the weights of --init_from, with --init_partial as far as they fit, and log a report.

    Raises:
        ValueError: there are no such weights, or they do not fit.
    """
    source = Path(opt.init_from)
    if not source.exists():
        source = Path(opt.checkpoints_dir) / opt.init_from
    if not source.exists():
        raise ValueError(f"--init_from {opt.init_from}: no such file or folder, nor a run in {opt.checkpoints_dir}")
    if source.resolve() == run_dir.resolve():
        raise ValueError(f"--init_from {source}: the new run would overwrite it; choose another --name")
    if source.is_file() and checkpoint_label(opt.epoch, opt.load_iter) != "latest":
        raise ValueError(f"--init_from {source} is one file: --epoch and --load_iter choose among those of a run")
    trained = read_saved(source if source.is_dir() else source.parent).get("direction", opt.direction)
    label = checkpoint_label(opt.epoch, opt.load_iter)
    reverse = trained != opt.direction
    log.info("%s", init_from(model, source, label, reverse=reverse, partial=opt.init_partial))
