"""CycleGAN with self-attention in generators and discriminators."""

from argparse import ArgumentParser

from models.cycle_gan_model import CycleGANModel


class CycleGANAttnModel(CycleGANModel):
    """CycleGAN with SAGAN's self-attention.

    By default, each generator has one block after its middle residual block (64 x 64 positions at 256 pixels), and each
    discriminator has one at stride 8 (32 x 32).

    Reference: Zhu et al. 2017, https://arxiv.org/abs/1703.10593; Zhang et al. 2019, https://arxiv.org/abs/1805.08318.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of cycle_gan, with attention by default."""
        parser = CycleGANModel.modify_commandline_options(parser, is_train)
        parser.set_defaults(attn_G="bottleneck", attn_D="bottleneck")
        return parser
