"""Limits of a key's value on its own: its kind, and its range or options."""

import ctypes
import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ebm_jax.given import BadInput, printable

INT32 = 2**31 - 1
SHOWN = 80  # characters of a value in a message, at most
SOFT = {
    "soft": None,
    "size": 1,
    "position": 2,
    "rotation": 2,
}  # values of data.condition with vector labels: their length
LONGEST_TEXT = 4_200  # a path has at most 4,096 bytes


class Limit(NamedTuple):
    """The values that a key may have."""

    kind: str
    """In words, such as "a whole number"."""
    is_kind: Callable[[Any], bool]
    range: str = ""
    """In words, such as "at least 1"."""
    in_range: Callable[[Any], bool] = lambda value: True
    options: tuple[str, ...] = ()
    """All allowed values, if they are few words; else empty."""

    def check_kind(self, key: str, value: Any) -> None:
        """Raise BadInput for a value of another kind."""
        if not self.is_kind(value):
            raise BadInput(f"{key} {shown(value)} is of the type {type(value).__name__}; it must be {self.kind}")

    def check(self, key: str, value: Any) -> None:
        """Raise BadInput for a value of another kind or out of range."""
        self.check_kind(key, value)
        if self.options and value not in self.options:
            near = difflib.get_close_matches(value, self.options, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise BadInput(f"{key} {shown(value)} is unknown; use one of {', '.join(self.options)}{hint}")
        if not self.in_range(value):  # written so that NaN fails too
            raise BadInput(f"{key} {shown(value)} is out of range; it must be {self.range}")

    def stored(self, value: Any) -> Any:
        """The value as the config stores it: a shape as a tuple, any number as a float unless it must be whole."""
        if self in (SHAPE, COUNTS):
            return tuple(value)
        return as_float(value) if self.kind == "a number" else value


def whole(low: int, high: int = INT32) -> Limit:
    """A whole number from `low` to `high`."""
    limit = f"at least {low}" if high == INT32 else f"at least {low} and at most {high:,}"
    return Limit("a whole number", _is_whole, limit, lambda value: low <= value <= high)


def number(limit: str, holds: Callable[[float], bool], *, as_float32: bool = True) -> Limit:
    """A number that satisfies `holds`; `as_float32` rounds it first, as the device will. `limit` says it in words."""
    return Limit("a number", _is_number, limit, lambda value: holds(_rounded(value) if as_float32 else value))


def one_of(*options: str) -> Limit:
    """One of a few words."""
    return Limit("text", _is_text, options=options)


def shown(value: Any) -> str:
    """A value as text for a message: on one line, cut after SHOWN characters."""
    try:
        text = str(value) if isinstance(value, (int, float, tuple, list)) else repr(value)
    except Exception as error:  # a whole number of thousands of digits, a class of the user's own
        return f"{type(value).__name__} ({type(error).__name__})"
    text = printable(" ".join(text.split()))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def as_float(value: int | float) -> float:
    """A number as a float; infinite if it is too large for one."""
    try:
        return float(value)
    except OverflowError:  # a whole number with hundreds of digits
        return math.inf if value > 0 else -math.inf


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _rounded(value: int | float) -> float:
    """The nearest float32; infinite if the value is too large for one."""
    return ctypes.c_float(as_float(value)).value


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_whole, value))


def _fits(value: str) -> bool:
    return len(value) <= LONGEST_TEXT


FLAG = Limit("True or False", lambda value: isinstance(value, bool))
TEXT = Limit("text", _is_text, f"at most {LONGEST_TEXT} letters", _fits)
WORD = Limit("text", _is_text, "some letters", lambda value: bool(value.strip()) and _fits(value))
HASH = Limit(
    "text",
    _is_text,
    "the beginning of a SHA-256 in hexadecimal digits, or empty",
    lambda value: len(value) <= 64 and set(value.lower()) <= set("0123456789abcdef"),
)
SHAPE = Limit(
    "whole numbers such as (32, 32, 3)",
    _is_shape,
    "of sizes from 1 to 4,096",
    lambda value: all(1 <= size <= 4096 for size in value),
)
COUNTS = Limit(
    "whole numbers such as (1, 2)",
    _is_shape,
    "1 to 8 numbers from 1 to 64",
    lambda value: 1 <= len(value) <= 8 and all(1 <= number <= 64 for number in value),
)
SEED = whole(0, 2**32 - 1)  # JAX drops higher bits without a word
CHAIN_STEPS = whole(1, 1_000_000)  # keys and energies of all steps are kept until the end
POSITIVE = number("greater than 0 and finite, as float32", lambda value: 0 < value < math.inf)
ABOVE_ZERO = number("greater than 0, as float32", lambda value: value > 0)
NOT_NEGATIVE = number("at least 0 and finite, as float32", lambda value: 0 <= value < math.inf)
NOT_BELOW_ZERO = number("at least 0, as float32", lambda value: value >= 0)
AMOUNT = number("at least 0", lambda value: value >= 0, as_float32=False)
BELOW_ONE = number("at least 0 and below 1, as float32", lambda value: 0 <= value < 1)
SHARE = number("greater than 0 and at most 1, as float32", lambda value: 0 < value <= 1)
FACTOR = number("at least 1 and at most 10", lambda value: 1 <= value <= 10)
PROBABILITY = number("a probability, 0 to 1", lambda value: 0 <= value <= 1)
