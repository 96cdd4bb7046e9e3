"""Checkpoints: one file of weights a network, under upstream's names, and one file with the rest of the run's state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

WEIGHTS = "{label}_net_{network}.pth"
STATE = "{label}_state.pth"


def save_checkpoint(model: nn.Module, run_dir: Path, label: str, state: dict[str, Any]) -> None:
    """Write `{label}_net_{network}.pth` for every child of `model`, and `{label}_state.pth`, into run_dir.

    All are written under temporary names and then renamed, so that none is ever half written. Averaged networks that an
    earlier run of this name has left are removed: they would be taken for this run's.
    """
    files: dict[Path, dict[str, Any]] = {}
    for name, net in model.named_children():
        weights = {key: value.cpu() for key, value in net.state_dict().items()}
        files[run_dir / WEIGHTS.format(label=label, network=name.removeprefix("net"))] = weights
    files[run_dir / STATE.format(label=label)] = state
    for path, content in files.items():
        torch.save(content, _temporary(path))
    for path in files:
        _temporary(path).replace(path)
    for path in run_dir.glob(WEIGHTS.format(label=label, network="*_ema")):
        if path not in files:
            path.unlink()


def load_weights(net: nn.Module, path: Path) -> bool:
    """Load a file of plain tensors into `net`; returns whether it fills all of it.

    Attention blocks that the file does not know keep their weights: they change nothing as long as gamma is 0. The
    statistics that old versions of PyTorch kept for instance norm are left out.

    Raises:
        ValueError: the file is missing, damaged, or made for another network; the message names the file, the first
            differences and the flags to look at.
    """
    expected = net.state_dict()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    loaded = {key: value for key, value in _read(path).items() if key in expected or not key.endswith(statistics)}
    new = [key for key in expected if key not in loaded]
    differences = [f"{key} is missing" for key in new if not key.startswith("attention.")]
    differences += [f"{key} is not expected" for key in loaded if key not in expected]
    differences += [
        f"{key} is {tuple(loaded[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in loaded and loaded[key].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise ValueError(
            f"{path} was made for another network than the flags describe: {shown}. Look at --netG, --netD, --ngf, "
            "--ndf, --norm, --no_dropout, --upsample, --attn_G, --attn_D, --input_nc and --output_nc"
        )
    net.load_state_dict(loaded, strict=False)
    if new:
        print(f"{path.name} has no attention: new blocks start with gamma 0, which changes no pixel")
    return not new


def find_weights(run_dir: Path, label: str, networks: Sequence[str]) -> Path:
    """The first of `{label}_net_{network}.pth` that is in run_dir. ValueError, listing the files there, if none is."""
    paths = [run_dir / WEIGHTS.format(label=label, network=network) for network in networks]
    for path in paths:
        if path.is_file():
            return path
    wanted = " or ".join(path.name for path in paths)
    if not run_dir.is_dir():
        runs = sorted(path.name for path in run_dir.parent.glob("*/") if path.is_dir())
        there = f"--checkpoints_dir {run_dir.parent} holds {', '.join(runs) or 'no runs'}"
        raise ValueError(f"no run {run_dir.name!r}: {there}; choose one by --name")
    found = ", ".join(sorted(path.name for path in run_dir.glob("*_net_*.pth"))) or "no weights"
    raise ValueError(f"{wanted} is not in {run_dir}, which holds {found}: look at --name, --epoch and --model_suffix")


def load_checkpoint(model: nn.Module, run_dir: Path, label: str) -> dict[str, Any] | None:
    """Load every network of `model` from run_dir; return the state saved with them.

    None where there is no state, or it does not fit because networks have gained attention. An averaged network that
    was not kept so far starts from the plain one.
    """
    filled = True
    for name, net in model.named_children():
        network = name.removeprefix("net")
        filled &= load_weights(net, find_weights(run_dir, label, [network, network.removesuffix("_ema")]))
    path = run_dir / STATE.format(label=label)
    return _read(path) if filled and path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint of plain tensors: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict of tensors")
    return content


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
