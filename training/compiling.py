"""Compiling the networks of a model, where that pays."""

import torch

from models.base_model import BaseModel

PAYS_AFTER = 500  # steps: a tenth of them takes about as long as compiling


def compile_networks(model: BaseModel, *, steps: int, sizes: int) -> str:
    """Let the networks of `model` be compiled in their first steps, if they gain by it.

    Args:
        steps: of the whole run, so that a run that goes on decides as it did before.
        sizes: how many sizes the pictures have, each of which would be compiled for.

    Returns:
        What to tell the user: that it will take its time, or why it goes on without.
    """
    without = "; going on without"
    if steps < PAYS_AFTER:
        return f"--compile: {steps} steps are too few to win back the minute that it takes{without}"
    if sizes > 1:
        return f"--compile: pictures have {sizes} sizes and every one would be compiled for{without}"
    try:
        trial = torch.compile(torch.exp)  # no layer, whose first weights would be drawn from the run's random numbers
        trial(torch.zeros(2, device=model.device, requires_grad=True)).sum().backward()
    except Exception as error:  # compilers are missing or fail in many ways
        return f"--compile does not work here ({str(error).strip().splitlines()[0]}){without}"
    torch._dynamo.config.suppress_errors = True  # a network that cannot be compiled runs as it is, with a warning
    for name, net in model.named_children():
        if not name.endswith("_ema"):
            net.compile(dynamic=False)
    return "the networks are compiled in the first steps, which takes a minute or more"
