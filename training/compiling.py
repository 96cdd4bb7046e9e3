"""Compile the networks of a model, where that pays."""

import logging
from collections.abc import Collection

import torch
from torch import Tensor, nn

from models.base_model import BaseModel
from models.networks.layers import SyncBatchNorm
from util import distributed

VARIANTS = 64  # most that PyTorch compiles of all networks together: they share one function. Its default is 8.
PAYS_AFTER = 500  # steps: a tenth of them takes about as long as compiling

log = logging.getLogger(__name__)


def compile_networks(
    model: BaseModel, *, steps: int, sizes: Collection[tuple[int, int]], batch_size: int, mode: str = "default"
) -> str:
    """Compile the networks of `model`, if the run gains by it and all of them compile.

    Each network makes one forward and backward pass, which compiles it, before training starts. Neither its state nor
    the random state changes. Training compiles more variants in its first steps, such as other batch sizes.

    Args:
        steps: of the whole run, so that a resumed run decides as it did before.
        sizes: (width, height) of all images. Each size would be compiled for.
        batch_size: of a training step in this process.
        mode: of torch.compile, such as reduce-overhead for CUDA graphs.

    Returns:
        A message for the user: the networks are compiled, or why they are not.
    """
    without = "; training without"
    if steps < PAYS_AFTER:
        return f"--compile: {steps} steps are too few to make up for the minute that compiling takes{without}"
    if len(sizes) > 1:
        return f"--compile: images have {len(sizes)} sizes, each of which would be compiled for{without}"
    log.info("compiling the networks, which takes a minute or more")
    torch._dynamo.config.cache_size_limit = VARIANTS
    (size,) = sizes
    examples = {name: model.example_input(name, size, batch_size=batch_size) for name, _ in model.named_children()}
    inputs = {name: example for name, example in examples.items() if example is not None and not name.endswith("_ema")}
    nets = {name: model.get_submodule(name) for name in inputs}
    for name, net in nets.items():
        net.compile(dynamic=False, mode=mode)
        try:
            if not waits_for_others(net):
                try_out(model, name, inputs[name])
        except Exception as error:  # compilers are missing or fail in many ways
            for compiled in nets.values():
                compiled._compiled_call_impl = None  # the only way back from Module.compile
            return f"--compile does not work here ({name}: {reason(error)}){without}"
    return "the networks are compiled"


def waits_for_others(net: nn.Module) -> bool:
    """Whether a forward pass of `net` exchanges statistics with other processes, which wait if this one fails."""
    return distributed.world_size() > 1 and any(isinstance(module, SyncBatchNorm) for module in net.modules())


def try_out(model: BaseModel, name: str, example: Tensor) -> None:
    """Run the network `name` forward and backward as training does. Its buffers and the random state are restored."""
    net, x = model.get_submodule(name), example.to(model.device)
    # As the fakes do that train the generators. The same code serves both.
    x.requires_grad_(name.startswith(("netD", "netP")))
    buffers = [buffer.clone() for buffer in net.buffers()]
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        with model.optimization.autocast():
            out = net(x)
        torch.autograd.grad(out.sum(), list(net.parameters()))
    for buffer, before in zip(net.buffers(), buffers, strict=True):
        buffer.copy_(before)


def reason(error: Exception) -> str:
    """The cause of an error of PyTorch's compilers, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
