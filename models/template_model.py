"""A model to start your own from: copy this file to models/NAME_model.py, name the class NAMEModel.

Then `--model NAME` finds it. This one is plain regression from A to B; with the template data set it learns to sharpen:
python train.py --model template --name sharpen.
"""

from argparse import ArgumentParser
from typing import Any

from torch.nn import functional as F

from models import networks
from models.base_model import AttentionView, BaseModel, Images, Losses, Optimization
from options import values
from util.paths import BUNDLED


class TemplateModel(BaseModel):
    """One generator A -> B, trained on pairs by the mean absolute difference alone."""

    # Shared flags that this model does not read: the parser refuses them.
    unused_flags = ("attn_D", "spectral_norm_D", "lr_D")

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Other defaults for the shared flags, and flags of your own: those of training only where is_train."""
        parser.set_defaults(dataset_mode="template", dataroot=str(BUNDLED / "earth"))
        if is_train:
            add = parser.add_argument_group("template").add_argument
            add("--lambda_regression", type=values.non_negative_float, default=1.0, help="weight of the loss")
        return parser

    def __init__(self, opt: Any) -> None:
        """What inference needs. Every child module is a network: it is saved as latest_net_G.pth, loaded, tested."""
        super().__init__()
        self.netG = networks.define_G(opt, opt.input_nc, opt.output_nc)

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """What training needs beside: here, only an optimizer."""
        super().prepare_training(opt, optimization)
        self.lambda_regression = opt.lambda_regression
        optimization.add("G", [self.netG], lr=opt.lr_G)
        optimization.add_averages(self, "netG")

    def forward(self, batch: dict) -> Images:
        """Images (B, C, H, W) in [-1, 1] under the labels that pages and files show."""
        real_A, real_B = self.inputs(batch, "A", "B")
        return {"real_A": real_A, "fake_B": self.netG(real_A), "real_B": real_B}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Forward, losses, update. You choose the names of losses and images: they show up in the log and on pages."""
        with self.optimization.autocast():
            x = self(batch)
            losses = {"regression": F.l1_loss(x["fake_B"], x["real_B"]) * self.lambda_regression}
        self.optimization.backward("G", losses["regression"])
        self.optimization.update("G")
        self.optimization.end_step()
        return losses | self.gammas(), x

    def attention_views(self) -> dict[str, AttentionView]:
        """The generator, shown over its input."""
        return {"G": AttentionView.on(self.netG, "real_A")}
