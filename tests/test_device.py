"""The choice of the device that a process computes on."""

import os

import pytest
import torch

from options.train_options import TrainOptions
from util.device import create_tuning, select_device, tuning, warn_once

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def current(monkeypatch):
    """Two GPUs. Returns the list of devices that become the current one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.device("cuda", device).index))
    return chosen


def test_a_single_process_makes_its_gpu_the_current_one(current):
    """Streams, events and memory statistics are those of the current device unless another one is named."""
    assert select_device("auto", "1") == torch.device("cuda", 1)
    assert select_device("cuda", "0") == torch.device("cuda", 0)
    assert current == [1, 0]


@pytest.mark.parametrize(("device", "gpu_ids"), [("cpu", "1"), ("auto", "-1")])
def test_the_cpu_leaves_the_gpus_alone(current, device, gpu_ids):
    assert select_device(device, gpu_ids) == torch.device("cpu")
    assert not current


def test_gpus_that_stay_idle_are_no_secret(current, caplog):
    warn_once.cache_clear()
    for _ in range(2):
        assert select_device("auto", "1,0") == torch.device("cuda", 1)
    assert len(caplog.records) == 1
    assert "gpu_ids=1,0: a process computes on one GPU, so for all of them start torchrun --nproc_per_" in caplog.text


def test_gpus_that_are_asked_for_in_vain_are_no_secret(monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    warn_once.cache_clear()
    assert select_device("auto", "1") == CPU
    assert "gpu_ids=1: PyTorch finds no NVIDIA GPU, so the CPU computes" in caplog.text


def test_a_gpu_that_is_not_there_is_refused(current):
    with pytest.raises(ValueError, match="gpu_ids=2: this machine has GPUs 0 to 1"):
        select_device("auto", "2")
    assert not current


@pytest.mark.parametrize(
    ("device", "keywords", "expected"),
    [
        (CPU, {}, False),
        (CPU, {"compiled": True, "precision": "bf16"}, False),  # the compiler chooses
        (CPU, {"training": False}, True),
        (GPU, {"precision": "bf16"}, False),  # instance norm would undo it
        (GPU, {"precision": "bf16", "compiled": True}, True),
        (GPU, {"compiled": True}, True),
        (GPU, {"compiled": True, "tf32": False}, False),  # no tensor cores, which need it
        (GPU, {"training": False}, False),
    ],
)
def test_the_memory_format_suits_the_device(device, keywords, expected):
    choice = tuning(device, **keywords)
    assert choice.channels_last == expected
    assert choice.memory_format == (torch.channels_last if expected else torch.contiguous_format)


def test_algorithms_are_timed_on_gpus_for_few_sizes():
    assert tuning(GPU, sizes=4).benchmark
    assert not tuning(GPU, sizes=5).benchmark, "every size takes seconds"
    assert not tuning(GPU, deterministic=True).benchmark, "the fastest one may be another one in the next run"
    assert not tuning(CPU).benchmark
    assert tuning(GPU).pin_memory and not tuning(CPU).pin_memory


@pytest.mark.parametrize(("tf32", "expected"), [(None, (True, False)), (True, (True, True)), (False, (False, False))])
def test_tf32_is_pytorchs_default_unless_chosen(tf32, expected):
    choice = tuning(GPU, tf32=tf32)
    assert (choice.tf32_convolutions, choice.tf32_products) == expected


@pytest.mark.parametrize("keywords", [{"tf32": True}, {"tf32": False}, {"cuda_graphs": True, "compiled": True}])
def test_what_only_gpus_have_is_refused_elsewhere(keywords):
    with pytest.raises(ValueError, match=r"for .*NVIDIA GPUs, not (for|on) cpu: omit"):
        tuning(CPU, **keywords)


def test_cuda_graphs_are_those_of_compiled_networks():
    assert tuning(GPU, compiled=True, cuda_graphs=True).compile_mode == "reduce-overhead"
    assert tuning(GPU, compiled=True).compile_mode == "default"
    with pytest.raises(ValueError, match="CUDA graphs are for compiled networks"):
        tuning(GPU, cuda_graphs=True)


@pytest.fixture
def switches():
    """PyTorch's switches, which are restored."""

    def read():
        cudnn = torch.backends.cudnn
        precision = torch.get_float32_matmul_precision()
        return cudnn.benchmark, cudnn.allow_tf32, precision, torch.are_deterministic_algorithms_enabled()

    before = read()
    yield read
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])
    torch.use_deterministic_algorithms(before[3])


def test_choices_become_switches(switches, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    tuning(GPU, tf32=True).apply()
    assert switches() == (True, True, "high", False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    tuning(GPU, tf32=False, deterministic=True).apply()
    assert switches() == (False, False, "highest", True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    tuning(CPU).apply()
    assert switches() == (False, True, "highest", False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tf32 --no_tf32", "--tf32 and --no_tf32 contradict each other"),
        ("--cuda_graphs", "--cuda_graphs needs --compile"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        TrainOptions().parse(flags.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--tf32", "--no_tf32", "--compile --cuda_graphs"])
def test_flags_for_gpus_are_refused_on_a_cpu(flags):
    with pytest.raises(ValueError, match="NVIDIA GPUs"):
        create_tuning(TrainOptions().parse(flags.split()), CPU, precision="fp32", sizes=1)
