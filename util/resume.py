"""Going on where a run was saved, and going back there."""

from pathlib import Path
from typing import Any

import torch

from models.base_model import BaseModel
from util import distributed
from util.checkpoint import load_networks
from util.saves import read_state

POSITION = ("epoch", "epoch_images", "total_images", "steps")  # of a run: the epoch counts from 1, the rest from 0


def random_state() -> dict:
    """The states of torch's random generators."""
    state: dict = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def take_over(model: BaseModel, state: dict[str, Any]) -> dict[str, Any]:
    """Give `model` and the random generators what a run has saved beside its weights; returns where to start.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: it was saved for another model.
    """
    start = {name: state[name] for name in POSITION} | {"continued": True}
    saved = [{"pools": state["model"]["pools"], "random": state["random"]}, *state["other_processes"]]
    new = {"pools": {name: [] for name in model.pools}, "random": random_state()}  # of a process that joins
    own = [*saved, new][min(distributed.rank(), len(saved))]
    model.load_training_state(state["model"] | {"pools": own["pools"]}, epoch=start["epoch"])
    torch.set_rng_state(own["random"]["cpu"])
    if "cuda" in own["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(own["random"]["cuda"][: torch.cuda.device_count()])
    if len(saved) != distributed.count():
        print(f"saved by {len(saved)} processes, continued by {distributed.count()}: not exactly the same run any more")
    return start


def roll_back(model: BaseModel, run_dir: Path) -> dict[str, Any]:
    """Give `model` the latest save of its run, but half the learning rate of now; returns where to start."""
    halvings, state = model.halvings, read_state(run_dir, "latest")
    if state is None:
        raise ValueError(f"{run_dir} holds no save to go back to")
    load_networks(model, run_dir, "latest")
    start = take_over(model, state)
    model.halve_rates(halvings + 1)
    return start
