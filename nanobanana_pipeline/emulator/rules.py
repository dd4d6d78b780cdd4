"""What a field of a body may hold: one rule both reads it and tells it as a JSON Schema.

The schema names the plain spellings of a value. Reading takes all of them, and some more: blanks
around a number, an exponent, capitals in a switch.
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

_T = TypeVar("_T")

Schema: TypeAlias = dict[str, Any]
"""A JSON Schema (2020-12, as OpenAPI 3.1 has it), or a part of one."""

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_LONGEST_NUMBER = 64  # characters; far more than a 64-bit number needs
_LARGEST_DOUBLE = sys.float_info.max
_FEW = 64  # values that a schema lists one by one


class BadValueError(ValueError):
    """What is wrong with one value, as the end of a sentence that begins with the field's name."""


@dataclass(frozen=True, slots=True)
class Rule(Generic[_T]):
    """The rule of one field.

    Attributes:
        name: The field's.
        default: What it is when it is not given.
        parse: Reads a value that is not null; raises `BadValueError`.
        schema: What it takes, as a JSON Schema; null is left to `as_property`.
        required: Whether it must be given.
    """

    name: str
    default: _T
    parse: Callable[[object], _T]
    schema: Schema
    required: bool = False

    def as_property(self) -> Schema:
        """Give the schema of the field in a body, where null means that it was not given."""
        if self.required:
            return self.schema
        default: Schema = {} if self.default == "" else {"default": self.default}
        return {"anyOf": [self.schema, {"type": "null"}]} | default


def text(name: str, about: str = "") -> Rule[str]:
    """Make the rule of a text that may be anything, or be left out."""
    return Rule(name, "", _text, {"type": "string"} | ({"description": about} if about else {}))


def required_text(name: str) -> Rule[str]:
    """Make the rule of a text that must say something."""
    return Rule(name, "", _words, {"type": "string", "pattern": r"\S"}, required=True)


def number(name: str, default: float) -> Rule[float]:
    """Make the rule of a number that may have a fraction."""
    plain = {"type": "number", "minimum": -_LARGEST_DOUBLE, "maximum": _LARGEST_DOUBLE}
    written = {"type": "string", "pattern": r"^-?[0-9]{1,15}(\.[0-9]{1,15})?$"}
    return Rule(name, default, _number, {"anyOf": [plain, written]})


def whole(name: str, default: int, smallest: int, largest: int, step: int = 1) -> Rule[int]:
    """Make the rule of a whole number within bounds, both included, that `step` divides."""

    def parse(raw: object) -> int:
        value = _whole(raw)
        if not smallest <= value <= largest:
            raise BadValueError(f"must be between {smallest} and {largest}")
        if value % step:
            raise BadValueError(f"must be divisible by {step}")
        return value

    plain: Schema = {"type": "integer", "minimum": smallest, "maximum": largest}
    if step > 1:
        plain["multipleOf"] = step
    values = range(smallest, largest + 1, step)
    written: Schema = {"type": "string"}
    if largest - smallest < _FEW * step:
        written["enum"] = [str(value) for value in values]
    else:  # as many digits as are surely within the bounds
        written["pattern"] = rf"^[0-9]{{1,{len(str(largest)) - 1}}}$"
    return Rule(name, default, parse, {"anyOf": [plain, written]})


def switch(name: str) -> Rule[bool]:
    """Make the rule of a "yes" or "no" that is "no" unless told."""
    schema: Schema = {"enum": ["yes", "no", True, False]}
    return Rule(name, default=False, parse=_switch, schema=schema)


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise BadValueError("must be a string")
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise BadValueError("must not contain lone surrogates") from None
    return raw


def _words(raw: object) -> str:
    words = _text(raw)
    if not words.strip():
        raise BadValueError("is required")
    return words


def _number(raw: object) -> float:
    if isinstance(raw, str) and len(raw) <= _LONGEST_NUMBER and _NUMBER.fullmatch(raw):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise BadValueError("must be a number")
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BadValueError("must be a finite number")
    return value + 0.0  # -0.0 draws the same picture as 0.0


def _whole(raw: object) -> int:
    # Whole numbers never pass through a float, which would round seeds beyond 2^53.
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and len(raw) <= _LONGEST_NUMBER and _WHOLE.fullmatch(raw):
        return int(raw)
    value = _number(raw)
    if not value.is_integer():
        raise BadValueError("must be a whole number")
    return int(value)


def _switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.strip().lower() in {"yes", "no"}:
        return raw.strip().lower() == "yes"
    raise BadValueError('must be "yes" or "no"')
