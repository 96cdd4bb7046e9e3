"""One generator, one direction: for testing where only one set of pictures is at hand."""

from argparse import ArgumentParser
from typing import Any

from models import networks
from models.base_model import AttentionView, BaseModel, Images
from util.paths import BUNDLED


class TestModel(BaseModel):
    """A generator alone, from any run: G_A of a cycle_gan run, G_B in the other --direction, or G of a pix2pix run."""

    __test__ = False  # not a test, whatever pytest makes of the name

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """One folder of pictures, and which file the generator is in."""
        if is_train:
            parser.error("--model test translates with a trained generator: call test.py, not train.py")
        parser.set_defaults(dataset_mode="single", no_dropout=True, dataroot=str(BUNDLED / "earth"))
        group = parser.add_argument_group("test model")
        group.add_argument(
            "--weights", default="",
            help="one .pth file of a generator instead of a run: its flags are inferred, and its stem is the name",
        )  # fmt: skip
        group.add_argument(
            "--model_suffix", default="",
            help="which generator: _A loads EPOCH_net_G_A.pth; '' = the one for --direction",
        )  # fmt: skip
        return parser

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.netG = networks.define_G(opt, opt.input_nc, opt.output_nc)
        self.model_suffix = opt.model_suffix

    def forward(self, batch: dict) -> Images:
        """Translate the batch's A: images (B, C, H, W) in [-1, 1]."""
        (real,) = self.inputs(batch, "A")
        return {"real": real, "fake": self.netG(real)}

    def attention_views(self) -> dict[str, AttentionView]:
        """The generator, shown over its input."""
        return {"G": AttentionView.on(self.netG, "real")}

    def sources(self, name: str, *, reverse: bool) -> list[str]:
        """See `generator_labels`; --model_suffix names one label."""
        return [f"G{self.model_suffix}"] if self.model_suffix else generator_labels(reverse=reverse)


def generator_labels(*, reverse: bool) -> list[str]:
    """Labels of the files that may hold the generator of a run, best first; `reverse`: of the other direction.

    A lone G knows only the direction it was trained in.
    """
    return ["G_B"] if reverse else ["G_A", "G"]
