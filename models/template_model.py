"""A template for models: copy this file to models/NAME_model.py and name the class NAMEModel.

Then --model NAME finds it. This model is plain regression from A to B; with the template dataset it learns to sharpen:
python train.py --model template --name sharpen.
"""

from argparse import ArgumentParser
from typing import Any

from torch.nn import functional as F

from models import networks
from models.base_model import (
    AttentionView,
    BaseModel,
    GeneratorView,
    Images,
    Losses,
    Optimization,
    average_losses,
)
from options import values
from util.paths import BUNDLED


class TemplateModel(BaseModel):
    """A generator from A to B, trained on pairs with an L1 loss."""

    # The parser refuses these shared flags: without a discriminator they mean nothing.
    unused_flags = ("attn_D", "spectral_norm_D", "lr_D", "batch_head")

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Change defaults of shared flags and add flags of the model. Add training flags only if is_train."""
        parser.set_defaults(dataset_mode="template", dataroot=str(BUNDLED / "chart"))
        if is_train:
            add = parser.add_argument_group("template").add_argument
            add("--lambda_regression", type=values.non_negative_float, default=1.0, help="weight of the loss")
        return parser

    def __init__(self, opt: Any) -> None:
        """Build the networks for inference. Each child module is a network: netG is saved as latest_net_G.pth."""
        super().__init__()
        self.netG = networks.define_G(opt, opt.input_nc, opt.output_nc)

    def prepare_training(self, opt: Any, optimization: Optimization) -> None:
        """Build the rest for training: here, only an optimizer."""
        super().prepare_training(opt, optimization)
        self.lambda_regression = opt.lambda_regression
        optimization.add("G", [self.netG], lr=opt.lr_G)
        optimization.add_averages(self, "netG")

    def forward(self, batch: dict) -> Images:
        """Run inference. Returns images (B, C, H, W) in [-1, 1] by the labels that pages and files show."""
        real_A, real_B = self.inputs(batch, "A", "B")
        return {"real_A": real_A, "fake_B": self.netG(real_A), "real_B": real_B}

    def step(self, batch: dict) -> tuple[Losses, Images]:
        """Run forward and backward passes and an update. The names of losses and images appear in logs and on pages."""
        losses = []
        for micro in self.micro_batches(batch):
            with self.optimization.autocast():
                x = self(micro.batch)
                loss = F.l1_loss(x["fake_B"], x["real_B"]) * self.lambda_regression
            self.optimization.backward("G", loss, share=micro.share)
            losses.append((micro.share, {"regression": loss.detach()}))
        self.optimization.update("G")
        self.optimization.end_step()
        return average_losses(losses) | self.gammas(), {label: image.detach() for label, image in x.items()}

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generator over its input."""
        return {"G": AttentionView.on(self.netG, "real_A")}

    def generator_views(self) -> dict[str, GeneratorView]:
        """The generator, for the health checks of training: labels of its images, of the truth and of its input."""
        return {"G": GeneratorView("fake_B", "real_B", "real_A", paired=True)}
