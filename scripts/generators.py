"""The flags by which scripts choose a trained generator."""

import argparse
from pathlib import Path

from options import values


def add_generator_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add --name, --weights and what chooses among the weights of a run.

    Args:
        several: the script takes both directions of a run, or several files of weights.
    """
    add = parser.add_argument_group("generator").add_argument
    add("--name", type=values.plain_name, help="name of the run with the generator")
    text = "a .pth or .safetensors file of a generator, instead of a run"
    if several:
        add("--weights", type=Path, nargs="+", metavar="FILE", help=f"{text}; several are possible")
    else:
        add("--weights", type=Path, metavar="FILE", help=text)
    add("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder of all runs (default: checkpoints)")
    text = f"direction of the translation (default: {'both' if several else 'as trained'})"
    add("--direction", choices=("AtoB", "BtoA"), help=text)
    text = "weights of the run: latest, best, or the number of an epoch (default: latest)"
    add("--epoch", type=values.plain_name, default="latest", help=text)
    add("--no_ema", action="store_true", help="the trained weights, not their average, if the run has both")
    add("--eval", action="store_true", help="running statistics in batch norm, no dropout")


def check_generator(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a parser error unless either --name or --weights is given."""
    if (args.name is None) == (args.weights is None):
        parser.error("name a trained generator: either a run by --name, or a file by --weights")
