"""pix2pix with self-attention in generator and discriminator."""

from argparse import ArgumentParser

from models.pix2pix_model import Pix2PixModel


class Pix2PixAttnModel(Pix2PixModel):
    """pix2pix with SAGAN's self-attention.

    By default, the encoder of the U-Net and the discriminator have one block each, at stride 8 (32 x 32 positions at
    256 pixels).

    Reference: Isola et al. 2017, https://arxiv.org/abs/1611.07004; Zhang et al. 2019,
    https://arxiv.org/abs/1805.08318.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of pix2pix, with attention by default."""
        parser = Pix2PixModel.modify_commandline_options(parser, is_train)
        parser.set_defaults(attn_G="bottleneck", attn_D="bottleneck")
        return parser
