"""Find a trained model: its options, its weights, and the networks ready for images of any size."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import create_model
from models.base_model import BaseModel
from models.networks.any_size import AnySize
from models.networks.infer import as_text, infer_generator, infer_network
from models.networks.layers import BATCH_NORMS
from models.weights import find_weights, load_weights, read_weights
from options.base_options import Options, read_saved
from options.test_options import TestOptions
from util.checkpoint_files import WEIGHTS, checkpoint_label


@dataclass(frozen=True)
class Trained:
    """A trained model: its options, and where its weights are."""

    opt: Options
    run_dir: Path
    label: str  # of its checkpoint: latest, the number of an epoch, or iter_N
    file: Path | None  # of --weights, instead of a run
    reverse: bool  # the requested direction is not the one it was trained in
    inferred: str  # where its flags come from, if not from the options of a run

    def build(self, device: torch.device) -> tuple[BaseModel, dict[str, Path]]:
        """The model, for images of any size, and the file that each of its networks was loaded from."""
        opt, files = self.opt, {}
        model = create_model(opt).to(device)
        for name, net in list(model.named_children()):
            sources = model.sources(name, reverse=self.reverse)
            if not opt.no_ema:
                sources = [source + suffix for source in sources for suffix in ("_ema", "")]
            files[name] = self.file or find_weights(self.run_dir, self.label, sources)
            load_weights(net, files[name])
            if hasattr(net, "stride"):
                setattr(model, name, AnySize(net))
        model.requires_grad_(False).eval()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, *BATCH_NORMS)):  # upstream's test mode: noise, statistics of the image
                module.train(not opt.eval)
        if device.type == "cpu":
            model.to(memory_format=torch.channels_last)  # 8% faster
        return model, files


def find_trained(argv: Sequence[str] | None = None) -> Trained:
    """The model that a command line of test.py asks for, with the network's flags from the run's saved options.

    Where there are none, they are inferred from the weights. Mistakes in the flags end the process, as in any parser.

    Raises:
        ValueError: the file of --weights is no generator's, or the saved options are damaged.
    """
    argv = sys.argv[1:] if argv is None else argv
    flags = TestOptions().peek(argv)
    label = checkpoint_label(flags["epoch"], flags["load_iter"])
    file = Path(flags["weights"]) if flags.get("weights") else None
    if file:
        run_dir, argv = file.parent, [f"--name={file.stem}", *argv]
        saved, inferred = read_saved(run_dir), _infer_from(file)
    else:
        run_dir = Path(flags["checkpoints_dir"]) / flags["name"]
        saved, inferred = read_saved(run_dir), {}
        bare = [run_dir / WEIGHTS.format(label=label, network=network) for network in ("G_A", "G")]
        found = [path for path in bare if path.is_file() and not saved]
        if found:
            inferred = infer_network(read_weights(found[0]))
            if found[0] == bare[1]:
                saved = {"direction": TestOptions().parse(argv).direction}  # a lone G was trained in the one asked for
    saved |= inferred
    opt = TestOptions().parse(argv, saved)
    for flag in ("epoch", "load_iter", "no_ema", "model_suffix"):
        if file and flag in opt.as_dict() and opt.given(flag):
            raise ValueError(f"--{flag} chooses among the weights of a run, but --weights {file} is one file")
    if opt.model == "test" and saved.get("model") in ("colorization", "sagan"):
        raise ValueError(f"a run of {saved['model']} does not translate pictures into pictures: leave out --model test")
    reverse = file is None and opt.direction != saved.get("direction", "AtoB")
    if reverse and "input_nc" in saved:
        opt = TestOptions().parse(argv, saved | {"input_nc": saved["output_nc"], "output_nc": saved["input_nc"]})
    text = f"inferred from the weights: {as_text(inferred)}" if inferred else ""
    if inferred and "no_dropout" not in inferred:
        text += f"; dropout leaves no trace in them, they are used {'without' if opt.no_dropout else 'with'} it"
    return Trained(opt, run_dir, label, file, reverse, text)


def _infer_from(file: Path) -> dict[str, Any]:
    weights = read_weights(file)
    try:
        return infer_generator(weights)
    except ValueError as error:
        raise ValueError(f"--weights {file}: {error}") from error
