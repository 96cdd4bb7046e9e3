"""CycleGAN with self-attention in generators and discriminators."""

from argparse import ArgumentParser

from models.cycle_gan_model import CycleGANModel


class CycleGANAttnModel(CycleGANModel):
    """CycleGAN whose networks carry SAGAN's self-attention: one block in the middle of each generator's residual blocks
    (64 x 64 positions at 256 px) and one in each discriminator, at stride 8 (32 x 32).

    Zhu et al. 2017, https://arxiv.org/abs/1703.10593; Zhang et al. 2019, https://arxiv.org/abs/1805.08318.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """The flags of cycle_gan, with attention placed."""
        parser = CycleGANModel.modify_commandline_options(parser, is_train)
        parser.set_defaults(attn_G="bottleneck", attn_D="bottleneck")
        return parser
