"""pix2pix with self-attention in generator and discriminator."""

from argparse import ArgumentParser

from models.pix2pix_model import Pix2PixModel


class Pix2PixAttnModel(Pix2PixModel):
    """pix2pix whose networks carry SAGAN's self-attention: one block where the U-Net, on its way down, and one where
    the discriminator has come to an eighth of the size (32 x 32 positions at 256 px).

    Isola et al. 2017, https://arxiv.org/abs/1611.07004; Zhang et al. 2019, https://arxiv.org/abs/1805.08318.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """The flags of pix2pix, with attention placed."""
        parser = Pix2PixModel.modify_commandline_options(parser, is_train)
        parser.set_defaults(attn_G="bottleneck", attn_D="bottleneck")
        return parser
