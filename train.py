"""Train a model: python train.py --dataroot ./datasets/maps --name maps --model cycle_gan_attn."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import EpochLoader, create_dataset, with_class_names
from display.attention_maps import AttentionMap, attention_of
from display.create import check_packages, create_display
from display.display import Display, NoDisplay
from display.event_log import FILE
from display.events import Progress
from display.history import History
from models import create_model
from models.base_model import BaseModel
from options.base_options import Options
from options.train_options import TrainOptions, nothing_left, run_flags
from training.checkpoints import keep_as_old, keep_best_as_old, removed_if_unused, run_lock
from training.compiling import compile_networks
from training.dry_run import dry_run
from training.evaluation import Evaluator, create_evaluator
from training.finite import LossGuard, NotFiniteError
from training.health import Health
from training.health_checks import Attention, Content
from training.optimization import Optimization, create_optimization
from training.resume import Position, parse_options, resume, resume_command, roll_back, save_run, saved_state
from util import distributed
from util.checkpoint_files import BEST, OLD, checkpoint_label
from util.command import configure_logging, run_command, writing
from util.device import keep_freed_memory, select_device, use_tf32
from util.signals import stop_requests
from util.threads import ThreadChooser, choose_threads

ROLLBACKS = 3  # at most, in the life of a run

log = logging.getLogger("train")


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train. Returns the exit status: 0, or 128 + the number of the signal that ended the run early."""
    configure_logging()
    flags = TrainOptions().peek(argv)
    run_dir = Path(flags["checkpoints_dir"]) / flags["name"]
    with ExitStack() as locks:
        if run_dir.is_dir() and not flags["dry_run"]:
            lock(run_dir, locks)  # before the state is read, which another process might overwrite
        state = saved_state(run_dir, flags) if flags["continue_train"] else None

        def parse(argv: list[str] | None) -> Options:
            opt = parse_options(argv, run_dir, state) if flags["continue_train"] else TrainOptions().parse(argv)
            check_packages(opt)
            return opt

        if flags["dry_run"]:
            words = sys.argv[1:] if argv is None else argv
            return dry_run(words, parse, partial(resume, run_dir=run_dir, state=state))
        return start(parse(argv), run_dir, state, locks)


def lock(run_dir: Path, locks: ExitStack) -> None:
    """Lock the run against other training processes until `locks` is closed."""
    if distributed.is_main():
        with writing("--checkpoints_dir", run_dir):
            locks.enter_context(run_lock(run_dir))


@dataclass(frozen=True)
class Run:
    """Everything that the training loop needs."""

    opt: Options
    run_dir: Path
    loader: EpochLoader
    model: BaseModel
    optimization: Optimization
    threads: ThreadChooser
    evaluator: Evaluator | None


def start(opt: Options, run_dir: Path, state: dict[str, Any] | None, locks: ExitStack) -> int:
    """Build everything that training needs, and train. Returns the exit status."""
    keep_freed_memory()
    torch.manual_seed(opt.seed)
    loader = create_dataset(opt)
    opt = with_class_names(opt, loader.dataset)
    device = select_device(opt.device, opt.gpu_ids)
    threads = choose_threads(opt.cpu_threads, device=device, compiled=opt.compile)
    if opt.tf32:
        use_tf32(device)
    model, optimization = create_model(opt).to(device), create_optimization(opt, device)
    model.prepare_training(opt, optimization)
    sizes = {size for sizes in loader.dataset.sizes.values() for size in sizes}
    model.check_sizes(sizes)
    if rank := distributed.rank():
        torch.manual_seed(opt.seed + rank)  # the weights are the same in all processes, the noise is not
    distributed.setup(device)
    epoch_size = len(loader.dataset)
    position = resume(opt, model, optimization, epoch_size=epoch_size, run_dir=run_dir, state=state)
    if (done := position.epoch - 1) > opt.n_epochs + opt.n_epochs_decay:
        log.info("%s", nothing_left(opt, done))
        distributed.shutdown()
        return 0
    evaluator = create_evaluator(opt, model)
    if state:
        threads.load_state_dict(state.get("threads", {}))
        if evaluator and state.get("best"):
            evaluator.load_state_dict(state["best"])
    distributed.broadcast(model)
    if epoch_size < (most := distributed.all_reduce_max(epoch_size)):
        raise ValueError(f"--dataroot {opt.dataroot}: {epoch_size} images here, but {most} on another machine")
    if distributed.world_size() > 1:
        log.info("%d processes, %d images a step", distributed.world_size(), loader.sampler.step_size(0))
    with writing("--checkpoints_dir", run_dir), removed_if_unused(run_dir):
        if distributed.is_main():
            run_dir.mkdir(parents=True, exist_ok=True)
            lock(run_dir, locks)
            if not opt.continue_train or checkpoint_label(opt.epoch, opt.load_iter) not in ("latest", OLD):
                keep_as_old(run_dir)
            if not opt.continue_train:
                keep_best_as_old(run_dir)
        log.info("%s", model.summary(verbose=opt.verbose))
        if opt.compile:
            steps = (opt.n_epochs + opt.n_epochs_decay) * math.ceil(epoch_size / loader.sampler.step_size(0))
            log.info("%s", compile_networks(model, steps=steps, sizes=sizes, batch_size=opt.batch_size))
        status = train_until_done(Run(opt, run_dir, loader, model, optimization, threads, evaluator), position)
    distributed.shutdown()
    return status


def train_until_done(run: Run, position: Position) -> int:
    """Train from `position`, and again from the last checkpoint if --on_nan says so. Returns the exit status."""
    opt, optimization = run.opt, run.optimization
    deadline = time.monotonic() + 60 * opt.max_minutes if opt.max_minutes else math.inf
    while True:
        try:
            return train(run, position, deadline=deadline)
        except NotFiniteError as error:
            halvings = optimization.lr_halvings
            if opt.on_nan == "stop" or halvings == ROLLBACKS:
                raise NotFiniteError(f"{error}. {advice(opt.on_nan, run.run_dir)}") from error
            position = roll_back(run.model, optimization, run.run_dir)
            log.warning(
                "%s. Rolled back to epoch %d with half the learning rates (%d of %d)",
                error, position.epoch, halvings + 1, ROLLBACKS,
            )  # fmt: skip


def advice(on_nan: str, run_dir: Path) -> str:
    """What to do about losses that are not finite."""
    if on_nan == "stop":
        return f"{run_dir} holds the last good state: look at the images, then add --continue_train --on_nan rollback"
    return f"{run_dir} holds the last good state, but halving the learning rate {ROLLBACKS} times was not enough"


def train(run: Run, position: Position, *, deadline: float) -> int:
    """Train from `position` on, which moves with every step. Returns the exit status.

    Raises:
        NotFiniteError: a loss is NaN or infinite; the last checkpoint is from before.
    """
    opt, run_dir, loader, model, optimization = run.opt, run.run_dir, run.loader, run.model, run.optimization
    evaluator = run.evaluator
    epochs, epoch_size, started = opt.n_epochs + opt.n_epochs_decay, len(loader.dataset), time.monotonic()
    guard, before = LossGuard(), position.seconds
    limit = 60 * opt.train_minutes or math.inf

    def progress(batch_size: int = 0, step_seconds: float = 0.0, data_seconds: float = 0.0) -> Progress:
        return Progress(
            step=position.steps, epoch=position.epoch, epochs=epochs, epoch_images=position.epoch_images,
            epoch_size=epoch_size, images=position.total_images, seconds=time.monotonic() - started,
            batch_size=batch_size, step_seconds=step_seconds, data_seconds=data_seconds,
            time_used=position.seconds / limit,
        )  # fmt: skip

    def save(label: str) -> None:
        guard.settle()
        save_run(
            model, optimization, position, opt.portable(), run_dir, label, epoch_size=epoch_size,
            threads=run.threads.state_dict(), best=evaluator.state_dict() if evaluator else None,
        )  # fmt: skip

    save("latest")  # so the run can be resumed from its first step, and the disk has room
    shown = distributed.is_main()
    if shown:
        opt.save(run_dir)  # not earlier: on a full disk, it would lie beside the weights of an earlier run

    page = "" if opt.no_html else f"; the page of the run is {run_dir / 'web' / 'index.html'}"

    def attention(images: dict[str, Tensor]) -> list[AttentionMap]:
        maps = attention_of(model, images, opt.precision)
        health.see({f"{block.network} {block.stage}": Attention(block.gamma, block.uniformity) for block in maps})
        return maps

    resumed = position.resumed
    display = create_display(opt, run_dir, progress(), attention, resumed=resumed) if shown else NoDisplay()
    health = Health(model, opt.as_dict(), known_findings(run_dir) if shown else ())
    with stop_requests() as signals, closed_on_error(display):
        for running in range(position.epoch, epochs + 1) if position.seconds < limit else ():
            loader.sampler.set_epoch(running, skip=position.epoch_images)
            waiting_since = time.perf_counter()
            for batch in batches(loader, partial(save, "latest")):
                stepping_since, seen = time.perf_counter(), position.epoch_images
                size, share = loader.sampler.step_size(seen), loader.sampler.share(seen)
                optimization.begin_step(
                    share=share, progress=progress().done, images=size, images_before=position.total_images
                )
                with run.threads.timed(batch):
                    losses, images = model.step(batch)
                guard.check(losses, [*batch["A_paths"], *batch.get("B_paths", [])])
                now = time.perf_counter()
                position.advance(size)
                if opt.train_minutes:
                    position.seconds = distributed.all_reduce_max(before + time.monotonic() - started)
                at = progress(size, (now - stepping_since) / size, (stepping_since - waiting_since) / size)
                if at.crossed(opt.print_freq):
                    losses = distributed.average(losses, share)
                display.update(at, losses, partial(model.preview, images), optimization.learning_rates)
                health.count(seconds=now - stepping_since, waiting=stepping_since - waiting_since)
                if shown and at.crossed(opt.health_freq):
                    for finding in health.look(at.step, losses, images, loss_scale=optimization.loss_scale()):
                        display.health(at, **asdict(finding))
                due = at.crossed(opt.save_latest_freq)
                ended = (at.epoch_ended and running == epochs) or position.seconds >= limit
                if at.epoch_ended:
                    optimization.end_epoch()
                    position.next_epoch()
                if evaluator and (at.crossed(opt.metrics_freq) or ended):
                    values = evaluator.evaluate(model, images=at.images)
                    display.show_metrics(
                        at, values, note=evaluator.describe(), best=opt.best, is_best=evaluator.is_best
                    )
                    if shown:
                        inputs = evaluator.untranslated
                        health.see({name: Content(values[name], inputs[name]) for name in inputs})
                    if evaluator.is_best:
                        save(BEST)
                if at.epoch_ended and running % opt.save_epoch_freq == 0:
                    save(str(running))
                    due = True
                if opt.save_by_iter and at.crossed(opt.save_latest_freq):
                    save(f"iter_{at.images}")
                stop = distributed.all_reduce_max(bool(signals or time.monotonic() > deadline))
                if due or stop or ended:
                    save("latest")
                if ended:
                    break
                if stop:
                    display.close("stopped")
                    log.info(
                        "stopped in epoch %d, checkpoint saved%s. To resume: %s",
                        position.epoch, page, resume_command(opt),
                    )  # fmt: skip
                    return 128 + signals[0] if signals else 0
                waiting_since = time.perf_counter()
            if ended:
                break
    display.close("finished")
    length = f"all {epochs} epochs are" if position.epoch > epochs else f"all {opt.train_minutes:g} minutes are"
    log.info("%s done; weights are in %s%s. Next: python test.py %s", length, run_dir, page, run_flags(opt))
    return 0


def known_findings(run_dir: Path) -> list[tuple[str, str]]:
    """Check and subject of the ongoing findings in the log of a run, which a resumed run does not repeat."""
    history = History(run_dir / FILE)
    history.read()
    return [(finding.begin.check, finding.begin.subject) for finding in history.ongoing]


def batches(loader: EpochLoader, save: Callable[[], None]) -> Iterator[dict]:
    """The batches of an epoch. A checkpoint is saved before an error in loading, such as a damaged image, is raised."""
    try:
        yield from loader
    except Exception:
        if distributed.world_size() == 1:  # others would not take part in saving: they wait for a step
            save()
        raise


@contextmanager
def closed_on_error(display: Display) -> Iterator[None]:
    """Close `display` before an error is raised."""
    try:
        yield
    except BaseException:
        display.close("failed")
        raise


if __name__ == "__main__":
    sys.exit(run_command(main))
