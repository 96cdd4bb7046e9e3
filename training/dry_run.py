"""The dry run of train.py --dry_run: check everything that a run needs, measure a step, write nothing."""

import gc
import logging
import math
import os
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import torch

from data import EpochLoader, create_dataset, with_classes
from data.check import Inspection, duplicates, inspect_files, listing, summary
from data.image_folder import list_images, nearest_folder, tree
from data.reductions import of_results, reductions
from models.base_model import BaseModel
from options.base_options import Options
from options.train_options import nothing_left
from training.evaluation import create_evaluator
from training.optimization import Optimization
from training.resume import Position
from training.setup import create_training
from util import distributed
from util.device import peak_memory, select_device
from util.errors import RemediedError

log = logging.getLogger(__name__)
report = partial(log.info, "%s")

T = TypeVar("T")
Parse = Callable[[list[str]], Options]
Resume = Callable[..., Position]  # of `training.resume.resume`, with its last arguments bound
CHECKED = 1000  # files of each domain, at most, in which losses are looked for
STRIDES = (4, 8, 16, 32, 64, 128, 256, 512)


def dry_run(argv: Sequence[str], parse: Parse, resume: Resume) -> int:
    """Check what `argv` asks train.py for, and print what is found, ending with "ready" or with a corrected command.

    Of several processes, only rank 0 does so. Its step has no communication.

    Args:
        parse: parses a command line.
        resume: `training.resume.resume` with its last arguments bound.

    Returns:
        The exit status: 0 if training would start, 2 if not.

    Raises:
        ValueError: the command line is wrong.
    """
    if not distributed.is_main():
        return 0
    distributed.setup_alone()
    run = DryRun(argv, parse)
    log.info("Options that differ from their defaults:")
    for flag, value in run.opt.changed().items():
        log.info("  --%s %s", flag, value)
    loader = run.attempt(run.load)
    if loader is not None:
        log.info("Folders:\n%s", tree(Path(run.opt.dataroot)))
        run.attempt(lambda opt: report_images(run, loader))
        measured = run.attempt(lambda opt: measure(opt, run.load(opt), resume))
        if measured is not None:
            run.attempt(lambda opt: report_disk(opt, *measured))
    report_visdom(run.opt)
    distributed.shutdown()
    return run.finish()


class DryRun:
    """A command line, its problems, and its corrections.

    Args:
        argv: the words of the command line.
        parse: parses a command line.

    Attributes:
        opt: the options of the command as corrected so far.
        correctable: whether flags avoid all problems so far.
    """

    def __init__(self, argv: Sequence[str], parse: Parse):
        self.command = [word for word in argv if word != "--dry_run"]
        self.parse = parse
        self.opt: Options
        self.problems: list[str] = []
        self.correctable = True
        self.loader: EpochLoader | None = None  # for the command as it stands
        try:
            self.opt = parse(self.command)
        except ValueError as error:
            self.add(str(error), flags_of(error))
            if not self.correctable:
                raise

    def load(self, opt: Options) -> EpochLoader:
        """The data of the command, read once."""
        if self.loader is None:
            self.loader = create_dataset(opt)
        return self.loader

    def attempt(self, stage: Callable[[Options], T]) -> T | None:
        """Run `stage` on the options, with corrected flags after an error. None if no flag avoids the error."""
        while self.correctable:
            try:
                return stage(self.opt)
            except (ValueError, OSError) as error:
                self.add(str(error), flags_of(error))
        return None

    def add(self, problem: str, flags: Sequence[str]) -> None:
        """Record a problem and put the `flags` that avoid it into the command."""
        self.problems.append(problem)
        command = replaced(self.command, flags)
        if command == self.command:
            self.correctable = False
            return
        try:
            self.opt = self.parse(command)
        except ValueError as error:  # a resumed run may refuse these flags, or need --override with them
            more = [flag for flag in flags_of(error) if flag not in flags]
            if more:
                self.add(str(error), [*flags, *more])
            else:
                self.problems.append(str(error))
                self.correctable = False
            return
        self.command, self.loader = command, None

    def finish(self) -> int:
        """Print the last lines. Returns the exit status."""
        if not self.problems:
            log.info("ready")
            return 0
        report("\n".join(["Not ready:", *(f"  {problem}" for problem in self.problems)]))
        command = f"{distributed.launcher()} train.py {shlex.join(self.command)}"
        report(f"The corrected command:\n  {command}" if self.correctable else "No flag fixes this.")
        return 2


def flags_of(error: Exception) -> list[str]:
    """The flags that avoid an error; empty if it names no remedy."""
    return error.flags() if isinstance(error, RemediedError) else []


def replaced(command: Sequence[str], flags: Sequence[str]) -> list[str]:
    """`command` with `flags`, words such as "--batch_size", "1", in place of those of the same names."""
    names = {word for word in flags if word.startswith("--")}
    kept: list[str] = []
    dropping = False
    for word in command:
        if word.startswith(("--", "@")):
            dropping = word.partition("=")[0] in names
        if not dropping:
            kept.append(word)
    return [*kept, *flags]


def measure(opt: Options, loader: EpochLoader, resume: Resume) -> tuple[BaseModel, Optimization]:
    """Build the model as train.py does, take two steps on the next batch, print the time and memory of the second.

    Raises:
        ValueError: the networks do not accept the images, memory is not sufficient, or a loss is not finite.
    """
    opt = with_classes(opt, loader.dataset)
    torch.manual_seed(opt.seed)
    device = select_device(opt.device, opt.gpu_ids)
    if device.type == "cuda":  # forget an earlier try with larger batches
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if opt.cpu_threads:
        torch.set_num_threads(opt.cpu_threads)
    model, optimization, _ = create_training(opt, device, sizes=len(loader.dataset.distinct_sizes))
    check_sizes(opt, model, loader)
    start = resume(opt, model, optimization, epoch_size=len(loader.dataset))
    epochs = opt.n_epochs + opt.n_epochs_decay - start.epoch + 1
    if epochs < 1 or 0 < 60 * opt.train_minutes <= start.seconds:
        remedy = {"n_epochs": start.epoch - opt.n_epochs_decay} if epochs < 1 else {"train_minutes": 0}
        raise RemediedError(nothing_left(opt, start.epoch - 1), remedy=remedy)
    if evaluator := create_evaluator(opt, model):
        report(f"Metrics are measured on {evaluator.describe()}.")
    loader.sampler.set_epoch(start.epoch, skip=start.epoch_images)
    batch = next(iter(loader))
    try:
        for _ in range(2):  # the first one also allocates and chooses kernels
            started = time.perf_counter()
            losses, _ = model.step(batch)
            values = {name: loss.item() for name, loss in losses.items()}
            seconds = time.perf_counter() - started
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise RemediedError(
            f"--batch_size {opt.batch_size}: memory does not suffice for a step ({error}): try a smaller one, a "
            "smaller --crop_size or --ngf.",
            remedy={"batch_size": opt.batch_size // 2} if opt.batch_size > 1 else None,
        ) from error
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"{', '.join(bad)}: not finite in the second step: lower --lr")
    steps = math.ceil(len(loader.dataset) / loader.sampler.step_size(0))
    left = epochs * steps - start.epoch_images // loader.sampler.step_size(0)
    report(
        f"{model.summary()}\nOne step of {len(batch['A'])} images: {seconds:.2f} s, {memory_taken(device)}. "
        f"An epoch of {steps} steps: {duration(steps * seconds)}; all {epochs} to do: {duration(left * seconds)}"
        f"{f'; --train_minutes ends the run after {duration(60 * opt.train_minutes)}' if opt.train_minutes else ''}."
    )
    return model, optimization


def check_sizes(opt: Options, model: BaseModel, loader: EpochLoader) -> None:
    """Raise a RemediedError if the networks cannot take the images in their sizes."""
    sizes = loader.dataset.distinct_sizes
    try:
        model.check_sizes(sizes)
    except ValueError as error:
        sides = (max(opt.crop_size // stride, 1) * stride for stride in STRIDES)
        fitting = next((side for side in sides if fits(model, side)), None)
        remedy: dict[str, int | str] = {}
        if fitting is not None:
            remedy = {"crop_size": fitting, "load_size": max(opt.load_size, fitting)}
            if not opt.preprocess.endswith("crop"):
                remedy["preprocess"] = "resize_and_crop"
        raise RemediedError(str(error), remedy=remedy) from error
    shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:8])
    report(f"Sizes that the networks get, and take: {shown}{', ...' if len(sizes) > 8 else ''}")


def fits(model: BaseModel, side: int) -> bool:
    """Whether the networks take squares of `side` pixels."""
    try:
        model.check_sizes([(side, side)])
    except ValueError:
        return False
    return True


def memory_taken(device: torch.device) -> str:
    """The most memory that was in use so far, in words."""
    used = peak_memory()
    if math.isnan(used):
        return "memory is not measured on Windows"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"at most {used / 2**30:.1f} of {total / 2**30:.1f} GiB on {device}"
    return f"at most {used / 2**30:.1f} GiB in this process"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def report_images(run: DryRun, loader: EpochLoader) -> None:
    """Read all images for training and testing; print counts, kinds, sizes and possible problems."""
    train: list[Inspection] = []
    test: list[Inspection] = []
    root, phase = Path(run.opt.dataroot), run.opt.phase
    for paths, check in loader.dataset.checks:
        found = inspect_files(paths, check)
        train += found
        shared = Path(os.path.commonpath([path.parent for path in paths])).relative_to(root)
        folder = shared.parts[0] if shared.parts else ""
        report(f"{folder or root}: {summary(found)}")
        if phase != "test" and folder.startswith(phase):
            test_folder = root / f"test{folder.removeprefix(phase)}"
            test += inspect_files(list_images(test_folder, slice_axis=run.opt.slice_axis), check)
    for line in reductions(loader.dataset, root, train=True, most=CHECKED):
        report(line)
    report(of_results(loader.dataset.domain_formats))
    errors = [image.error for image in train if image.error]
    if errors and not run.opt.skip_bad_images:
        run.add(f"{len(errors)} images cannot be used:\n{listing(list(map(str, errors)))}", ["--skip_bad_images"])
    notes = {
        "test images that cannot be used": [str(image.error) for image in test if image.error],
        "images of a single color": [str(image.path) for image in train if image.flat],
        "test images that are training images too": duplicates(train, test),
    }
    for title, entries in notes.items():
        if entries:
            report(f"Look at {len(entries)} {title}:\n{listing(entries)}")


def report_disk(opt: Options, model: BaseModel, optimization: Optimization) -> None:
    """Print where the run is saved and how much room is there. OSError if it cannot be saved there."""
    run_dir = Path(opt.checkpoints_dir, opt.name)
    place = nearest_folder(run_dir.absolute())
    beside = [path for path in (run_dir, *run_dir.parents) if path.exists() and not path.is_dir()]
    if beside or not os.access(place, os.W_OK):
        raise OSError(f"--checkpoints_dir {opt.checkpoints_dir}: {(beside or [place])[0]} cannot be written into")
    states = [values for optimizer in optimization.optimizers.values() for values in optimizer.state.values()]
    tensors = [*model.state_dict().values(), *(value for values in states for value in values.values())]
    size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    free = shutil.disk_usage(place).free
    report(f"A checkpoint takes {size / 2**20:.0f} MiB in {run_dir}, where {free / 2**30:.1f} GiB are free.")
    if free < 2 * size:  # the old one stays until the new one is complete
        raise OSError(f"--checkpoints_dir {opt.checkpoints_dir}: two checkpoints do not fit there")


def report_visdom(opt: Options) -> None:
    """Print whether a visdom server is there, where one is asked for; training does without."""
    if opt.display_id <= 0:
        return
    server = opt.display_server
    host = urlsplit(server if "//" in server else f"//{server}").hostname
    try:
        socket.create_connection((host, opt.display_port), timeout=3.0).close()
        report(f"visdom: reachable at {server}:{opt.display_port}")
    except OSError as error:
        report(f"visdom: not reachable at {server}:{opt.display_port} ({error}); --display_id 0 does without")
