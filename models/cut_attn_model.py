"""CUT with self-attention in generator and discriminator."""

from argparse import ArgumentParser

from models.cut_model import CUTModel


class CUTAttnModel(CUTModel):
    """CUT with SAGAN's self-attention, at the places of `cycle_gan_attn`.

    Reference: Park et al. 2020, https://arxiv.org/abs/2007.15651; Zhang et al. 2019, https://arxiv.org/abs/1805.08318.
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of cut, with attention by default."""
        parser = CUTModel.modify_commandline_options(parser, is_train)
        parser.set_defaults(attn_G="bottleneck", attn_D="bottleneck")
        return parser
