"""The device a run computes on, and the memory it takes."""

import math
import sys

import torch


def pick_device(device: str = "auto", gpu_ids: str = "0") -> torch.device:
    """The device that --device and --gpu_ids ask for.

    `auto` takes the first of gpu_ids where CUDA is there, else Apple's mps, else the CPU; gpu_ids -1 is the CPU.

    Raises:
        ValueError: the device asked for is not there, or the two contradict each other.
    """
    first = gpu_ids.split(",")[0].strip()
    if device == "cpu" or (device == "auto" and first == "-1"):
        return torch.device("cpu")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if first == "-1":
            raise ValueError("--gpu_ids -1 is the CPU, but --device cuda asks for a GPU: leave one of them out")
        index = int(first)
        if index >= torch.cuda.device_count():
            raise ValueError(f"--gpu_ids {gpu_ids}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}")
        return torch.device("cuda", index)
    if device in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if device == "auto":
        return torch.device("cpu")
    raise ValueError(f"--device {device}: PyTorch finds none on this machine; --device cpu works everywhere")


def peak_memory() -> float:
    """The most bytes that this process has held so far: on GPUs where it uses any, else in main memory.

    NaN on Windows without a GPU, where Python does not tell.
    """
    if torch.cuda.is_initialized():
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    if sys.platform == "win32":
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
