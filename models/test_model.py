"""A single generator, for test.py with images of one domain."""

from argparse import ArgumentParser
from typing import Any

from models import networks
from models.base_model import AttentionView, BaseModel, Images
from util.paths import BUNDLED


class TestModel(BaseModel):
    """The generator of any run: G_A of cycle_gan, or G_B for the other --direction, or G of pix2pix."""

    __test__ = False  # pytest would collect the class for its name
    unused_flags = ("metrics", "metrics_features", "metrics_weights", "content", "label_dir")

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags that choose the file of the generator; by default a single folder of images."""
        if is_train:
            parser.error("--model test is for trained generators: call test.py, not train.py")
        parser.set_defaults(dataset_mode="single", no_dropout=True, dataroot=str(BUNDLED / "chart"))
        group = parser.add_argument_group("test model")
        group.add_argument(
            "--weights", default="",
            help="file of a generator instead of a run (.pth, .safetensors); its flags are inferred; stem = --name",
        )  # fmt: skip
        group.add_argument(
            "--model_suffix", default="",
            help="_A loads EPOCH_net_G_A.pth, and so on; if empty, --direction decides",
        )  # fmt: skip
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.netG = networks.define_G(opt, opt.input_nc, opt.output_nc)
        self.model_suffix = opt.model_suffix

    def forward(self, batch: dict) -> Images:
        """Translate the images A of a batch. Returns images (B, C, H, W) in [-1, 1] by label."""
        (real,) = self.inputs(batch, "A")
        return {"real": real, "fake": self.netG(real)}

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generator over its input."""
        return {"G": AttentionView.on(self.netG, "real")}

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """See BaseModel. --model_suffix overrides the direction."""
        return [f"G{self.model_suffix}"] if self.model_suffix else generator_labels(reverse=reverse)


def generator_labels(*, reverse: bool) -> list[str]:
    """Labels of the files that may contain the generator of a run, best first.

    Args:
        reverse: the requested direction is not the one of training, which a run with one generator G does not support.
    """
    return ["G_B"] if reverse else ["G_A", "G"]
