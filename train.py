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

from data import EpochLoader, create_dataset, with_classes
from data.reductions import of_results, reductions
from display.attention_maps import AttentionMap, attention_of
from display.create import check_packages, create_display
from display.display import Display, NoDisplay
from display.event_log import FILE
from display.events import Progress
from display.history import History
from models.base_model import BaseModel, Images, Losses
from options.base_options import Options
from options.train_options import TrainOptions, nothing_left, run_flags
from training.checkpoints import keep_as_old, keep_best_as_old, removed_if_unused, run_lock
from training.compiling import compile_networks
from training.dry_run import dry_run
from training.evaluation import Evaluator, create_evaluator
from training.finite import LossGuard, NotFiniteError
from training.health import Health
from training.health_checks import Attention, Content
from training.optimization import Optimization
from training.resume import Position, parse_options, resume, resume_command, roll_back, save_run, saved_state
from training.setup import create_training
from util import distributed
from util.checkpoint_files import BEST, OLD, checkpoint_label
from util.command import configure_logging, run_command, writing
from util.device import keep_freed_memory, select_device
from util.images import PixelFormat, label_formats, read_formats, write_formats
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
    if distributed.is_main():
        for line in (
            *reductions(loader.dataset, Path(opt.dataroot), train=True),
            of_results(loader.dataset.domain_formats),
        ):
            log.info("%s", line)
    opt = with_classes(opt, loader.dataset)
    device = select_device(opt.device, opt.gpu_ids)
    threads = choose_threads(opt.cpu_threads, device=device, compiled=opt.compile)
    sizes = loader.dataset.distinct_sizes
    model, optimization, tuning = create_training(opt, device, sizes=len(sizes))
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
    if state and position.resumed:
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
            label = checkpoint_label(opt.epoch, opt.load_iter)
            resumes_latest, from_old = position.resumed and label == "latest", opt.continue_train and label == OLD
            if not (resumes_latest or from_old):
                keep_as_old(run_dir)
            if not position.resumed:
                keep_best_as_old(run_dir)
        log.info("%s", model.summary(verbose=opt.verbose))
        if opt.compile:
            steps = (opt.n_epochs + opt.n_epochs_decay) * math.ceil(epoch_size / loader.sampler.step_size(0))
            compiled = compile_networks(
                model, steps=steps, sizes=sizes, batch_size=opt.batch_size, mode=tuning.compile_mode
            )
            log.info("%s", compiled)
        status = train_until_done(Run(opt, run_dir, loader, model, optimization, threads, evaluator), position)
    distributed.shutdown()
    return status


def train_until_done(run: Run, position: Position) -> int:
    """Train from `position`, and again from the last checkpoint if --on_nan says so. Returns the exit status."""
    opt, optimization = run.opt, run.optimization
    deadline = time.monotonic() + 60 * opt.max_minutes if opt.max_minutes else math.inf
    while True:
        try:
            return Training(run, position, deadline=deadline).until_done()
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


class Training:
    """The training loop of a run, from a position on to its end, to a deadline or to a signal.

    Creating it saves a checkpoint, so that the run can be resumed from its first step and the disk is known to have
    room, and opens the displays.

    Args:
        run: what to train.
        position: where to begin; it moves with every step.
        deadline: value of `time.monotonic` to stop at.
    """

    def __init__(self, run: Run, position: Position, *, deadline: float):
        opt = run.opt
        self.run, self.opt, self.position, self.deadline = run, opt, position, deadline
        self.model, self.optimization, self.evaluator = run.model, run.optimization, run.evaluator
        self.epochs, self.epoch_size = opt.n_epochs + opt.n_epochs_decay, len(run.loader.dataset)
        self.limit = 60 * opt.train_minutes or math.inf
        self.started, self.seconds_before, self.steps_before = time.monotonic(), position.seconds, position.steps
        self.guard = LossGuard()
        self.shown = distributed.is_main()
        self.save("latest")
        if self.shown:
            # not earlier: on a full disk, they would lie beside the weights of an earlier run
            opt.save(run.run_dir)
            save_formats(run.run_dir, run.loader.dataset.domain_formats, resumed=position.resumed)
        formats = run.loader.dataset.formats
        show = partial(
            create_display, opt, run.run_dir, self.progress(), self.attention, resumed=position.resumed,
            formats=label_formats(formats, formats),
        )  # fmt: skip
        self.display = show() if self.shown else NoDisplay()
        flags = opt.as_dict() | {"num_threads": run.loader.num_workers}  # the default depends on the device
        self.health = Health(self.model, flags, known_findings(run.run_dir) if self.shown else ())

    def until_done(self) -> int:
        """Train. Returns the exit status.

        Raises:
            NotFiniteError: a loss is NaN or infinite; the last checkpoint is from before.
        """
        with stop_requests() as signals, closed_on_error(self.display):
            for at, losses, images in self.steps():
                self.show(at, losses, images)
                if at.epoch_ended:
                    self.optimization.end_epoch()
                    self.position.next_epoch()
                # 1: the time is up, 2: a signal, which does not wait for figures
                stop = distributed.all_reduce_max(2 if signals else int(time.monotonic() > self.deadline))
                if self.evaluator and (at.crossed(self.opt.metrics_freq) or self.is_over or stop == 1):
                    self.measure(self.evaluator, at)
                self.save_when_due(at, ending=self.is_over or stop > 0)
                if self.is_over:
                    break
                if stop:
                    self.display.close("stopped")
                    log.info(
                        "stopped in epoch %d, checkpoint saved%s. To resume: %s",
                        self.position.epoch, self.page, resume_command(self.opt),
                    )  # fmt: skip
                    return 128 + signals[0] if signals else 0
        self.display.close("finished")
        if self.position.steps == self.steps_before:
            longer = f"--n_epochs {2 * self.opt.n_epochs}"
            if self.opt.train_minutes:
                longer = f"--train_minutes {2 * self.opt.train_minutes:g}"
            command = f"{resume_command(self.opt)} {longer}"
            log.info("nothing was left to do; to train longer, raise its length: %s", command)
        epochs_done = self.position.epoch > self.epochs
        length = f"all {self.epochs} epochs are" if epochs_done else f"all {self.opt.train_minutes:g} minutes are"
        where, flags = f"{self.run.run_dir}{self.page}", run_flags(self.opt)
        log.info("%s done; weights are in %s. Next: python test.py %s", length, where, flags)
        return 0

    @property
    def is_over(self) -> bool:
        """Whether all epochs, or all --train_minutes, are done."""
        return self.position.epoch > self.epochs or self.position.seconds >= self.limit

    @property
    def page(self) -> str:
        """Where the page of the run is, in words; empty if there is none."""
        return "" if self.opt.no_html else f"; the page of the run is {self.run.run_dir / 'web' / 'index.html'}"

    def progress(self, batch_size: int = 0, step_seconds: float = 0.0, data_seconds: float = 0.0) -> Progress:
        """The position, for people, after a step of `batch_size` images that took so many seconds an image."""
        return Progress(
            step=self.position.steps, epoch=self.position.epoch, epochs=self.epochs,
            epoch_images=self.position.epoch_images, epoch_size=self.epoch_size, images=self.position.total_images,
            seconds=time.monotonic() - self.started, batch_size=batch_size, step_seconds=step_seconds,
            data_seconds=data_seconds, time_used=self.position.seconds / self.limit,
        )  # fmt: skip

    def steps(self) -> Iterator[tuple[Progress, Losses, Images]]:
        """Take the steps of the remaining epochs. Yields the position after each one, its losses and its images."""
        loader = self.run.loader
        for epoch in range(self.position.epoch, self.epochs + 1) if not self.is_over else ():
            loader.sampler.set_epoch(epoch, skip=self.position.epoch_images)
            waiting_since = time.perf_counter()
            for batch in batches(loader, partial(self.save, "latest")):
                yield self.step(batch, waiting_since)
                waiting_since = time.perf_counter()

    def step(self, batch: dict, waiting_since: float) -> tuple[Progress, Losses, Images]:
        """Take a step with a batch that the loader was asked for at `waiting_since`, as `time.perf_counter` has it."""
        stepping_since, seen = time.perf_counter(), self.position.epoch_images
        sampler = self.run.loader.sampler
        size, share = sampler.step_size(seen), sampler.share(seen)
        self.optimization.begin_step(
            share=share, progress=self.progress().done, images=size, images_before=self.position.total_images
        )
        with self.run.threads.timed(batch):
            losses, images = self.model.step(batch)
        self.guard.check(losses, [*batch["A_paths"], *batch.get("B_paths", [])])
        now = time.perf_counter()
        self.position.advance(size)
        if self.opt.train_minutes:
            elapsed = self.seconds_before + time.monotonic() - self.started
            self.position.seconds = distributed.all_reduce_max(elapsed)
        self.health.count(seconds=now - stepping_since, waiting=stepping_since - waiting_since)
        at = self.progress(size, (now - stepping_since) / size, (stepping_since - waiting_since) / size)
        if at.crossed(self.opt.print_freq):
            losses = distributed.average(losses, share)
        return at, losses, images

    def show(self, at: Progress, losses: Losses, images: Images) -> None:
        """Show a step to people, and to the checks of health."""
        self.display.update(at, losses, partial(self.model.preview, images), self.optimization.learning_rates)
        if self.shown and at.crossed(self.opt.health_freq):
            for finding in self.health.look(at.step, losses, images, loss_scale=self.optimization.loss_scale()):
                self.display.health(at, **asdict(finding))

    def attention(self, images: Images) -> list[AttentionMap]:
        """The attention maps of images that are shown."""
        maps = attention_of(self.model, images, self.optimization.precision)
        self.health.see({f"{block.network} {block.stage}": Attention(block.gamma, block.uniformity) for block in maps})
        return maps

    def measure(self, evaluator: Evaluator, at: Progress) -> None:
        """Compute and show the figures of --metrics, and keep the checkpoint if it is the best one."""
        self.guard.settle()
        values = evaluator.evaluate(self.model, images=at.images)
        self.display.show_metrics(at, values, note=evaluator.describe(), best=self.opt.best, is_best=evaluator.is_best)
        if self.shown:
            inputs = evaluator.untranslated
            self.health.see({name: Content(values[name], inputs[name]) for name in inputs})
        if evaluator.is_best:
            self.save(BEST)

    def save_when_due(self, at: Progress, *, ending: bool) -> None:
        """Save the checkpoints that the flags ask for at a position, and the latest one if the run is `ending`."""
        opt = self.opt
        epoch_due = at.epoch_ended and at.epoch % opt.save_epoch_freq == 0
        latest_due = at.crossed(opt.save_latest_freq)
        if epoch_due:
            self.save(str(at.epoch))
        if opt.save_by_iter and latest_due:
            self.save(f"iter_{at.images}")
        if latest_due or epoch_due or ending:
            self.save("latest")

    def save(self, label: str) -> None:
        """Save a checkpoint."""
        self.guard.settle()
        save_run(
            self.model, self.optimization, self.position, self.opt.portable(), self.run.run_dir, label,
            epoch_size=self.epoch_size, threads=self.run.threads.state_dict(),
            best=self.evaluator.state_dict() if self.evaluator else None,
        )  # fmt: skip


def save_formats(run_dir: Path, formats: dict[str, PixelFormat], *, resumed: bool) -> None:
    """Save the formats of the domains with the run. A warning tells how those of a resumed run have changed."""
    before = read_formats(run_dir) if resumed else {}
    for domain in formats.keys() & before:
        if formats[domain] != before[domain]:
            log.warning("images of %s were %s so far, and are %s", domain, before[domain], formats[domain])
    write_formats(run_dir, formats)


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
