"""Threshold expressions that find a class of pixels by color, such as "water: B - R > 15"."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

CHANNELS = "RGB"
DOMAINS = "AB"
LIMIT = 1e6  # of the numbers in a rule
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.USub: operator.neg,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.And: operator.and_, ast.Or: operator.or_, ast.Not: operator.invert,
}  # fmt: skip
GRAMMAR = (
    "NAME: CONDITION, CONDITION, ... with R, G, B in 0..255, numbers, + - *, < <= > >=, and, or, not; "
    "NAME: A(CONDITION, ...); B(CONDITION, ...) for other conditions in each domain"
)


@dataclass(frozen=True)
class Rule:
    """A class of pixels, and the conditions that find it in images of a domain.

    Attributes:
        name: of the class.
        conditions: domain, A or B -> condition.
    """

    name: str
    conditions: Mapping[str, ast.expr]

    def swapped(self) -> "Rule":
        """The rule with the conditions of A and B exchanged, for --direction BtoA."""
        other = {"A": "B", "B": "A"}
        return Rule(self.name, {other[domain]: condition for domain, condition in self.conditions.items()})

    def mask(self, domain: str, channels: Mapping[str, Any]) -> Any:
        """The pixels of the class.

        Args:
            domain: A or B, one of `conditions`.
            channels: R, G and B -> tensors or arrays of values in 0..255.

        Returns:
            A tensor or array of bool of the same shape.
        """
        return self.value(domain, channels, OPERATORS)

    def value(self, domain: str, channels: Mapping[str, Any], operators: Mapping[type, Callable[..., Any]]) -> Any:
        """The value of a condition with other operators than OPERATORS, such as margins in place of truth values."""
        return _value(self.conditions[domain], channels, operators)


def parse_rule(text: str) -> Rule:
    """The rule of a text such as "sea: B > R - 20" or "sea: A(B - G > 15, B > 150); B(B > R - 20)".

    Raises:
        ValueError: the text is no such rule.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon or not name.replace("_", "").isalnum():
        raise ValueError(f"{text!r} is no rule: {GRAMMAR}")
    conditions: dict[str, ast.expr] = {}
    for part in filter(None, (part.strip() for part in rest.split(";"))):
        try:
            node = ast.parse(part, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ValueError(f"{part!r} is no condition: {GRAMMAR}") from error
        match node:
            case ast.Call(func=ast.Name(id=domain), args=[_, *_] as terms, keywords=[]) if domain in DOMAINS:
                domains = [domain]
            case ast.Tuple(elts=[_, *_] as terms):
                domains = list(DOMAINS)
            case _:
                terms, domains = [node], list(DOMAINS)
        condition = ast.BoolOp(ast.And(), terms) if len(terms) > 1 else terms[0]
        _check(condition, is_condition=True)
        if conditions.keys() & set(domains):
            raise ValueError(f"{text!r} gives domain {domains[0]} twice: {GRAMMAR}")
        conditions |= dict.fromkeys(domains, condition)
    if not conditions:
        raise ValueError(f"{text!r} has no condition: {GRAMMAR}")
    return Rule(name, conditions)


def _check(node: ast.expr, *, is_condition: bool) -> None:
    """Raise ValueError unless `node` is a condition, or else a number made of channels."""
    match node:
        case ast.BoolOp(values=values) if is_condition:
            kinds = [(value, True) for value in values]
        case ast.UnaryOp(op=ast.Not(), operand=operand) if is_condition:
            kinds = [(operand, True)]
        case ast.Compare(left=left, ops=ops, comparators=others) if (
            is_condition
            and all(type(op) in OPERATORS for op in ops)
            and any(isinstance(part, ast.Name) for part in ast.walk(node))
        ):
            kinds = [(value, False) for value in (left, *others)]
        case ast.BinOp(left=left, op=op, right=right) if not is_condition and type(op) in OPERATORS:
            kinds = [(left, False), (right, False)]
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not is_condition:
            kinds = [(operand, False)]
        case ast.Name(id=name) if not is_condition and name in tuple(CHANNELS):
            kinds = []
        case ast.Constant(value=int() | float() as value) if not is_condition and -LIMIT < value < LIMIT:
            kinds = []
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is no {'condition' if is_condition else 'number'}: {GRAMMAR}")
    for child, kind in kinds:
        _check(child, is_condition=kind)


def _value(node: ast.expr, channels: Mapping[str, Any], operators: Mapping[type, Callable[..., Any]]) -> Any:
    """The value of a node that `_check` accepts."""
    match node:
        case ast.BoolOp(op=op, values=[first, *others]):
            result = _value(first, channels, operators)
            for other in others:
                result = operators[type(op)](result, _value(other, channels, operators))
            return result
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(value, channels, operators) for value in (left, *others)]
            result = None
            for low, sign, high in zip(values, ops, values[1:], strict=False):
                found = operators[type(sign)](low, high)
                result = found if result is None else operators[ast.And](result, found)
            return result
        case ast.BinOp(left=left, op=op, right=right):
            return operators[type(op)](_value(left, channels, operators), _value(right, channels, operators))
        case ast.UnaryOp(op=op, operand=operand):
            return operators[type(op)](_value(operand, channels, operators))
        case ast.Name(id=name):
            return channels[name]
        case ast.Constant(value=value):
            return value
    raise AssertionError(f"{node} was not checked")
