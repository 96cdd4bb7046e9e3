"""Errors of users, with the arguments that avoid them."""

import shlex
from collections.abc import Mapping
from typing import Any


class RemediedError(ValueError):
    """A user's mistake, apart from what avoids it.

    The message speaks of arguments, files and values, never of flags, so it suits a notebook as well as a script.
    A script adds the flags: every argument in `remedy` has the name of its flag.

    Args:
        message: whole sentences for the user.
        remedy: the values that avoid the error, by argument; empty if no argument does.
    """

    def __init__(self, message: str, *, remedy: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.remedy = dict(remedy or {})

    def flags(self) -> list[str]:
        """The remedy as words of a command line, such as ["--skip_bad_images", "--batch_size", "1"]."""
        flags = []
        for argument, value in self.remedy.items():
            flags += [f"--{argument}"] if value is True else [f"--{argument}", str(value)]
        return flags

    def advice(self) -> str:
        """The remedy as a sentence, empty if there is none."""
        return f"Try {shlex.join(self.flags())}." if self.remedy else ""
