"""A loss for content that has to keep its place: classes of pixels that rules find in both domains (--content)."""

import ast
import operator
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models import networks
from options import values
from util.rules import CHANNELS, OPERATORS, Rule, parse_rule

SOFTNESS = 16.0  # of the limit between in and out, in gray levels: 16 beyond it, a pixel is in with probability 0.73
# Margins instead of truth values: how far a condition is from the limit, above 0 where it holds.
MARGINS: Mapping[type, Callable[..., Any]] = OPERATORS | {
    ast.Gt: operator.sub, ast.GtE: operator.sub,
    ast.Lt: lambda low, high: high - low, ast.LtE: lambda low, high: high - low,
    ast.And: torch.minimum, ast.Or: torch.maximum, ast.Not: operator.neg,
}  # fmt: skip


def add_content_flag(parser: ArgumentParser) -> None:
    """Add --lambda_content, the weight of a ContentLoss of the rules --content."""
    text = "weight of a loss that keeps the classes of pixels of --content in their place; 0 = off"
    group = parser.add_argument_group("content loss")
    group.add_argument("--lambda_content", type=values.non_negative_float, default=0.0, help=text)


def create_content_loss(opt: Any) -> "ContentLoss | None":
    """Create the loss of the rules --content if --lambda_content is not 0. ValueError if the rules do not suit it."""
    if not opt.lambda_content:
        return None
    if opt.label_A or opt.label_B:
        raise ValueError("--lambda_content finds classes by color: it is not for --label_A and --label_B")
    rules = [parse_rule(text) for text in opt.content]
    with networks.from_flags(opt, "lambda_content"):
        return ContentLoss([rule.swapped() for rule in rules] if opt.direction == "BtoA" else rules)


class ContentLoss:
    """How much translations differ from their source in the classes of pixels that rules find.

    The class of a source pixel is the target of a binary cross entropy. The logit of a translated pixel is the margin
    by which it fulfils the condition of its domain, divided by SOFTNESS, so it has a gradient.

    Args:
        rules: each with conditions for both domains.

    Raises:
        ValueError: there are no rules, or one has no condition for a domain.
    """

    def __init__(self, rules: Sequence[Rule]):
        if not rules:
            raise ValueError("the content loss needs rules, such as content='sea: A(B > R + 35); B(B > R - 20)'")
        for rule in rules:
            if missing := {"A", "B"} - rule.conditions.keys():
                raise ValueError(f"content: the rule of {rule.name} has no condition for domain {min(missing)}")
        self.rules = list(rules)

    def __call__(self, source: Tensor, translation: Tensor, *, domain: str) -> Tensor:
        """The loss, a scalar: the mean over rules and pixels, computed in float32 or wider.

        Args:
            source: images (B, C, H, W) in [-1, 1], gray or color.
            translation: of `source`, into the other domain.
            domain: of `source`, A or B.
        """
        other = {"A": "B", "B": "A"}[domain]
        here, there = gray_levels(source), gray_levels(translation)
        losses = []
        for rule in self.rules:
            margin = rule.value(other, there, MARGINS)
            target = rule.mask(domain, here).to(margin.dtype)
            losses.append(F.binary_cross_entropy_with_logits(margin / SOFTNESS, target))
        return torch.stack(losses).mean()


def gray_levels(images: Tensor) -> dict[str, Tensor]:
    """The channels R, G and B of images (B, C, H, W) in [-1, 1], in 0..255, (B, H, W) each; equal for gray images.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"content: rules are for gray or color images, and these have {images.shape[1]} channels")
    values = (images.to(torch.promote_types(images.dtype, torch.float32)) + 1) * 127.5
    return dict(zip(CHANNELS, values.expand(-1, 3, -1, -1).unbind(1), strict=True))
