"""Deterministic weights for the golden values: every tensor is a function of its name and shape alone."""

import zlib

import torch


def fill(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict with the same names and shapes, filled by name (see README.md)."""
    filled = {}
    for name, tensor in state_dict.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            value = torch.zeros_like(tensor)
        elif name.endswith("running_var"):
            value = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif name.endswith("gamma"):
            value = torch.full(tensor.shape, 0.3)
        elif tensor.dim() == 1 and name.endswith("weight"):
            value = 1 + 0.1 * torch.randn(tensor.shape, generator=generator)
        else:
            fan_in = max(1, tensor[0].numel())
            value = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        filled[name] = value
    return filled
