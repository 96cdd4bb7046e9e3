"""Initialize a model from earlier weights (--init_from)."""

import re
from pathlib import Path

from torch import Tensor, nn

from models.networks.infer import differing_flags
from models.weights import differences, read_weights
from util.checkpoint_files import WEIGHTS, complete_checkpoint
from util.errors import RemediedError


def init_from(model: nn.Module, source: Path, label: str, *, reverse: bool = False, partial: bool = False) -> str:
    """Load the weights of older networks into those of `model`, which may have more attention.

    Args:
        model: its children are the networks. Averaged ones get the weights of the plain ones.
        source: the folder of a run, or one file. Each file `{label}_net_{network}.pth` of a run goes to the network of
            this name; G and G_A stand for each other, and so do D and D_A. One file goes to the network that it is
            named after, or else to the first of those that share the most weights with it.
        label: of the checkpoint in the folder.
        reverse: the run was trained in the other direction, so A and B are swapped.
        partial: load what fits by name and shape of files that belong to other networks.

    Returns:
        A report: the file of each network and the weights that do not fit.

    Raises:
        ValueError: there is no file, a file is damaged, or no weights fit.
        RemediedError: a file belongs to another network, and not `partial`. No network is changed.
    """
    nets = {name: net for name, net in model.named_children() if not name.endswith("_ema")}
    labels = {name: _labels(name, reverse=reverse) for name in nets}
    files = _files_of_run(source, label, labels) if source.is_dir() else {_network_for(source, nets, labels): source}
    fitting, lines, others = {}, [], []
    for name, net in nets.items():
        if name in files:
            fitting[name], report, fits = _compare(net, files[name])
            lines += [f"{name} takes {report[0]}", *(f"  {line}" for line in report[1:])]
            others += [] if fits else [str(files[name])]
        else:
            lines.append(f"{name} keeps its random weights")
    if not any(fitting.values()):
        raise ValueError("\n".join([f"{source} has no weights that fit:", *lines]))
    if others and not partial:
        raise RemediedError(
            "\n".join([f"{others[0]} was made for another network, so only a part would be loaded:", *lines])
            + "\nChoose the flags of that network, or load the part that fits.",
            remedy={"init_partial": True},
        )
    for name, weights in fitting.items():
        nets[name].load_state_dict(weights, strict=False)
    for name, average in model.named_children():
        if name not in nets:
            average.load_state_dict(nets[name.removesuffix("_ema")].state_dict())
    return "\n".join(lines)


def _labels(name: str, *, reverse: bool) -> list[str]:
    """Labels of the files that network `name` may start from, best first: for netG_A, G_A and G."""
    kind, _, side = name.removeprefix("net").partition("_")
    if reverse:
        side = {"A": "B", "B": "A", "": "B"}.get(side, side)
    labels = {"A": [f"{kind}_A", kind], "": [kind, f"{kind}_A"]}
    return labels.get(side, [f"{kind}_{side}"])


def _files_of_run(run_dir: Path, label: str, labels: dict[str, list[str]]) -> dict[str, Path]:
    """The file of each network that has one: name -> path."""
    files: dict[str, Path] = {}
    complete = complete_checkpoint(run_dir, label)
    for name, networks in labels.items():
        for network in networks:
            path = run_dir / WEIGHTS.format(label=label, network=network)
            path = complete.get(path.name, path)
            if path.is_file():
                files.setdefault(name, path)
    if not files:
        there = ", ".join(sorted(path.name for path in run_dir.glob("*.pth"))) or "no weights"
        raise ValueError(f"{run_dir} holds {there}, nothing for {', '.join(labels)} at {label}")
    return files


def _network_for(path: Path, nets: dict[str, nn.Module], labels: dict[str, list[str]]) -> str:
    """The name of the network that a single file goes to."""
    if named := re.fullmatch(r".+_net_(.+?)(_ema)?", path.stem):
        for name in nets:
            if named[1] in labels[name]:
                return name
    weights = read_weights(path)
    return max(nets, key=lambda name: len(_fitting(weights, nets[name].state_dict())))


def _compare(net: nn.Module, path: Path) -> tuple[dict[str, Tensor], list[str], bool]:
    """Compare a file with a network. Returns the weights that fit, lines of a report, and whether all fit."""
    weights, expected = read_weights(path), net.state_dict()
    fitting = _fitting(weights, expected)
    lines = [f"{len(fitting)} of {len(expected)} tensors from {path}"]
    if rest := differences(weights, expected):
        lines += [differing_flags(weights, expected), *rest]
    if any(key.startswith("attention.") and key not in weights for key in expected):
        lines.append("new attention blocks start with gamma 0 and change no pixel")
    return fitting, lines, not rest


def _fitting(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose name and shape are expected."""
    return {key: value for key, value in weights.items() if key in expected and value.shape == expected[key].shape}
