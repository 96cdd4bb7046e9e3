"""Train a model: python train.py --dataroot ./datasets/maps --name maps --model cycle_gan_attn."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data import EpochLoader, create_dataset
from models import create_model
from models.base_model import BaseModel
from models.compiling import compile_networks
from options.base_options import Options
from options.train_options import TrainOptions, continue_command, nothing_left, run_flags
from util import distributed
from util.command import run_command, writing
from util.device import keep_freed_memory, pick_device, use_tf32
from util.display import Display, NoDisplay, Progress, create_display
from util.dry_run import dry_run
from util.finite import LossGuard, NotFiniteError
from util.interrupt import stop_requests
from util.resume import Position, parse_options, resume, roll_back, save_run, saved_state
from util.saves import OLD, save_label, set_aside, sole_writer

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
    if (done := start.epoch - 1) > opt.n_epochs + opt.n_epochs_decay:
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


def train_until_done(opt: Options, model: BaseModel, loader: EpochLoader, run_dir: Path, start: Position) -> int:
    """Train from `start`, and again from the last save where --on_nan says so. Returns the exit status."""
    deadline = time.monotonic() + 60 * opt.max_minutes if opt.max_minutes else math.inf
    while True:
        try:
            return train(opt, model, loader, run_dir, start, deadline=deadline)
        except NotFiniteError as error:
            if opt.on_nan == "stop" or model.halvings == ROLLBACKS:
                raise NotFiniteError(f"{error}. {advice(opt.on_nan, run_dir)}") from error
            start = roll_back(model, run_dir)
            print(f"{error}. Back in epoch {start.epoch}, learning rates halved ({model.halvings} of {ROLLBACKS})")


def advice(on_nan: str, run_dir: Path) -> str:
    """What to do about losses that are not finite."""
    if on_nan == "stop":
        return f"{run_dir} holds the last good state: look at the pictures, then add --continue_train --on_nan rollback"
    return f"{run_dir} holds the last good state, but {ROLLBACKS} times half the learning rate was not enough"


def train(
    opt: Options, model: BaseModel, loader: EpochLoader, run_dir: Path, position: Position, *, deadline: float
) -> int:
    """Train from `position` on, which moves with every step. Returns the exit status.

    Raises:
        NotFiniteError: a loss is nan or infinite; the last save is from before.
    """
    epochs, epoch_size, started = opt.n_epochs + opt.n_epochs_decay, len(loader.dataset), time.monotonic()
    guard = LossGuard()

    def progress(batch_size: int = 0, step_seconds: float = 0.0, data_seconds: float = 0.0) -> Progress:
        return Progress(
            step=position.steps, epoch=position.epoch, epochs=epochs, epoch_images=position.epoch_images,
            epoch_size=epoch_size, images=position.total_images, seconds=time.monotonic() - started,
            batch_size=batch_size, step_seconds=step_seconds, data_seconds=data_seconds,
        )  # fmt: skip

    def save(label: str) -> None:
        guard.settle()
        save_run(model, position, opt.portable(), run_dir, label, pictures=epoch_size)

    save("latest")  # there is something to go on with from the first step, and the disk has room
    shown = distributed.is_main()
    if shown:
        opt.save(run_dir)  # not before: where the disk is full, these would lie beside the weights of an earlier run

    page = "" if opt.no_html else f"; the page of the run is {run_dir / 'web' / 'index.html'}"
    attention, continued = model.attention, position.continued
    display = create_display(opt, run_dir, progress(), attention, continued=continued) if shown else NoDisplay()
    with stop_requests() as signals, closed_on_error(display):
        for running in range(position.epoch, epochs + 1):
            loader.sampler.set_epoch(running, skip=position.epoch_images)
            waiting_since = time.perf_counter()
            for batch in batches(loader, partial(save, "latest")):
                stepping_since, seen = time.perf_counter(), position.epoch_images
                size, model.share = loader.sampler.step_size(seen), loader.sampler.share(seen)
                losses, images = model.step(batch)
                guard.check(losses, [*batch["A_paths"], *batch.get("B_paths", [])])
                now = time.perf_counter()
                position.advance(size)
                at = progress(size, (now - stepping_since) / size, (stepping_since - waiting_since) / size)
                if at.crossed(opt.print_freq):
                    losses = distributed.average(losses, model.share)
                display.update(at, losses, partial(model.preview, images), model.learning_rates)
                if at.epoch_ended:
                    model.end_epoch()
                    position.next_epoch()
                    if running % opt.save_epoch_freq == 0:
                        save(str(running))
                due = at.crossed(opt.save_latest_freq)
                if due and opt.save_by_iter:
                    save(f"iter_{at.images}")
                stop = distributed.largest(bool(signals or time.monotonic() > deadline))
                if due or at.epoch_ended or stop:
                    save("latest")
                if stop and position.epoch <= epochs:
                    display.close("stopped")
                    print(f"stopped in epoch {position.epoch}, state saved{page}. To go on: {continue_command(opt)}")
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


if __name__ == "__main__":
    sys.exit(run_command(main))
