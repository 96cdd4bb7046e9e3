"""Colorization of gray images: pix2pix from lightness to color, in CIE Lab."""

from argparse import ArgumentParser
from dataclasses import replace
from typing import Any

from models.base_model import AttentionView, GeneratorView, Images
from models.pix2pix_model import Pix2PixModel
from util.color import join_lab


class ColorizationModel(Pix2PixModel):
    """pix2pix from L (one channel) to ab (two channels) of CIE Lab, shown as RGB.

    Reference: Isola et al. 2017, https://arxiv.org/abs/1611.07004.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of pix2pix, by default with the dataset that splits images into L and ab."""
        parser = Pix2PixModel.modify_commandline_options(parser, is_train)
        parser.set_defaults(dataset_mode="colorization")
        return parser

    def __init__(self, opt: Any) -> None:
        if (opt.input_nc, opt.output_nc) != (1, 2):
            raise ValueError(
                f"--model colorization translates 1 channel (L) to 2 (ab), but --input_nc is {opt.input_nc} and "
                f"--output_nc {opt.output_nc}: use --dataset_mode colorization, which sets both"
            )
        super().__init__(opt)

    def preview(self, images: Images) -> Images:
        """Return L as a gray image (B, 1, H, W), and L with fake and real ab as RGB (B, 3, H, W), all in [-1, 1]."""
        L = images["real_A"]
        return {
            "real_A": L,
            "fake_B_rgb": join_lab(L, images["fake_B"]),
            "real_B_rgb": join_lab(L, images["real_B"]),
        }

    def attention_views(self) -> dict[str, AttentionView]:
        """Show the generator only: no image shows the input of the discriminator, L and ab."""
        return {"G": AttentionView.on(self.netG, "real_A")}

    def generator_views(self) -> dict[str, GeneratorView]:
        """The generator. Its input, L, cannot be compared with its output, ab."""
        return {name: replace(view, source="") for name, view in super().generator_views().items()}
