"""Find a trained model: its options, its weights, and the networks ready for images of any size."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.scans import LAST
from inference.hub import local_file
from models import create_model
from models.base_model import BaseModel
from models.networks import build_generator
from models.networks.any_size import AnySize
from models.networks.infer import GENERATOR_FLAGS, as_text, infer_generator, infer_network
from models.networks.layers import spectral_normalize
from models.test_model import generator_labels
from models.weights import find_weights, load_weights, parse_notes, read_weights, safetensors_notes
from options import values
from options.base_options import Options, read_saved
from options.test_options import TestOptions
from util.checkpoint_files import WEIGHTS, checkpoint_label
from util.color import join_lab, split_lab
from util.device import tuning
from util.images import PixelFormat, read_formats

# models whose generator does not translate images -> what it does
NOT_TRANSLATING = {"colorization": "adds colors to gray ones", "sagan": "makes them from noise"}


@dataclass(frozen=True)
class Source:
    """Where the weights of a trained model are, and the flags that describe it.

    Attributes:
        run_dir: the folder of the weights.
        label: of the checkpoint: latest, best, the number of an epoch, or iter_N.
        file: a single file of weights instead of a run.
        flags: the saved options of the run, overridden by `inferred`.
        inferred: the flags inferred from the weights; empty if the options of the run were saved.
        formats: the formats of the domains "A" and "B" of the run; empty if none are saved.
    """

    run_dir: Path
    label: str
    file: Path | None
    flags: dict[str, Any]
    inferred: dict[str, Any]
    formats: dict[str, PixelFormat]

    def domains(self, direction: str | None = None) -> tuple[str, str]:
        """The letters of the domains that the generator of `direction` (None: as trained) translates: from, to."""
        used = direction or self.flags.get("direction", "AtoB")
        return used[0], used[-1]

    def value_range(self, domain: str) -> tuple[float, float] | None:
        """The values of deep files of a domain, "A" or "B", that became -1 and 1; None if their dtype decided."""
        return values.bounds(self.flags.get(f"value_range_{domain}") or self.flags.get("value_range", ""))

    def is_reverse(self, direction: str) -> bool:
        """Whether `direction` is not the one the model was trained in. False for files of a single generator."""
        return self.file is None and direction != self.flags.get("direction", direction)

    def check_translates(self, *, colorizes: bool = False) -> None:
        """Raise ValueError if the generator of the model does not translate images; one that `colorizes` may pass."""
        model = self.flags.get("model")
        if model in NOT_TRANSLATING and not (colorizes and model == "colorization"):
            place, program = self.file or self.run_dir, "test.py"
            if place.suffix == ".onnx":
                program = "onnxruntime, see docs/inference.md"
            raise ValueError(
                f"{place}: a generator of {model} does not translate images, but {NOT_TRANSLATING[model]}, by {program}"
            )


def find_source(run_dir: Path, label: str, *, file: Path | None = None) -> Source:
    """Find the options of a run, or infer them from the weights if none were saved.

    Args:
        run_dir: the folder of the run.
        label: of the checkpoint: latest, best, the number of an epoch, or iter_N.
        file: weights of a generator in `run_dir`, to use instead of the checkpoint.

    Raises:
        ValueError: `file` is not a generator, or the saved options are damaged.
    """
    saved, inferred, formats = read_saved(run_dir), {}, read_formats(run_dir)
    trained: dict[str, Any] = {"direction": "AtoB"}
    if file:
        if re.search("_net_G_B(_ema)?$", file.stem):  # of the other direction
            saved = saved | {"direction": "AtoB" if saved.get("direction") == "BtoA" else "BtoA"}
        weights = read_weights(file)
        if notes := parse_notes(safetensors_notes(file)) if file.suffix == ".safetensors" else {}:
            noted, formats = from_notes(notes)
            saved = saved | noted
        if saved.get("model") != "sagan":  # whose weights do not show where attention is
            try:
                inferred = infer_generator(weights)
            except ValueError as error:
                beside = sorted(path.name for path in run_dir.glob("*_net_G*") if path != file)
                near = f". Generators beside it: {', '.join(beside)}" if beside else ""
                raise ValueError(f"{file}: {error}{near}") from error
    elif not saved:
        bare = [run_dir / WEIGHTS.format(label=label, network=network) for network in ("G_A", "G")]
        if found := next((path for path in bare if path.is_file()), None):
            inferred = infer_network(read_weights(found))
            if found == bare[1]:
                trained = {}  # without options, a lone G is assumed to be of the requested direction
    return Source(run_dir, label, file, trained | saved | inferred, inferred, formats)


def from_notes(notes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, PixelFormat]]:
    """The flags and formats that an exported file notes; see `inference.export.read_notes`."""
    fmt = notes["output_format"]
    if "z_dim" in notes["network"]:
        return {"model": "sagan", **notes["network"]}, {"A": PixelFormat.from_dict(fmt)} if fmt else {}
    first, second = notes["domains"]
    flags: dict[str, Any] = {"direction": f"{first}to{second}"}
    for domain, pair in ((first, notes["value_range"]), (second, notes["output_range"])):
        flags[f"value_range_{domain}"] = "{},{}".format(*pair) if pair else ""
    flags["slice_axis"] = notes.get("slice_axis", LAST)
    formats = {second: PixelFormat.from_dict(fmt)} if fmt else {}
    if classes := notes.get("classes"):
        formats[first] = PixelFormat(classes=tuple(classes))
    return flags, formats


@dataclass(frozen=True)
class Trained:
    """A trained model for test.py: its options, and where its weights are.

    Attributes:
        opt: all options of test.py.
        run_dir, label, file: see Source.
        reverse: the requested direction is not the one the model was trained in.
        inferred: a message about the inferred flags; empty if there are none.
        formats: the saved formats of the domains "A", translated from, and "B", translated to; empty if none are saved.
    """

    opt: Options
    run_dir: Path
    label: str
    file: Path | None
    reverse: bool
    inferred: str
    formats: dict[str, PixelFormat]

    def build(self, device: torch.device) -> tuple[BaseModel, dict[str, Path]]:
        """Build the model, for images of any size. Returns it with the file that each network was loaded from."""
        opt, files = self.opt, {}
        model = create_model(opt).eval()
        for name, net in list(model.named_children()):
            sources = model.sources(name, reverse=self.reverse)
            files[name] = self.file or find_weights(self.run_dir, self.label, with_averages(sources, not opt.no_ema))
            load_weights(net, files[name])
            setattr(model, name, prepare(net, device, evaluate=opt.eval))
        return model, files


def find_trained(argv: Sequence[str] | None = None) -> Trained:
    """Find the model that a command line of test.py asks for.

    The options saved with the run become the defaults of the flags. Mistakes in the flags end the process, as in any
    parser.

    Raises:
        ValueError: the file of --weights is not a generator, or the saved options are damaged.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    default = ["--model=test"] if any(word.partition("=")[0] == "--weights" for word in argv) else []
    flags = TestOptions().peek([*default, *argv])
    label = checkpoint_label(flags["epoch"], flags["load_iter"])
    file = local_file(flags["weights"]) if flags.get("weights") else None
    if file:
        source = find_source(file.parent, label, file=file)
        default = [] if source.flags.get("model") == "sagan" else default
        argv = [*default, f"--name={Path(flags['weights']).stem}", *argv]
    else:
        source = find_source(Path(flags["checkpoints_dir"]) / flags["name"], label)
    opt = TestOptions().parse(argv, source.flags)
    for flag in ("epoch", "load_iter", "no_ema", "model_suffix"):
        if file and flag in opt.as_dict() and opt.given(flag):
            raise ValueError(f"--{flag} chooses among the weights of a run, but --weights {file} is one file")
    if opt.model == "test":
        try:
            source.check_translates()
        except ValueError as error:
            raise ValueError(f"{error}: omit --model test") from error
    if (reverse := source.is_reverse(opt.direction)) and "input_nc" in source.flags:
        opt = TestOptions().parse(argv, swap_channels(source.flags))
    text = f"inferred from the weights: {as_text(source.inferred)}" if source.inferred else ""
    if source.inferred and "no_dropout" not in source.inferred:
        text += f"; weights do not show whether dropout was used: running {'without' if opt.no_dropout else 'with'} it"
    ranges, labels = {"A": opt.value_range_A, "B": opt.value_range_B}, {"A": opt.label_A, "B": opt.label_B}
    formats: dict[str, PixelFormat] = {}
    for side, letter in zip("AB", source.domains(opt.direction), strict=True):
        if labels[letter]:
            formats[side] = PixelFormat(classes=tuple(labels[letter]))
        elif fmt := source.formats.get(letter):
            formats[side] = fmt.with_range(values.bounds(ranges[letter])) if fmt.has_range else fmt
    return Trained(opt, source.run_dir, source.label, file, reverse, text, formats)


class Colorizer(nn.Module):
    """The generator of a colorization model as a network from images to images.

    Args:
        net: L (B, 1, H, W) -> ab (B, 2, H, W), both as `split_lab` scales them.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1], of which the lightness counts, to (B, 3, H, W)."""
        L, _ = split_lab(image)
        return join_lab(L, self.net(L))


def load_generator(
    source: Source, device: torch.device, *, direction: str | None = None, ema: bool = True, evaluate: bool = False
) -> tuple[nn.Module, int]:
    """Load the generator of `source` for images of any size.

    Args:
        device: of the generator.
        direction: AtoB or BtoA; None takes the one it was trained in.
        ema: prefer averaged weights.
        evaluate: running statistics in batch norm and no dropout.

    Returns:
        The generator, (B, input_nc, H, W) -> (B, output_nc, H, W), and input_nc; 3 -> 3 for a colorization model.

    Raises:
        ValueError: there are no such weights, they are damaged, or they do not fit the flags.
    """
    source.check_translates(colorizes=True)
    reverse = direction is not None and source.is_reverse(direction)
    labels = with_averages(generator_labels(reverse=reverse), ema)
    path = source.file or find_weights(source.run_dir, source.label, labels)
    flags = swap_channels(source.flags) if reverse else source.flags
    if not flags.keys() >= GENERATOR_FLAGS:
        flags = {"no_dropout": True} | infer_generator(read_weights(path)) | flags
    spectral = flags["spectral_norm_G"]
    net = build_generator(**{flag: flags[flag] for flag in GENERATOR_FLAGS - {"spectral_norm_G"}})
    if spectral:
        spectral_normalize(net)
    load_weights(net, path)
    ready = prepare(net, device, evaluate=evaluate)
    if flags.get("model") == "colorization":
        return Colorizer(ready), 3
    return ready, flags["input_nc"]


def with_averages(labels: Sequence[str], ema: bool) -> list[str]:
    """Labels of network files; with `ema`, each after the label of its averaged weights."""
    return [label + suffix for label in labels for suffix in (("_ema", "") if ema else ("",))]


def swap_channels(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of the generator of the other direction."""
    return flags | {"input_nc": flags["output_nc"], "output_nc": flags["input_nc"]}


def prepare(net: nn.Module, device: torch.device, *, evaluate: bool) -> nn.Module:
    """Move `net` to the device, in the mode for inference; a generator of images then takes images of any size.

    As in upstream's test mode, dropout is on and batch norm uses the statistics of the image, unless `evaluate`.
    """
    ready = AnySize(net) if hasattr(net, "stride") else net
    ready.to(device).requires_grad_(False).eval()
    for module in ready.modules():
        if isinstance(module, (nn.Dropout, nn.BatchNorm2d)):
            module.train(not evaluate)
    return ready.to(memory_format=tuning(device, training=False).memory_format)
