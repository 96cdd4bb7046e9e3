"""The device of a run, its precision, and the memory it uses."""

import ctypes
import functools
import logging
import math
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch

from util import distributed
from util.errors import RemediedError

log = logging.getLogger(__name__)


def select_device(device: str = "auto", gpu_ids: str = "0") -> torch.device:
    """The device to compute on; a GPU becomes the current CUDA device.

    `auto` takes the first of gpu_ids if CUDA is available, else Apple's MPS, else the CPU; gpu_ids -1 is the CPU.
    Each of several processes takes the next of gpu_ids; the default, 0, stands for one GPU per process.

    Raises:
        ValueError: the requested device is not available, or the two arguments contradict each other.
    """
    first, *others = (number.strip() for number in gpu_ids.split(","))
    if device == "cpu" or (device == "auto" and first == "-1"):
        return torch.device("cpu")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if first == "-1":
            raise ValueError("gpu_ids=-1 is the CPU, but device=cuda asks for a GPU: omit one of them")
        processes = distributed.local_world_size()
        numbers = [int(first), *map(int, others)] if gpu_ids != "0" else list(range(processes))
        if len(numbers) < processes:
            raise ValueError(f"gpu_ids={gpu_ids}: {processes} processes need a GPU each: name all, or omit it")
        if len(numbers) > processes:
            start = f"torchrun --nproc_per_node={len(numbers)}"
            warn_once(f"gpu_ids={gpu_ids}: a process computes on one GPU, so for all of them start {start}")
        index = numbers[distributed.local_rank()]
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"gpu_ids={','.join(map(str, numbers))}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if device == "auto":
        if gpu_ids != "0":
            warn_once(f"gpu_ids={gpu_ids}: PyTorch finds no NVIDIA GPU, so the CPU computes")
        return torch.device("cpu")
    raise RemediedError(f"device={device}: PyTorch finds none on this machine.", remedy={"device": "cpu"})


@functools.cache  # the loader asks for the device too
def warn_once(message: str) -> None:
    """Log a warning the first time."""
    log.warning("%s", message)


FEW_SIZES = 4  # of images: timing cuDNN's algorithms takes seconds for each

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in fp32, bf16 or fp16.

    Raises:
        ValueError: fp16 on another device than an NVIDIA GPU.
    """
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision={precision!r} is for NVIDIA GPUs, not for {device.type}: use bf16 or fp32")
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16: NVIDIA GPUs from Ampere on, x86 processors with AVX512-BF16 or AMX.

    Others emulate it. An AVX2 processor then takes 13 times as long for a training step as in fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision to compute in: `auto` is bf16 where the device has instructions for it, else fp32."""
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    if precision == "bf16" and not computes_bf16(device):
        log.warning("this %s has no bf16 instructions: precision=fp32 or auto may be many times faster", device.type)
    return precision


@dataclass(frozen=True)
class Tuning:
    """How networks use their device. `tuning` makes these choices, so that they are in one place.

    The kernel of attention depends on its tensors: `models.networks.attention.attend` chooses it.

    Attributes:
        channels_last: memory format of weights and feature maps.
        benchmark: whether cuDNN times its algorithms for every new shape, and keeps the fastest.
        tf32_convolutions, tf32_products: whether float32 convolutions and matrix products on an NVIDIA GPU read 10
            bits of mantissa.
        deterministic: whether to choose only deterministic kernels, whose results are bit-identical in every run.
        pin_memory: whether the data loader keeps batches in memory from which a GPU copies while it computes.
        compile_mode: of torch.compile.
    """

    channels_last: bool
    benchmark: bool
    tf32_convolutions: bool
    tf32_products: bool
    deterministic: bool
    pin_memory: bool
    compile_mode: str

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of networks."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def apply(self) -> None:
        """Set PyTorch's switches. This acts on the whole process, so only scripts call it, before the first step."""
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cudnn.allow_tf32 = self.tf32_convolutions
        torch.set_float32_matmul_precision("high" if self.tf32_products else "highest")
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(self.deterministic)


def tuning(
    device: torch.device,
    *,
    precision: str = "fp32",
    training: bool = True,
    compiled: bool = False,
    cuda_graphs: bool = False,
    sizes: int = 1,
    tf32: bool | None = None,
    deterministic: bool = False,
) -> Tuning:
    """Choose how networks use their device; docs/performance.md has the reasons.

    Args:
        device: of the networks.
        precision: of forward passes.
        training: whether there are backward passes.
        compiled: whether the networks are compiled.
        cuda_graphs: whether compiled networks replay CUDA graphs.
        sizes: number of sizes of the images.
        tf32: TF32 in all products of float32, or in none; None is PyTorch's default, convolutions alone.
        deterministic: see Tuning.

    Raises:
        ValueError: TF32 or CUDA graphs on another device than an NVIDIA GPU, or CUDA graphs without compiling.
    """
    cuda = device.type == "cuda"
    if tf32 is not None and not cuda:
        raise ValueError(f"TF32 is for NVIDIA GPUs, not for {device.type}: omit it")
    if cuda_graphs and not (cuda and compiled):
        raise ValueError(f"CUDA graphs are for compiled networks on NVIDIA GPUs, not on {device.type}: omit them")
    tensor_cores = cuda and (precision != "fp32" or tf32 is not False)
    return Tuning(
        # Without compiling, instance norm in training returns contiguous tensors on every device.
        channels_last=(tensor_cores and compiled) if training or cuda else device.type == "cpu",
        benchmark=cuda and not deterministic and sizes <= FEW_SIZES,
        tf32_convolutions=tf32 is not False,
        tf32_products=bool(tf32),
        deterministic=deterministic,
        pin_memory=cuda,
        compile_mode="reduce-overhead" if cuda_graphs else "default",
    )


def create_tuning(opt: Any, device: torch.device, *, precision: str, sizes: int) -> Tuning:
    """The tuning that the flags of train.py ask for. See `tuning`, also for its errors."""
    return tuning(
        device,
        precision=precision,
        compiled=opt.compile,
        cuda_graphs=opt.cuda_graphs,
        sizes=sizes,
        tf32=True if opt.tf32 else False if opt.no_tf32 else None,
        deterministic=opt.deterministic,
    )


def keep_freed_memory() -> None:
    """Let the C library of Linux (glibc) keep freed memory instead of returning it to the kernel.

    The kernel clears returned pages before the next step gets them, which takes 10% to 20% of a step on a CPU.
    This acts on the whole process, so only scripts call it.
    """
    if sys.platform == "linux" and hasattr(c_library := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        c_library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        c_library.mallopt(M_MMAP_MAX, 0)


def peak_memory() -> float:
    """The peak memory of this process so far in bytes: of its GPUs if it uses any, else of main memory.

    NaN on Windows without a GPU, where Python cannot measure it.
    """
    if torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    if sys.platform == "win32":
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
