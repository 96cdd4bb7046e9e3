"""argparse with comments in response files, old names of flags, complete help, and hints for mistyped flags."""

import argparse
import difflib
import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

log = logging.getLogger(__name__)

# Names of upstream's flags in 2017 and 2018, and our own earlier names.
RENAMED = {
    "niter": "n_epochs", "niter_decay": "n_epochs_decay", "batchSize": "batch_size", "loadSize": "load_size",
    "fineSize": "crop_size", "nThreads": "num_threads", "which_model_netG": "netG", "which_model_netD": "netD",
    "which_direction": "direction", "which_epoch": "epoch", "resize_or_crop": "preprocess", "how_many": "num_test",
    "ntest": "num_test", "identity": "lambda_identity", "display_single_pane_ncols": "display_ncols",
    "no_lsgan": "gan_mode=vanilla", "upsample": "resample",
}  # fmt: skip
# Flags of CUT's own repository that have no flag of the same meaning here.
ELSEWHERE = {
    "CUT_mode": "--model cut or --model fastcut", "normG": "--norm", "normD": "--norm", "no_antialias": "--resample",
    "no_antialias_up": "--resample",
}  # fmt: skip
_MISSING = object()


class Parser(argparse.ArgumentParser):
    """Parses flags without abbreviations, and files of flags (@FILE). The caller adds -h after the last flag."""

    def __init__(self, prog: str, description: str, examples: Sequence[str]):
        super().__init__(
            prog=prog,
            usage=f"python {prog} [@FILE] [--FLAG VALUE ...]; --help shows all flags",
            description=description,
            epilog=in_lines(f"python {prog}", examples),
            formatter_class=_HelpFormatter,
            fromfile_prefix_chars="@",
            add_help=False,
            allow_abbrev=False,
        )
        self.withdrawn: dict[str, str] = {}  # flag -> which choice has no use for it

    def withdraw(self, flags: Sequence[str], owner: str) -> None:
        """Hide flags from --help, and note that `owner`, such as "--model X", does not read them."""
        for action in self._actions:
            if action.dest in flags:
                action.help = argparse.SUPPRESS
                self.withdrawn[action.dest] = owner

    def defaults(self) -> dict[str, Any]:
        """All flags declared so far, with their default values."""
        return vars(self.parse_args([]))

    def inherit(self, values: Mapping[str, object]) -> None:
        """Make `values` the defaults of the declared flags among them."""
        declared = self.defaults()
        self.set_defaults(**{name: value for name, value in values.items() if name in declared})

    def read(self, argv: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
        """The values of the flags in `argv` (None: the process's own), and the words that belong to no flag."""
        words = [self.up_to_date(word) for word in (sys.argv[1:] if argv is None else argv)]
        blank = argparse.Namespace(**dict.fromkeys(self.defaults(), _MISSING))
        try:
            namespace, unknown = self.parse_known_args(words, blank)
        except UnicodeDecodeError as error:
            self.error(f"an @FILE has to be a text file: {error}")
        return {name: value for name, value in vars(namespace).items() if value is not _MISSING}, unknown

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        """The words of a line of a response file."""
        line = arg_line.replace("\\", "\\\\") if os.sep == "\\" else arg_line  # in paths of Windows it is no escape
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            self.error(f"in an @FILE, line {arg_line!r}: {error}")
        if any(word.startswith("@") for word in words):
            self.error(f"in an @FILE, line {arg_line!r}: no file can be read from within another")
        return [self.up_to_date(word) for word in words]

    def up_to_date(self, word: str) -> str:
        """`word`, or the current name if it is an old name (--niter, --niter=5) of a declared flag."""
        old, equals, value = word.partition("=")
        new = RENAMED.get(old.removeprefix("--")) if old.startswith("--") else None
        if new is None or new.partition("=")[0] not in self.defaults():
            return word
        announce(old, f"--{new}")
        return f"--{new}{equals}{value}"

    def refuse(self, unknown: Sequence[str], owners: Callable[[str], Sequence[str]]) -> NoReturn:
        """Exit with an error about words that belong to no flag, and a hint if a flag is similar.

        Args:
            owners: finds the models that have a flag.
        """
        flag = next((word.split("=")[0] for word in unknown if word.startswith("-")), None)
        if flag is None:
            switch = "; a switch takes no value, see --help" if unknown[0] in ("True", "False") else ""
            self.error(f"{unknown[0]!r} belongs to no option{switch}")
        if models := owners(flag.removeprefix("--")):
            self.error(f"{flag} is no option of this --model, but of {', '.join(models)}")
        known = {name: f"--{name}" for name in self.defaults()}
        known |= {old: f"--{new}" for old, new in RENAMED.items() if new in known} | ELSEWHERE
        similar = difflib.get_close_matches(flag.removeprefix("--"), known, 1)
        self.error(f"no option {flag}; " + (f"did you mean {known[similar[0]]}?" if similar else "--help lists them"))


@functools.cache  # a command line is read several times
def announce(old: str, new: str) -> None:
    """Log once that a flag has been renamed."""
    log.warning("%s is now called %s", old, new)


def script_parser(program: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser without abbreviations, whose --help ends with commands to copy.

    Args:
        program: the command without flags, such as "python -m scripts.demo".
        description: above the flags.
        examples: the flags of each command.
    """
    return argparse.ArgumentParser(
        prog=program, description=description, epilog=in_lines(program, examples), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def in_lines(program: str, examples: Sequence[str]) -> str:
    """Commands as the end of --help."""
    return "\n".join(["examples:", *(f"  {program} {flags}".rstrip() for flags in examples)])


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except for switches that are off and flags without a value."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.dest == "dataroot":  # the path of this clone is not interesting
            return action.help
        if action.default is True:  # "no dropout in G (default: on)" would read as dropout that is on
            return f"{action.help} (default{'' if action.dest.startswith('no_') else ': on'})"
        if action.default is None or action.default is False or action.default == "":
            return action.help
        return super()._get_help_string(action)
