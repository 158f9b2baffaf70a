"""Where the images of a grid lie and which class each has: kept inside the PNG file, and read from it."""

import io
import json
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "ebm_jax:tiles"
LONGEST = 1_000_000  # letters of an entry that is believed


class Tiles(NamedTuple):
    """The images of a grid, in reading order; all lengths are pixels of the picture."""

    first: tuple[int, int]
    """Left and top of the first image."""
    pitch: tuple[int, int]
    """From an image to the next, to the right and below."""
    size: tuple[int, int]
    """Width and height of an image."""
    columns: int
    classes: tuple[str, ...]
    """The class of each image in words."""


def as_entry(tiles: Tiles) -> PngInfo:
    """The entry of a PNG file that keeps them."""
    entry = PngInfo()
    entry.add_text(KEY, json.dumps(tiles._asdict()))
    return entry


def inside(content: bytes) -> Tiles | None:
    """The tiles that a PNG file keeps; None if it has none, or they do not lie inside its picture."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            text, (width, height) = picture.info.get(KEY, ""), picture.size
        found: dict[str, Any] = json.loads(text) if 0 < len(text) <= LONGEST else {}
        (x, y), (right, below), (wide, high) = (map(_whole, found[name]) for name in ("first", "pitch", "size"))
        columns, classes = _whole(found["columns"]), tuple(map(str, found["classes"]))
    except Exception:  # a stranger's file: Pillow raises many kinds
        return None
    rows = -(-len(classes) // columns) if columns else 0
    right_end, bottom = x + (columns - 1) * right + wide, y + (rows - 1) * below + high
    if min(rows, wide, high) < 1 or right_end > width or bottom > height:
        return None
    return Tiles((x, y), (right, below), (wide, high), columns, classes)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
