"""Train a model: python train.py --dataroot ./datasets/maps --name maps --model cycle_gan_attn."""

import glob
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data import EpochLoader, create_dataset
from data.image_folder import DataError
from models import create_model
from models.base_model import BaseModel
from models.compiling import compile_networks
from options.base_options import Options, from_portable, read_saved
from options.train_options import TrainOptions, changed_flags, continue_command, nothing_left, run_flags
from util import distributed
from util.checkpoint import load_networks, no_weights
from util.command import run_command, writing
from util.device import keep_freed_memory, pick_device, use_tf32
from util.display import Display, NoDisplay, Progress, create_display
from util.dry_run import dry_run
from util.finite import LossGuard, NotFiniteError, agreed
from util.init_from import init_from
from util.interrupt import stop_requests
from util.resume import random_state, roll_back, take_over
from util.saves import OLD, WEIGHTS, read_state, save_checkpoint, set_aside, sole_writer

ROLLBACKS = 3  # at most, in the life of a run


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train. Returns the exit status: 0, or 128 + the number of the signal that ended the run early."""
    flags = TrainOptions().peek(argv)
    run_dir = Path(flags["checkpoints_dir"]) / flags["name"]
    with ExitStack() as claims:
        if run_dir.is_dir() and not flags["dry_run"]:
            claim(run_dir, claims)  # before the state is read, which another process might save anew
        state = saved_state(run_dir, flags) if flags["continue_train"] else None
        going_on = partial(parse_options, run_dir=run_dir, state=state)
        parse = going_on if flags["continue_train"] else TrainOptions().parse
        if flags["dry_run"]:
            words = sys.argv[1:] if argv is None else argv
            return dry_run(words, parse, partial(resume, run_dir=run_dir, state=state))
        return run(parse(argv), run_dir, state, claims)


def claim(run_dir: Path, claims: ExitStack) -> None:
    """Keep other processes from training the run in run_dir, until `claims` end."""
    if distributed.is_main():
        with writing("--checkpoints_dir", run_dir):
            claims.enter_context(sole_writer(run_dir))


def run(opt: Options, run_dir: Path, state: dict[str, Any] | None, claims: ExitStack) -> int:
    """Build all that training needs, and train. Returns the exit status."""
    keep_freed_memory()
    torch.manual_seed(opt.seed)
    loader = create_dataset(opt)
    device = pick_device(opt.device, opt.gpu_ids)
    if opt.tf32:
        use_tf32(device)
    model = create_model(opt).to(device)
    model.prepare_training(opt)
    model.check_sizes({size for sizes in loader.dataset.sizes.values() for size in sizes})
    if rank := distributed.rank():
        torch.manual_seed(opt.seed + rank)  # weights are made, and the same in all processes; noise should not be
    distributed.setup(device)
    start = resume(opt, model, len(loader.dataset), run_dir=run_dir, state=state)
    if (done := start["epoch"] - 1) > opt.n_epochs + opt.n_epochs_decay:
        print(nothing_left(opt, done))
        distributed.shutdown()
        return 0
    distributed.broadcast(model)
    if len(loader.dataset) < (most := distributed.largest(len(loader.dataset))):
        raise ValueError(
            f"--dataroot {opt.dataroot}: {len(loader.dataset)} pictures here, but {most} on another machine"
        )
    if distributed.count() > 1:
        print(f"{distributed.count()} processes, {loader.sampler.step_size(0)} pictures a step")
    with writing("--checkpoints_dir", run_dir):
        if distributed.is_main():
            run_dir.mkdir(parents=True, exist_ok=True)
            claim(run_dir, claims)
            if not opt.continue_train or save_label(opt.epoch, opt.load_iter) not in ("latest", OLD):
                set_aside(run_dir)
        print(model.summary(verbose=opt.verbose))
        if opt.compile:
            steps = (opt.n_epochs + opt.n_epochs_decay) * math.ceil(len(loader.dataset) / loader.sampler.step_size(0))
            sizes = max(len(sizes) for sizes in loader.dataset.sizes.values())
            print(compile_networks(model, steps=steps, sizes=sizes))
        status = train_until_done(opt, model, loader, run_dir, start)
    distributed.shutdown()
    return status


def saved_state(run_dir: Path, flags: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run goes on with beside its weights. ValueError if there are neither weights nor this."""
    label = save_label(flags["epoch"], flags["load_iter"])
    state = read_state(run_dir, label)
    if state is None and not any(run_dir.glob(WEIGHTS.format(label=glob.escape(label), network="*"))):
        raise no_weights(run_dir, WEIGHTS.format(label=label, network="*"))
    return state


def train_until_done(opt: Options, model: BaseModel, loader: EpochLoader, run_dir: Path, start: dict[str, Any]) -> int:
    """Train from `start`, and again from the last save where --on_nan says so. Returns the exit status."""
    deadline = time.monotonic() + 60 * opt.max_minutes if opt.max_minutes else math.inf
    while True:
        try:
            return train(opt, model, loader, run_dir, deadline=deadline, **start)
        except NotFiniteError as error:
            if opt.on_nan == "stop" or model.halvings == ROLLBACKS:
                raise NotFiniteError(f"{error}. {advice(opt.on_nan, run_dir)}") from error
            start = roll_back(model, run_dir)
            print(f"{error}. Back in epoch {start['epoch']}, learning rates halved ({model.halvings} of {ROLLBACKS})")


def advice(on_nan: str, run_dir: Path) -> str:
    """What to do about losses that are not finite."""
    if on_nan == "stop":
        return f"{run_dir} holds the last good state: look at the pictures, then add --continue_train --on_nan rollback"
    return f"{run_dir} holds the last good state, but {ROLLBACKS} times half the learning rate was not enough"


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


def train(
    opt: Options,
    model: BaseModel,
    loader: EpochLoader,
    run_dir: Path,
    *,
    deadline: float,
    epoch: int,
    epoch_images: int,
    total_images: int,
    steps: int,
    continued: bool,
) -> int:
    """Train from the given position: epochs count from 1, images and steps from 0. Returns the exit status.

    `continued` says that the position is one of this run, whose log goes on.

    Raises:
        NotFiniteError: a loss is nan or infinite; the last save is from before.
    """
    epochs, epoch_size, started = opt.n_epochs + opt.n_epochs_decay, len(loader.dataset), time.monotonic()
    guard = LossGuard()

    def progress(batch_size: int = 0, step_seconds: float = 0.0, data_seconds: float = 0.0) -> Progress:
        return Progress(
            step=steps, epoch=epoch, epochs=epochs, epoch_images=epoch_images, epoch_size=epoch_size,
            images=total_images, seconds=time.monotonic() - started, batch_size=batch_size,
            step_seconds=step_seconds, data_seconds=data_seconds,
        )  # fmt: skip

    def save(label: str) -> None:
        guard.settle()
        position = {
            "epoch": epoch, "epoch_images": epoch_images, "total_images": total_images, "steps": steps,
            "pictures": epoch_size,
        }  # fmt: skip
        state = {"options": opt.portable(), "model": model.training_state(), "random": random_state()}
        processes = distributed.gather({"pools": state["model"]["pools"], "random": state["random"]})
        with agreed():
            if distributed.is_main():
                save_checkpoint(model, run_dir, label, position | state | {"other_processes": processes[1:]})

    save("latest")  # there is something to go on with from the first step, and the disk has room
    if distributed.is_main():
        opt.save(run_dir)  # not before: where the disk is full, these would lie beside the weights of an earlier run

    page = "" if opt.no_html else f"; the page of the run is {run_dir / 'web' / 'index.html'}"
    shown = distributed.is_main()
    display = create_display(opt, run_dir, progress(), model.attention, continued=continued) if shown else NoDisplay()
    with stop_requests() as signals, closed_on_error(display):
        for running in range(epoch, epochs + 1):
            loader.sampler.set_epoch(running, skip=epoch_images)
            waiting_since = time.perf_counter()
            for batch in batches(loader, partial(save, "latest")):
                stepping_since = time.perf_counter()
                size, model.share = loader.sampler.step_size(epoch_images), loader.sampler.share(epoch_images)
                losses, images = model.step(batch)
                guard.check(losses, [*batch["A_paths"], *batch.get("B_paths", [])])
                now = time.perf_counter()
                steps, epoch_images, total_images = steps + 1, epoch_images + size, total_images + size
                at = progress(size, (now - stepping_since) / size, (stepping_since - waiting_since) / size)
                if at.crossed(opt.print_freq):
                    losses = distributed.average(losses, model.share)
                display.update(at, losses, partial(model.preview, images), model.learning_rates)
                if at.epoch_ended:
                    model.end_epoch()
                    epoch, epoch_images = epoch + 1, 0
                    if running % opt.save_epoch_freq == 0:
                        save(str(running))
                due = at.crossed(opt.save_latest_freq)
                if due and opt.save_by_iter:
                    save(f"iter_{total_images}")
                stop = distributed.largest(bool(signals or time.monotonic() > deadline))
                if due or at.epoch_ended or stop:
                    save("latest")
                if stop and epoch <= epochs:
                    display.close("stopped")
                    print(f"stopped in epoch {epoch}, state saved{page}. To go on: {continue_command(opt)}")
                    return 128 + signals[0] if signals else 0
                waiting_since = time.perf_counter()
    display.close("finished")
    print(f"all {epochs} epochs are done; weights are in {run_dir}{page}. Next: python test.py {run_flags(opt)}")
    return 0


def batches(loader: EpochLoader, save: Callable[[], None]) -> Iterator[dict]:
    """The batches of an epoch. What was learnt is saved before an error in loading is shown, such as a bad picture."""
    try:
        yield from loader
    except Exception:
        if distributed.count() == 1:  # others would not take part in saving: they wait for a step
            save()
        raise


@contextmanager
def closed_on_error(display: Display) -> Iterator[None]:
    """Close `display` before an error is shown."""
    try:
        yield
    except BaseException:
        display.close("failed")
        raise


def resume(
    opt: Options, model: BaseModel, pictures: int, *, run_dir: Path, state: dict[str, Any] | None
) -> dict[str, Any]:
    """Where to start with so many pictures an epoch.

    With --continue_train, `model` and the random generators take over what the run has saved.
    """
    start = {"epoch": opt.epoch_count, "epoch_images": 0, "total_images": 0, "steps": 0, "continued": False}
    if not opt.continue_train:
        if any(run_dir.glob("latest_net_*.pth")):
            old = f"{continue_command(opt)} --epoch {OLD}"
            print(f"{run_dir} holds a run already, which this one replaces; to go on with it: {old}")
        if opt.init_from:
            start_from(opt, model, run_dir)
        return start
    label = save_label(opt.epoch, opt.load_iter)
    filled = load_networks(model, run_dir, label)
    if state is None or not filled:
        print(f"only weights go on: optimizers and schedules start anew, in epoch {opt.epoch_count}")
        return start
    try:
        start = take_over(model, state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{label}_state.pth in {run_dir} does not belong to this model: {error}") from error
    if opt.given("epoch_count") and opt.epoch_count != start["epoch"]:
        raise ValueError(
            f"--epoch_count {opt.epoch_count}: the saved state goes on in epoch {start['epoch']}; leave it out"
        )
    if start["epoch_images"] >= pictures:
        raise ValueError(
            f"the run has seen {start['epoch_images']} pictures of an epoch, but now there are {pictures}: "
            "continue with those it was started with, or start a new run"
        )
    if (before := state.get("pictures", pictures)) != pictures:
        print(f"saved with {before} pictures, continued with {pictures}: not exactly the same run any more")
    place = f", {start['epoch_images']} of the {pictures} of this epoch" if start["epoch_images"] else ""
    print(f"continuing {opt.name} in epoch {start['epoch']} after {start['total_images']} images{place}")
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
    trained = read_saved(source if source.is_dir() else source.parent).get("direction", opt.direction)
    print(init_from(model, source, save_label(opt.epoch, opt.load_iter), reverse=trained != opt.direction))


def save_label(epoch: str, load_iter: int) -> str:
    """How the names of the files begin that --epoch or --load_iter ask for."""
    return f"iter_{load_iter}" if load_iter else epoch


if __name__ == "__main__":
    sys.exit(run_command(main))
