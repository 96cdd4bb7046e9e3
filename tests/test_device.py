"""The choice of the device that a process computes on."""

import pytest
import torch

from util.device import select_device


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


def test_a_gpu_that_is_not_there_is_refused(current):
    with pytest.raises(ValueError, match="gpu_ids=2: this machine has GPUs 0 to 1"):
        select_device("auto", "2")
    assert not current
