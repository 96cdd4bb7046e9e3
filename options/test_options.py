"""The flags of test.py."""

import math
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from options import values
from options.base_options import BaseOptions
from options.choices import PRECISIONS


class TestOptions(BaseOptions):
    """Declares the flags of testing beside the shared ones. Those of data and network default to the run's."""

    __test__ = False  # not a test, whatever pytest makes of the name
    is_train = False
    description = """Translate images with a trained model. @FILE reads flags from a text file.
Flags of data and network default to those of the run."""
    examples = ("--name maps", "--model test --weights weights/chart_AtoB.safetensors --dataroot photos")
    own_flags = frozenset(
        (
            "name", "suffix", "checkpoints_dir", "epoch", "load_iter", "seed", "device", "gpu_ids", "display_winsize",
            "verbose", "use_wandb", "wandb_project_name", "no_flip", "serial_batches", "max_dataset_size",
            "batch_size", "num_threads", "phase", "skip_bad_images", "results_dir", "precision",
            "cpu_threads", "metrics",
        )
    )  # fmt: skip

    def initialize(self, parser: ArgumentParser) -> None:
        """Declare all flags. Images come in order, uncropped and without flips."""
        super().initialize(parser)
        parser.set_defaults(no_flip=True, serial_batches=True, load_size=parser.get_default("crop_size"))
        add = parser.add_argument_group("testing").add_argument
        add("--phase", type=values.plain_name, default="test", help="which images: folders PHASEA and PHASEB")
        add("--num_test", type=values.count, default=math.inf, help="the first N images alone; inf = all")
        add("--results_dir", default="./results/", help="the page is RESULTS_DIR/NAME/PHASE_EPOCH/index.html")
        add(
            "--aspect_ratio",
            type=values.positive_float,
            default=1.0,
            help="stretch results: their width if above 1, else their height",
        )
        text = "of the networks. bf16: about twice as fast on processors with instructions for it; auto: bf16 there, "
        text += "else fp32; fp16: for NVIDIA GPUs without bf16"
        add("--precision", default="fp32", choices=("auto", *PRECISIONS), help=text)
        text = "CPU threads; 0 = OMP_NUM_THREADS, or measured on the first images; results differ by rounding"
        add("--cpu_threads", type=values.non_negative_int, default=0, help=text)
        text = "pixels of a side of the tiles of large images, such as 512: the same result in bounded memory; "
        text += "0 = whole"
        add("--tile", type=values.non_negative_int, default=0, help=text)
        text = "pixels around a tile that it may compute again, or else keeps on disk"
        add("--tile_overlap", type=values.non_negative_int, default=64, help=text)
        add("--eval", action="store_true", help="eval mode: running statistics in batch norm, no dropout")
        add("--no_ema", action="store_true", help="use the plain weights, even if the run has averaged ones")

    def complete(self, flags: dict[str, Any], given: Mapping[str, Any], parser: ArgumentParser) -> None:
        """Resize images to the crop size unless --load_size is given, so that nothing is cropped away."""
        if "load_size" not in given and flags["preprocess"].endswith("_and_crop"):
            flags["load_size"] = flags["crop_size"]
        if "tile_overlap" in given and not flags["tile"]:
            parser.error(f"--tile_overlap {flags['tile_overlap']} needs --tile")
        super().complete(flags, given, parser)
