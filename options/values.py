"""The values that flags accept: functions for argparse's `type=`, from text to a checked value."""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from options.choices import METRICS
from util.registry import choices, suggestion
from util.rules import parse_rule

T = TypeVar("T")

MAX_SEEDS = 100_000


def checked(convert: Callable[[str], T], accepts: Callable[[T], bool], wanted: str) -> Callable[[str], T]:
    """A `type=` function that converts a text and refuses what is not `wanted`."""

    def check(text: str) -> T:
        try:
            value = convert(text)
            accepted = accepts(value)
        except ValueError:
            accepted = False
        if not accepted:
            raise ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return check


def class_name(package: str) -> Callable[[str], str]:
    """The name of a class in "models" or "data"."""

    def check(text: str) -> str:
        if text not in choices(package):
            raise ArgumentTypeError(f"there is no {text!r}: {suggestion(text, choices(package))}")
        return text

    return check


def seeds(text: str) -> list[int]:
    """Numbers and ranges, such as 3,8,20-29, in this order; each below torch's limit of 2**63, at most MAX_SEEDS."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ArgumentTypeError(f"{part!r} is neither a whole number nor a range such as 0-63")
        low, high = int(match[1]), int(match[2] or match[1])
        if high >= 2**63:
            raise ArgumentTypeError(f"{part!r} is too large: seeds are below 2**63")
        if len(numbers) + high - low >= MAX_SEEDS:
            raise ArgumentTypeError(f"{part!r} is too many: at most {MAX_SEEDS:,} seeds make images at a time")
        numbers += range(low, high + 1)
    return numbers


def metrics(text: str) -> list[str]:
    """Names of METRICS, separated by commas, each once."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    for name in names:
        if name not in METRICS:
            raise ArgumentTypeError(f"there is no metric {name!r}: {suggestion(name, list(METRICS))}")
    return names


def rule(text: str) -> str:
    """A rule as in util/rules.py, unchanged."""
    try:
        parse_rule(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def class_rule(text: str) -> str:
    """A --class_of, unchanged: folder, a regular expression with one group, or empty."""
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    if text not in ("", "folder") and groups != 1:
        raise ArgumentTypeError(
            f"{text!r} is neither folder nor a regular expression with one group, such as '^(cat|dog)'"
        )
    return text


def label_dirs(text: str) -> tuple[str, str]:
    """The folders of a --label_dir, A=FOLDER,B=FOLDER."""
    match = re.fullmatch("A=(.+),B=(.+)", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} does not name two folders: A=FOLDER,B=FOLDER")
    return match[1], match[2]


def label_dir(text: str) -> str:
    """A --label_dir, unchanged; or empty."""
    if text:
        label_dirs(text)
    return text


def is_plain_name(text: str) -> bool:
    """Whether `text` can name a folder or file inside another one."""
    return Path(text).name == text not in ("", "..") and "\\" not in text and text.isprintable()


def is_range(text: str) -> bool:
    """Whether `text` is two finite numbers, the first the smaller, such as -1000,3000; or empty."""
    low, high = map(float, text.split(",")) if text else (0, 1)
    return -math.inf < low < high < math.inf


def bounds(text: str) -> tuple[float, float] | None:
    """The two numbers of a --value_range; None where it is empty."""
    if not text:
        return None
    low, high = map(float, text.split(","))
    return low, high


whole_number = checked(int, lambda value: True, "a whole number")
positive_int = checked(int, lambda value: value >= 1, "a whole number from 1")
non_negative_int = checked(int, lambda value: value >= 0, "a whole number from 0")
seed = checked(int, lambda value: 0 <= value < 2**32, "a whole number from 0 to 2**32 - 1")
port = checked(int, lambda value: 0 < value < 2**16, "a port, 1 to 65535")
count = checked(
    lambda text: math.inf if text == "inf" else int(text), lambda value: value >= 1, "a whole number from 1, or inf"
)
layers = checked(
    str, lambda text: text == "default" or bool(re.fullmatch(r"\d+(,\d+)*", text)), "numbers of layers such as 0,4,8"
)
center_crop = checked(
    lambda text: "max" if text == "max" else int(text),
    lambda value: value == "max" or int(value) >= 0,
    "a whole number from 0, or max",
)
positive_float = checked(float, lambda value: 0 < value < math.inf, "a number above 0")
non_negative_float = checked(float, lambda value: 0 <= value < math.inf, "a number from 0")
fraction = checked(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
plain_name = checked(str, is_plain_name, "a plain name, without slashes")
value_range = checked(str, is_range, "two numbers LOW,HIGH such as 0,4095")
gpu_ids = checked(
    str, lambda text: bool(re.fullmatch(r"-1|[0-9]+(,[0-9]+)*", text)), "a list of GPU numbers such as 0 or 0,1, or -1"
)
