"""Find models and datasets by name: a name on the command line is a file and the class in it."""

import difflib
from importlib import import_module
from typing import Any

from util.paths import ROOT

MIGRATING = "docs/migrating.md shows how datasets and models written for upstream move here"
OWN = ("data", "models", "options", "util")  # packages that such a file may import from
KINDS = {"models": "model", "data": "dataset"}  # package -> how its files and classes end


def choices(package: str) -> list[str]:
    """The names that `find_class` knows in "models" or "data", from their files alone: nothing is imported."""
    ending = f"_{KINDS[package]}"
    files = (ROOT / package).glob(f"*{ending}.py")
    return sorted(path.stem.removesuffix(ending) for path in files if path.stem != f"base{ending}")


def find_class(package: str, name: str) -> type[Any]:
    """The class behind a name: "cycle_gan" in "models" is CycleGANModel of models/cycle_gan_model.py.

    The class is named like its file, without underscores, in any mix of capitals.

    Raises:
        ValueError: there is no such file, listing those there are, or no such class in it, or it imports what only
            upstream has.
    """
    if name not in choices(package):
        raise ValueError(f"no {KINDS[package]} {name!r}: {suggestion(name, choices(package))}")
    try:
        module = import_module(f"{package}.{name}_{KINDS[package]}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in OWN:
            raise  # a library that is not installed
        raise ValueError(f"{package}/{name}_{KINDS[package]}.py: {error}. {MIGRATING}") from error
    wanted = f"{name}_{KINDS[package]}".replace("_", "").lower()
    for attribute, value in vars(module).items():
        if attribute.lower() == wanted and isinstance(value, type):
            return value
    raise ValueError(f"{module.__file__} has no class {wanted!r} (in any mix of capitals)")


def suggestion(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the most similar known name, if there is one, and all known names."""
    similar = difflib.get_close_matches(name, known, 1)
    return (f"did you mean {similar[0]}? " if similar else "") + f"choose from {', '.join(known)}"
