"""Extract a network from a file of weights, as plain weights: python -m scripts.convert old.ckpt new.safetensors."""

import argparse
import sys
from pathlib import Path

import torch

from models.networks.infer import as_text, foreign, infer_network
from models.weights import in_dtype, read_weights, write_safetensors
from options.parser import script_parser
from util.command import run_command
from util.files import atomic

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUFFIXES = (".pth", ".safetensors")
EXAMPLES = ("old.ckpt new.safetensors", "both.ckpt net.pth --network netG_A --dtype fp16")


def main(argv: list[str] | None = None) -> int:
    """Read, convert and write the weights. Returns the exit status."""
    args = parse(argv)
    weights = read_weights(args.source, network=args.network, objects=True)
    if args.dtype:
        weights = in_dtype(weights, DTYPES[args.dtype])
    with atomic(args.target) as path:
        if args.target.suffix == ".safetensors":
            write_safetensors(weights, path)
        else:
            torch.save({key: weight.contiguous() for key, weight in weights.items()}, path)
    found = as_text(infer_network(weights)) or f"not of a network of this project, but {foreign(weights)}"
    print(f"{args.target}: {len(weights)} tensors, {args.target.stat().st_size / 1e6:.1f} MB; {found}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.convert", __doc__, *EXAMPLES)
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a file of PyTorch or safetensors; no code in it is executed")
    add("target", type=Path, metavar="OUT", help=f"file to write: {' or '.join(SUFFIXES)}")
    add("--network", default="", metavar="NAME", help="the network to take from a file with several, such as netG")
    add("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    if args.target.suffix not in SUFFIXES:
        parser.error(f"{args.target}: the name of the file to write ends in {' or '.join(SUFFIXES)}")
    if not args.target.parent.is_dir():
        parser.error(f"{args.target.parent}: there is no such folder")
    return args


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
