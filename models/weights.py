"""Weights: reading files of our own and of upstream, loading them into networks, and saying what is wrong with them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from models.networks.infer import differing_flags
from util.checkpoint_files import STATE, WEIGHTS, complete_checkpoint, read_tensors, temporary

log = logging.getLogger(__name__)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a network's file by name, without what other versions and wrappers have added.

    These are the prefixes `module.` of DataParallel and `_orig_mod.` of torch.compile, and the statistics that PyTorch
    before 0.4 kept for instance norm, which has no weights. Nothing in the file is executed.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but named tensors.
    """
    content = read_tensors(path)
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
        places = ", ".join(dict.fromkeys(key.split(".")[1] for key in new))
        log.info("%s has no attention at %s: new blocks start with gamma 0, which changes no pixel", path.name, places)
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
    # Of a save that was cut off while its files were renamed, none else count: others are of the save before.
    cut_off = complete_checkpoint(run_dir, label) if temporary(run_dir / STATE.format(label=label)).is_file() else {}
    for path in paths:
        if path.name in cut_off or (not cut_off and path.is_file()):
            return cut_off.get(path.name, path)
    raise no_weights(run_dir, " or ".join(path.name for path in paths))


def no_weights(run_dir: Path, wanted: str) -> ValueError:
    """The error for weights that are not in run_dir, with what there is instead."""
    if not run_dir.is_dir():
        runs = sorted(path.name for path in run_dir.parent.glob("*/") if path.is_dir())
        there = f"--checkpoints_dir {run_dir.parent} holds {', '.join(runs) or 'no runs'}"
        return ValueError(f"no run {run_dir.name!r}: {there}; choose one by --name")
    found = ", ".join(sorted(path.name for path in run_dir.glob("*_net_*.pth"))) or "no weights"
    return ValueError(f"{wanted} is not in {run_dir}, which holds {found}: look at --name and --epoch")


def load_networks(model: nn.Module, run_dir: Path, label: str) -> bool:
    """Load every network of `model` from run_dir; returns whether that fills them, or they have gained attention.

    An averaged network that was not kept so far starts from the plain one.
    """
    filled = True
    for name, net in model.named_children():
        network = name.removeprefix("net")
        filled &= load_weights(net, find_weights(run_dir, label, [network, network.removesuffix("_ema")]))
    return filled
