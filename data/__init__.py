"""Datasets by name (`--dataset_mode X` is the class in data/X_dataset.py) and their data loader."""

import inspect
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from data.base_dataset import BaseDataset, Sample
from data.image_folder import DataError
from util import distributed
from util.device import select_device, tuning
from util.registry import MIGRATING, find_class
from util.signals import SIGNALS

log = logging.getLogger(__name__)


class EpochSampler(DistributedSampler[Any]):
    """Yields (epoch, index) pairs, so that a dataset can make every sample a function of both.

    The order is a function of (seed, epoch). Call `set_epoch` before each pass over the loader.

    Each rank takes a part of every step. Together the ranks see the images that a single process sees with batches
    `world_size` times as large. In the last step of an epoch, ranks may have different numbers of images. A rank
    without any repeats one, and `share` gives its loss the weight 0.

    Args:
        batch_size: images per step on each rank.
    """

    def __init__(
        self, dataset: Dataset, *, shuffle: bool, seed: int, batch_size: int = 1, rank: int = 0, world_size: int = 1
    ):
        # the parent class gives every rank a whole number of samples by repeating some; `_part` does not
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
        self.batch_size, self.own_rank, self.world_size = batch_size, rank, world_size
        self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Go to `epoch` without its first `skip` samples, which a resumed run has seen already."""
        super().set_epoch(epoch)
        self.skip = skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in self._part(list(super().__iter__())[self.skip :]):
            yield self.epoch, index

    def __len__(self) -> int:
        return len(self._part(range(self.skip, super().__len__())))

    def step_size(self, seen: int) -> int:
        """The number of images of all ranks in the step after `seen` images of an epoch."""
        return min(self.batch_size * self.world_size, super().__len__() - seen)

    def share(self, seen: int) -> float:
        """The fraction of the images of that step that this rank has."""
        images = self.step_size(seen)
        return len(range(self.own_rank, images, self.world_size)) / images

    def _part(self, order: Sequence[int]) -> Sequence[int]:
        """The samples of this rank in the order of an epoch."""
        part = order[self.own_rank :: self.world_size]
        steps = math.ceil(len(order) / (self.batch_size * self.world_size))
        return part if len(part) > (steps - 1) * self.batch_size else [*part, order[-1]]


class EpochLoader(DataLoader[Sample]):
    """The DataLoader of `create_dataset`: batches of a BaseDataset in the order of an EpochSampler."""

    dataset: BaseDataset
    sampler: EpochSampler

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        earlier = set(multiprocessing.active_children())
        batches = super().__iter__()
        if workers := [child for child in multiprocessing.active_children() if child not in earlier]:
            # not by atexit, which a child process of multiprocessing does not run
            Finalize(None, end_workers, (workers,), exitpriority=1)
        for batch in batches:
            yield {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in batch.items()}


def collate_arrays(samples: Sequence[Sample]) -> Sample:
    """Collate samples into a batch of NumPy arrays, which a worker sends through a pipe.

    Tensors go through shared memory, whose messages take 1 ms per batch, a third of loading an image.
    """
    return {
        name: np.stack([sample[name] for sample in samples])
        if isinstance(value, Tensor)
        else default_collate([sample[name] for sample in samples])
        for name, value in samples[0].items()
    }


def create_dataset(opt: Any) -> EpochLoader:
    """The data loader of the dataset that --dataset_mode names. Call `loader.sampler.set_epoch` before each epoch.

    A batch is {"A": (N, input_nc, H, W), "B": (N, output_nc, H, W), "A_paths": list of str, "B_paths": list of str},
    float32 in [-1, 1]; datasets of one domain have A and A_paths only. N is --batch_size, times --accumulate in
    training; the last batch of an epoch may be smaller.

    Raises:
        DataError: folders or images do not fit the flags.
    """
    dataset: BaseDataset = find_class("data", opt.dataset_mode)(opt)
    if dataset.sizes and opt.is_default("dataroot"):
        log.info("no --dataroot: using the bundled images in %s", opt.dataroot)
    if "index" in inspect.signature(dataset.__getitem__).parameters:  # as upstream's
        raise DataError(
            f"{type(dataset).__name__}.__getitem__ takes an `index`, but samples are asked for by (epoch, index). "
            f"{MIGRATING}."
        )
    for side in ("A_paths", "B_paths"):
        paths = getattr(dataset, side)
        if isinstance(paths, str) or not all(isinstance(path, str | Path) for path in paths):
            raise DataError(
                f"{side} of {type(dataset).__name__} has to be a list of the paths of its files. {MIGRATING}."
            )
        setattr(dataset, side, [Path(path) for path in paths])
    for flag, domains in (("value_range", "AB"), ("value_range_A", "A"), ("value_range_B", "B")):
        if opt.given(flag):
            check_deep(dataset, f"--{flag} {getattr(opt, flag)}", domains)
    for domain in "AB":
        fmt = dataset.domain_formats.get(domain)
        if opt.given(f"label_{domain}") and not (fmt and fmt.classes):
            raise DataError(f"--label_{domain}: --dataset_mode {opt.dataset_mode} reads no label maps of {domain}.")
    step_size = opt.batch_size * (opt.accumulate if opt.is_train else 1)  # the model splits the batch of a step
    if step_size > 1:
        check_same_size(dataset, opt.batch_size, step_size)
    device = select_device(opt.device, opt.gpu_ids)
    pin_memory = tuning(device).pin_memory
    workers = min(opt.num_threads, math.ceil(len(dataset) / step_size))
    if not opt.given("num_threads") and "num_threads" not in opt.changed():  # nor in a run that is resumed
        # on the CPU, workers take cores from training; a pair at 64 px loads in 1 ms, in a worker in 2 ms
        cores = max(cpu_count() // distributed.local_world_size(), 1)
        workers = min(workers, cores) if device.type != "cpu" else 0
    if workers:
        import_module("data.decoders")  # before they start, so a warning about torchcodec is logged once
    # testing runs on one rank
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()} if opt.is_train else {}
    return EpochLoader(
        dataset,
        batch_size=step_size,
        sampler=EpochSampler(dataset, shuffle=not opt.serial_batches, seed=opt.seed, batch_size=step_size, **ranks),
        num_workers=workers,
        collate_fn=collate_arrays if workers and not pin_memory else None,  # only tensors can be pinned
        persistent_workers=workers > 0,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # draws the seeds of workers, so that the global RNG stays as it is
    )


def with_classes(opt: Any, dataset: BaseDataset) -> Any:
    """The options with the classes of images and of label maps that the dataset found, which are saved with the run.

    Networks have a channel for each class of label maps.
    """
    found: dict[str, Any] = {"class_names": dataset.class_names} if dataset.class_names else {}
    for channels, letter, fmt in zip(
        ("input_nc", "output_nc"), dataset.domains, dataset.formats.values(), strict=False
    ):
        if fmt.classes:
            found |= {channels: len(fmt.classes), f"label_{letter}": list(fmt.classes)}
    return opt.replaced(**found)


def start_worker(worker: int) -> None:
    """Let a worker ignore Ctrl-C and the like, which all processes get, and end with the main process, which saves."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_main_process, daemon=True).start()


def end_with_main_process() -> None:
    """End this worker when the main process has. PyTorch watches the parent: with forkserver, that is the server."""
    main_process = multiprocessing.parent_process()
    assert main_process
    main_process.join()
    os._exit(1)


def end_workers(workers: Sequence[BaseProcess]) -> None:
    """Kill workers that are alive at exit. They ignore SIGTERM, so multiprocessing would wait for them forever."""
    alive = [worker for worker in workers if worker.is_alive()]
    if alive and sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report an error
    for worker in alive:
        worker.kill()


def cpu_count() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_deep(dataset: BaseDataset, flag: str, domains: str) -> None:
    """Raise a DataError if a `flag` about the values of `domains`, "A", "B" or "AB", meets 8-bit images only."""
    formats = dataset.domain_formats
    found = [formats[domain] for domain in domains if domain in formats]
    if not any(fmt.has_range for fmt in found) and (found or not formats):
        owner = f"the images of {' and '.join(domains)} have 8 bits or classes"
        raise DataError(f"{flag}: {owner if found else 'this dataset reads 8-bit images only'}, without another range.")


def check_same_size(dataset: BaseDataset, batch_size: int, step_size: int) -> None:
    """Raise a DataError that names two files if the images differ in size and so do not fit in one batch."""
    many = f"--batch_size {batch_size}" if batch_size > 1 else f"--accumulate {step_size}"
    for sizes in dataset.sizes.values():
        if len(sizes) > 1:
            (size, path), (other, other_path), *_ = sizes.items()
            raise DataError(
                f"{many} needs images of one size, but {path} has {size[0]}x{size[1]} and"
                f" {other_path} {other[0]}x{other[1]} pixels after --preprocess. resize_and_crop gives one size.",
                remedy={"batch_size": 1} if step_size == batch_size else {"batch_size": 1, "accumulate": 1},
            )
