"""Checkpoints: one file of weights a network, under upstream's names, and one file with the rest of the run's state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.infer import differing_flags

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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a network's file by name, without what other versions and wrappers have added.

    These are the prefixes `module.` of DataParallel and `_orig_mod.` of torch.compile, and the statistics that PyTorch
    before 0.4 kept for instance norm, which has no weights. Nothing in the file is executed.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but named tensors.
    """
    content = _read(path)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} holds no network: {key!r} is a {type(value).__name__}, not a tensor")
    wrappers = ("module", "_orig_mod")
    weights = {".".join(part for part in key.split(".") if part not in wrappers): content[key] for key in content}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {
        key: value
        for key, value in weights.items()
        if not key.endswith(statistics) or f"{key.rpartition('.')[0]}.weight" in weights
    }


def load_weights(net: nn.Module, path: Path) -> bool:
    """Load a file of plain tensors into `net`; returns whether it fills all of it.

    Attention blocks that the file does not know keep their weights: they change nothing as long as gamma is 0.

    Raises:
        ValueError: the file is missing, damaged, or made for another network; the message names the file, the flags
            that differ and the first differences.
    """
    weights, expected = read_weights(path), net.state_dict()
    new = [key for key in expected if key not in weights]
    if found := differences(weights, expected):
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise ValueError(
            f"{path} was made for another network than the flags describe. {differing_flags(weights, expected)}. "
            f"First differences: {shown}"
        )
    net.load_state_dict(weights, strict=False)
    if new:
        print(f"{path.name} has no attention: new blocks start with gamma 0, which changes no pixel")
    return not new


def differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps `weights` from filling a network that has `expected`; attention may be missing."""
    missing = [key for key in expected if key not in weights and not key.startswith("attention.")]
    return [
        *(f"{key} is missing" for key in missing),
        *(f"{key} is not expected" for key in weights if key not in expected),
        *(
            f"{key} is {tuple(weights[key].shape)}, not {tuple(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ),
    ]


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
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a damaged file
        cause = error.__context__ or error  # torch wraps its reason in the advice to load the file unsafely
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise ValueError(
            f"{path} is not a readable checkpoint of plain tensors, so nothing in it was executed: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no checkpoint: it holds a {type(content).__name__}, not a dict of tensors")
    return content


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
