"""Which stored value is white, in images of more than 8 bits and arrays of floats: measured over the set, or named.

A camera of 10 bits writes files of 16 bits in which white is 1,023, and floats may have been divided by 255 twice. Read
as their type alone says, such sets are black, and a model learns darkness. So a set whose largest value is far below
white is refused until `data.max_value` says what white is.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ebm_jax.data import decode
from ebm_jax.distributed import parallel
from ebm_jax.types import BadInput

LOOKED_AT = 64  # images of a set, evenly spaced
DARK = 0.25  # of white in files: 14 bits in 16
DARK_FLOATS = 0.1  # of white in arrays of floats: 12 bits in 16, or divided by 255 twice
SMALL = 256  # pixels a side that a JPEG is decoded at, for its range alone
TYPE_S_OWN = math.inf  # data.max_value: the type's own largest value, however dark the set is
WHITE_16 = 65_535


class Look(NamedTuple):
    """What one image holds."""

    low: float
    high: float
    is_deep: bool
    """It has more than 8 bits."""
    pages: int
    """Pages or frames beyond the first."""


class Looks(NamedTuple):
    """What some images of a set hold."""

    values: tuple[float, float] | None
    """The smallest and largest stored value; None: no image can be read."""
    deep: float | None
    """The largest value of images of more than 8 bits; None: there is none."""
    count: int
    """Images that could be read."""
    pages: int
    """Pages or frames beyond the first, of all these images."""


def looks(read: Callable[[int], tuple[bytes, str]], length: int) -> Looks:
    """Look at LOOKED_AT images of a set.

    Args:
      read: row -> (the encoded image, the ending of its name); may raise `decode.Unreadable`.
    """
    rows = np.unique(np.linspace(0, length - 1, min(length, LOOKED_AT)).round().astype(int)).tolist()

    def look_at(row: int) -> Look | None:
        try:
            return look(*read(row))
        except decode.Unreadable:
            return None

    with ThreadPoolExecutor(parallel.cores()) as pool:
        found = [one for one in pool.map(look_at, rows) if one is not None]
    values = (min(one.low for one in found), max(one.high for one in found)) if found else None
    deep = max((one.high for one in found if one.is_deep), default=None)
    return Looks(values, deep, len(found), sum(one.pages for one in found))


def look(encoded: bytes, ending: str) -> Look:
    """What an encoded image holds; a channel of 16 bits whose low byte cannot be read counts as full.

    Raises:
      Unreadable: it cannot be decoded.
    """
    with decode.opened(encoded, ending) as image:
        pages = getattr(image, "n_frames", 1) - 1
        is_deep_colour = decode.is_deep_colour(image)
        if image.mode in ("I", "F"):
            raise decode.Unreadable("has 32-bit pixels of unknown range")
        image.draft(None, (SMALL, SMALL))
        is_deep = image.mode.startswith("I;16")
        values = np.asarray(image if is_deep or image.mode in ("L", "RGB") else image.convert("RGB"))
        low, high = float(values.min()), float(values.max())
        if is_deep_colour:
            low, high = 256 * low, 256 * high + 255
        return Look(low, high, is_deep or is_deep_colour, pages)


def deep_of(looks: Looks, max_value: float, where: str) -> decode.Deep:
    """What becomes of 16-bit pixels in a set of files.

    Args:
      max_value: `data.max_value`: the value of white; 0: the type's own, refused where it makes the set dark;
        TYPE_S_OWN: the same, never refused.
      where: the set, for messages.

    Raises:
      BadInput: the set would be dark, or has values beyond `max_value`.
    """
    if max_value in (TYPE_S_OWN, WHITE_16):
        return decode.high_byte
    if max_value:
        if looks.deep is not None and looks.deep > max_value:
            raise BadInput(f"{where} has 16-bit images with {beyond(looks.deep, max_value)}")
        return lambda values: _scaled(values, max_value)
    if not looks.deep:
        return _as_16_bits
    if looks.deep <= DARK * WHITE_16:
        raise BadInput(
            f"{where} has 16-bit images whose largest value is {looks.deep:,.0f} of {WHITE_16:,} in {looks.count} "
            f"images looked at, so white would come out as {int(looks.deep) >> 8} of 255; {_cure(looks.deep)}"
        )
    return decode.high_byte


def beyond(value: float, max_value: float) -> str:
    """That a value is larger than white, in words, with the cure."""
    return f"the value {value:,.0f}, more than data.max_value {max_value:g}; {_cure(value)}"


def _cure(value: float) -> str:
    known = [(bits, 2**bits - 1) for bits in (8, 10, 12, 14) if value <= 2**bits - 1]
    use = f"data.max_value={known[0][1]} if they have {known[0][0]} bits, or " if known else ""
    return f"use {use}data.max_value={WHITE_16} to take white for {WHITE_16:,}"


def _scaled(values: np.ndarray, max_value: float) -> np.ndarray:
    if (highest := values.max()) > max_value:
        raise decode.OutOfRange(f"has {beyond(float(highest), max_value)}")
    return np.rint(values * (255 / max_value)).astype(np.uint8)


def _as_16_bits(values: np.ndarray) -> np.ndarray:
    """The high byte, if the image fills 16 bits: none of the images looked at says how many its set has."""
    if 0 < (highest := float(values.max())) <= DARK * WHITE_16:
        raise decode.OutOfRange(
            f"has 16 bits, though the images looked at have 8 or are black, and the largest value {highest:,.0f}; "
            f"{_cure(highest)}"
        )
    return decode.high_byte(values)


def note_of(looks: Looks, max_value: float) -> tuple[str, ...]:
    """What a person has to know about the scale of a set of files, in at most one sentence."""
    if looks.deep is None or max_value == 0:
        return ()
    if max_value not in (TYPE_S_OWN, WHITE_16):
        return (f"in 16-bit images {max_value:g} is white (data.max_value)",)
    if looks.deep <= DARK * WHITE_16:
        return (f"16-bit images of at most {looks.deep:,.0f} are read as dark: {WHITE_16:,} is white",)
    return ()


TINY = 1e-3  # of white: rounding beyond the range, a quarter of a level


def white_of(name: str, low: float, high: float, dtype: np.dtype, max_value: float) -> float:
    """The value of white in an array; bytes are taken as they are.

    Args:
      low, high: its smallest and largest value.
      max_value: as for `deep_of`; the own white of floats is 1.

    Raises:
      BadInput: with the range and the cure.
    """
    if dtype == np.uint8:
        return 255.0
    is_float = np.issubdtype(dtype, np.floating)
    if max_value in (0, TYPE_S_OWN) and not is_float:
        raise BadInput(
            f"{name} has the type {dtype}; save uint8, or floats from 0 to 1, or name the value of white by "
            "data.max_value"
        )
    white = 1.0 if max_value in (0, TYPE_S_OWN) else max_value
    if not (low >= -TINY * white and high <= (1 + TINY) * white):  # written so that NaN fails too
        raise BadInput(
            f"{name} ranges from {low} to {high}; scale it to 0 to {white:g}, save uint8, or name the value of white "
            "by data.max_value"
        )
    if max_value == 0 and 0 < high <= DARK_FLOATS:
        raise BadInput(
            f"{name} ranges from {low} to {high}, so the brightest pixel would come out as {round(255 * high)} of 255; "
            f"use data.max_value={high:.6g} if that is white, or data.max_value=1 if 1 is"
        )
    return white


def as_levels(values: np.ndarray, white: float) -> np.ndarray:
    """Values from 0 to `white` as uint8, rounded to the nearest of 256 levels, of which 255 is white."""
    return np.rint(np.clip(values.astype(np.float32) / np.float32(white), 0, 1) * 255).astype(np.uint8)
