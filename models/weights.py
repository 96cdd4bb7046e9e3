"""Read files of weights, our own and upstream's, load them into networks, and write them for other programs."""

import difflib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from models.networks.infer import differing_flags
from util.checkpoint_files import CONVERT, STATE, WEIGHTS, complete_checkpoint, read_tensors, temporary
from util.errors import RemediedError

log = logging.getLogger(__name__)

WRAPPERS = ("module", "_orig_mod")  # DataParallel and torch.compile put these into names
STATE_KEYS = {"options", "model", "random"}  # of what training saves beside the weights
PLAIN = re.compile(r"model\.(\d+|model\.\d+)\.")  # how names in ResNets, PatchGANs and U-Nets begin


def in_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights with floating-point values in another dtype."""
    return {key: weight.to(dtype) if weight.is_floating_point() else weight for key, weight in weights.items()}


def write_safetensors(weights: Mapping[str, Tensor], path: Path, *, notes: str = "") -> None:
    """Write weights as safetensors, with `notes` in the metadata if there are any."""
    content = {key: weight.contiguous() for key, weight in weights.items()}
    # Not save_file, whose files nobody else may read.
    path.write_bytes(safetensors.torch.save(content, metadata={"notes": notes} if notes else None))


def safetensors_notes(path: Path) -> str:
    """What `write_safetensors` wrote beside the weights; empty if nothing."""
    with safetensors.safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("notes", "")


def parse_notes(text: str) -> dict[str, Any]:
    """The notes of scripts.export in the metadata of a file; empty if there are none, or those of another program."""
    try:
        notes = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return notes if isinstance(notes, dict) and notes.keys() >= {"network", "output_format"} else {}


def read_weights(path: Path, *, network: str = "", objects: bool = False) -> dict[str, Tensor]:
    """Read the weights of a network: name -> tensor. No code in the file is executed.

    The prefixes `module.` of DataParallel and `_orig_mod.` of torch.compile are removed from names, and so are the
    running statistics that PyTorch before 0.4 saved for instance norm without weights. A dict around the weights, such
    as {"epoch": 7, "state_dict": weights}, is removed too, and so is a name that all weights begin with, as in
    generator.model.1.weight.

    Args:
        path: a file of PyTorch or safetensors.
        network: in a file with several networks, the key of its dict or the prefix of its names, such as netG.
        objects: accept files with Python objects, which are ignored, except for whole networks.

    Raises:
        ValueError: the file is missing or damaged, or does not have one network of named tensors.
    """
    content: Mapping[str, Any] = split(read_tensors(path, objects=objects))
    if content.keys() >= STATE_KEYS:
        raise ValueError(f"{path} is the state of a run, and its weights lie beside it: take one of the *_net_*.pth")
    names: set[str] = set()  # of what is around the weights
    while not is_network(content):
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and has_network(value)}
        if len(inner) == 1:
            names |= inner.keys()
            (content,) = map(split, inner.values())
        elif network in inner:
            names |= inner.keys()
            content = split(inner[network])
        elif inner:
            several = ", ".join(map(str, inner))
            raise ValueError(f"{path} has several networks: {several}. Extract one: {CONVERT} --network NAME")
        else:
            found = ", ".join(f"{key!r}: {type(value).__name__}" for key, value in list(content.items())[:5])
            raise ValueError(f"{path} is not a network of names and tensors: it holds {found or 'nothing'}")
    if network and network not in names:
        raise ValueError(f"{path} has no network {network!r}, but {', '.join(sorted(names)) or 'one without a name'}")
    weights = dict(content)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    others = [key for key in weights if not key.endswith(statistics)]
    kept: dict[str, Any] = {}
    for key, value in weights.items():
        layer = key.rpartition(".")[0]
        if key.endswith(statistics) and not any(other.startswith(f"{layer}.") for other in others):
            continue
        kept[key] = value
        if key.endswith("running_var"):  # before 0.4.1, PyTorch saved no counter
            kept[f"{layer}.num_batches_tracked"] = weights.get(f"{layer}.num_batches_tracked", torch.tensor(0))
    return kept


def split(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The networks in `content`, whose names begin with the names of networks, such as netG.model.1.weight.

    Returns:
        name of a network -> its weights; or `content`, without the prefixes of wrappers, if it is a single network.
    """
    if not is_network(content):
        return content
    weights = {".".join(part for part in key.split(".") if part not in WRAPPERS): content[key] for key in content}
    if any(PLAIN.match(key) for key in weights):
        return weights
    networks: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        first, _, rest = key.partition(".")
        networks.setdefault(first, {})[rest] = value
    if networks.keys() >= {"encoder", "decoder"}:  # halves of one network
        return weights
    known = {name: inner for name, inner in networks.items() if any(map(PLAIN.match, inner))}
    deeper = {name: split(inner) for name, inner in networks.items() if len(networks) == 1 and "" not in inner}
    return known or next((inner for inner in deeper.values() if not is_network(inner)), weights)


def is_network(content: Mapping[Any, Any]) -> bool:
    """Whether `content` maps names to tensors."""
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def has_network(content: Mapping[Any, Any]) -> bool:
    """Whether `content` is a network or has one inside."""
    return is_network(content) or any(isinstance(value, Mapping) and has_network(value) for value in content.values())


def load_weights(net: nn.Module, path: Path) -> bool:
    """Load a file of weights into `net`. Attention blocks that are not in the file keep their weights.

    Returns:
        Whether the file has all weights of `net`.

    Raises:
        ValueError: the file is missing or damaged, or belongs to another network. The message names the arguments
            and the first weights that differ.
    """
    weights, expected = read_weights(path), net.state_dict()
    new = [key for key in expected if key not in weights]
    if found := differences(weights, expected):
        shown = "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
        raise ValueError(
            f"{path} was made for another network. {differing_flags(weights, expected)}. First differences: {shown}"
        )
    net.load_state_dict(weights, strict=False)
    if new:
        places = ", ".join(dict.fromkeys(map(block_of, new)))
        log.info("%s has no attention at %s: new blocks start with gamma 0 and change no pixel", path.name, places)
    return not new


def differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """A line for each weight in which `weights` and `expected` differ, unless a whole attention block is missing."""
    blocks = {block_of(key) for key in weights if key.startswith("attention.")}
    missing = [
        key for key in expected if key not in weights and (not key.startswith("attention.") or block_of(key) in blocks)
    ]
    return [
        *(f"{key} is missing" for key in missing),
        *(f"{key} is not expected" for key in weights if key not in expected),
        *(
            f"{key} is {tuple(weights[key].shape)}, not {tuple(value.shape)}"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ),
    ]


def block_of(key: str) -> str:
    """The stage of the attention block that a weight belongs to."""
    return key.split(".")[1]


def find_weights(run_dir: Path, label: str, networks: Sequence[str]) -> Path:
    """The path of the first file `{label}_net_{network}.pth` in run_dir. ValueError if there is none of them."""
    paths = [run_dir / WEIGHTS.format(label=label, network=network) for network in networks]
    # A process may have been killed while it renamed the files of a checkpoint. Then only these files belong together.
    interrupted = temporary(run_dir / STATE.format(label=label)).is_file()
    files = complete_checkpoint(run_dir, label) if interrupted else {}
    for path in paths:
        if path.name in files or (not files and path.is_file()):
            return files.get(path.name, path)
    raise no_weights(run_dir, " or ".join(path.name for path in paths))


def no_weights(run_dir: Path, wanted: str) -> RemediedError:
    """The error for `wanted` weights that are not in run_dir. It lists the runs or weights there."""
    if not run_dir.is_dir():
        runs = sorted(path.name for path in run_dir.parent.glob("*/") if path.is_dir())
        nearest = difflib.get_close_matches(run_dir.name, runs, n=1, cutoff=0)  # at most one
        message = f"no run {run_dir.name!r}: {run_dir.parent} holds {', '.join(runs) or 'no runs'}."
        return RemediedError(message, remedy=dict(zip(["name"], nearest, strict=False)))
    found = sorted(run_dir.glob("*_net_*.pth"), key=lambda path: path.stat().st_mtime)
    newest = found[-1].name.partition("_net_")[0] if found else ""
    names = ", ".join(sorted(path.name for path in found)) or "no weights"
    message = f"{wanted} is not in {run_dir}, which holds {names}."
    return RemediedError(message, remedy={"epoch": newest} if newest and not wanted.startswith(newest) else {})


def load_networks(model: nn.Module, run_dir: Path, label: str) -> bool:
    """Load all networks of `model` from run_dir. An averaged network without a file gets the plain weights.

    Returns:
        Whether the files have all weights; False if networks gained attention.

    Raises:
        ValueError: a file is missing or damaged, or belongs to another network.
    """
    filled = True
    for name, net in model.named_children():
        network = name.removeprefix("net")
        filled &= load_weights(net, find_weights(run_dir, label, [network, network.removesuffix("_ema")]))
    return filled
