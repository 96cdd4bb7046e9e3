"""Write a generator into a folder as the Hugging Face Hub expects it: python -m scripts.publish --name NAME FOLDER.

The folder holds model.safetensors, config.json, a model card to read and edit (README.md) and its images. Nothing is
uploaded without --push.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from data.image_folder import list_images
from inference.export import export, import_extra
from inference.hub import WEIGHTS, hub_errors
from inference.portable import make_portable
from inference.translator import Translator, as_tensor
from models.networks.infer import as_text
from options.base_options import read_saved
from options.parser import script_parser
from options.train_options import TrainOptions
from scripts.generators import add_generator_flags, check_generator, describe, load_for_export
from scripts.sheet import result_names
from training.meter import in_words
from util.command import run_command
from util.images import save_file, to_image

EXAMPLES = (
    "--name mine --license cc-by-4.0 --about 'photos to charts' --results results/mine/test_latest published",
    "--weights weights/chart_AtoB.safetensors --images datasets/chart/testA --push OWNER/NAME published",
)
SHOWN = 4  # images on the card
LENGTH = ("n_epochs", "n_epochs_decay", "train_minutes")  # flags of a recipe that a resumed run may change

CARD = """---
{license}library_name: attention-cyclegan
pipeline_tag: image-to-image
tags:
- cyclegan
- self-attention
---

# {title}

Translates {about}, in any size. The generator of attention-cyclegan is
`{network}`.

{examples}## Use

In a clone of attention-cyclegan, after `pip install ".[hub]"`:

```python
from inference import Translator

translator = Translator.load("hf://{repository}"{keywords})
result = translator(image)  # a PIL image, an array, or a tensor in [-1, 1]
```

## Training

{training}
"""


def main(argv: list[str] | None = None) -> int:
    """Write the folder and, with --push, upload it. Returns the exit status."""
    args = parse(argv)
    folder: Path = args.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: choose another, or remove it")
    if args.push:
        check_push(args.push)
    translator, net = load_for_export(args)
    examples = list(before_and_after(args, translator))
    training = "\n\n".join(described_training(args))
    portable = make_portable(net)
    notes = describe(translator, portable, args)

    folder.mkdir(parents=True, exist_ok=True)
    export(portable, folder / WEIGHTS, "safetensors", notes)
    (folder / "config.json").write_text(json.dumps(notes, indent=2) + "\n")
    (folder / "README.md").write_text(card(args, notes, len(examples), training), encoding="utf-8")
    for number, pair in enumerate(examples, 1):
        for label, image in zip(("before", "after"), pair, strict=True):
            save_file(image, folder / f"{label}{number}.png")
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if not args.license:
        print("README.md names no license (--license): add one before you share the folder")
    if args.push:
        print(push(folder, args.push))
    return 0


def before_and_after(args: argparse.Namespace, translator: Translator) -> Iterator[tuple[Image.Image, Image.Image]]:
    """The images of the card: those of --images, translated, or those of --results.

    Raises:
        ValueError: there are none, or they are label maps.
    """
    if args.images:
        paths = list_images(args.images, SHOWN, translator.slice_axis)
        if not paths:
            raise ValueError(f"--images {args.images}: there are no images")
        if translator.has_labels:
            raise ValueError("--images shows no label maps: use --results, whose pages have them in color")
        for path in paths:
            x = as_tensor(translator.reader(path), channels=translator.input_nc)
            yield to_image(x), to_image(translator(x))
    elif args.results:
        folder = args.results / "images"
        labels = ("real", "fake") if any(folder.rglob("*_fake.png")) else ("real_A", "fake_B")
        for name in result_names(folder, labels[1], SHOWN):
            before, after = (Image.open(folder / f"{name}_{label}.png") for label in labels)
            yield before, after


def described_training(args: argparse.Namespace) -> Iterator[str]:
    """Paragraphs of the card: data, recipe and figures, as far as they are known."""
    if args.name and (saved := read_saved(args.checkpoints_dir / args.name)):
        opt = TrainOptions().parse(["--name", args.name], saved)
        private = (TrainOptions.own_flags | TrainOptions.free_flags) - set(LENGTH) | {"dataroot"}
        flags = {flag: value for flag, value in opt.changed().items() if flag not in private}
        yield f"Data: `{Path(opt.dataroot).name}`. Flags of `train.py`: `{as_text(flags)}`."
    else:
        yield "The data and the flags of the training were not recorded."
    if args.results and not args.results.is_dir():
        raise ValueError(f"--results {args.results}: there is no such folder")
    if args.results and (path := args.results / "metrics.json").is_file():
        measured = json.loads(path.read_text())
        figures = {name: value for name, value in measured["figures"].items() if value is not None}
        yield f"Test: {in_words(figures)}; {measured['measured_on']}."


def card(args: argparse.Namespace, notes: dict[str, Any], examples: int, training: str) -> str:
    """The model card."""
    rows = ["| before | after |", "|---|---|"]
    rows += [f"| ![before](before{number}.png) | ![after](after{number}.png) |" for number in range(1, examples + 1)]
    repository = args.push or f"OWNER/{args.folder.resolve().name}"
    return CARD.format(
        license=f"license: {json.dumps(args.license)}\n" if args.license else "",
        title=repository.partition("/")[2],
        about=args.about or "images of domain {} to domain {}".format(*notes["domains"]),
        network=as_text(notes["network"]),
        examples="\n".join([*rows, "", ""]) if examples else "",
        repository=repository,
        keywords=", evaluate=True" if args.eval else "",
        training=training,
    )


def check_push(repository: str) -> None:
    """Raise ValueError unless huggingface_hub is installed and has a token that the Hub accepts."""
    hub = import_extra("huggingface_hub", "hub")
    if hub.get_token() is None:
        raise ValueError(f"--push {repository} needs a token: run hf auth login, or set HF_TOKEN")
    with hub_errors(f"--push {repository}"):
        hub.whoami()


def push(folder: Path, repository: str) -> str:
    """Upload the folder into the repository, which is created if it is missing. Returns the address of the commit."""
    hub = import_extra("huggingface_hub", "hub")
    with hub_errors(f"{folder} is complete, but --push {repository}"):
        hub.create_repo(repository, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("python -m scripts.publish", __doc__, *EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="the folder to write; created if missing")
    add_generator_flags(parser)
    add("--about", metavar="TEXT", help="what it translates, for the card: 'satellite photos to sea charts'")
    add("--license", metavar="NAME", help="the license of the weights, as the Hub names it: mit, cc-by-4.0, ...")
    text = "folder that test.py wrote with this generator: the card shows its figures (metrics.json) and first images"
    add("--results", type=Path, metavar="FOLDER", help=text)
    add("--images", type=Path, metavar="FOLDER", help="images to translate for the card, instead of those of --results")
    add("--push", metavar="OWNER/NAME", help="upload the folder into this repository of the Hub, public if it is new")
    add("--verbose", action="store_true", help="print tracebacks of errors")
    args = parser.parse_args(argv)
    check_generator(parser, args)
    return args


if __name__ == "__main__":
    sys.exit(run_command(main, arguments=()))
