"""FastCUT: the faster and lighter form of CUT."""

from argparse import ArgumentParser

from models.cut_model import CUTModel


class FastCUTModel(CUTModel):
    """CUT without translations of B: a larger contrastive loss of A alone, in half of the steps of flipped images.

    Reference: Park et al. 2020, https://arxiv.org/abs/2007.15651, and its official code (flips).
    """

    @staticmethod
    def modify_commandline_options(parser: ArgumentParser, is_train: bool) -> ArgumentParser:
        """Add the flags of cut, with other defaults."""
        parser = CUTModel.modify_commandline_options(parser, is_train)
        if is_train:
            parser.set_defaults(lambda_NCE=10.0, nce_idt=False, flip_equivariance=True, n_epochs=150, n_epochs_decay=50)
        return parser
