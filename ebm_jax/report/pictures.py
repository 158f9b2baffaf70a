"""Images as pictures: grids, rows with headings, strips of chains, films."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ebm_jax.pixels import quantised
from ebm_jax.report import style
from ebm_jax.report.style import BACKGROUND, GRID_SIDE, LEAST_WIDTH, STRIP_SIDE
from ebm_jax.report.tiles import Tiles, as_entry
from ebm_jax.storage.writing import replacing

STRIP = 12  # columns
FRAME_MS, LAST_FRAME_MS = 80, 1500


class Row(NamedTuple):
    """Images of one row of a picture."""

    images: np.ndarray
    """[n, h, w, c] in [0, 1], c being 1 or 3."""
    captions: Sequence[str] = ()
    """One below each image; empty: none."""
    hidden: np.ndarray | None = None
    """bool [h, w]: pixels that are hatched in place of what they have; None: none."""


def grid(images: np.ndarray, *captions: Sequence[str], title: str = "", side: int = GRID_SIDE) -> np.ndarray:
    """Images [n, h, w, c] in [0, 1] as one nearly square uint8 picture, row by row; small images are enlarged.

    Args:
      captions: each a line below every image, cut to its width; an empty sequence: no line.
      title: above all; the picture is at least `style.LEAST_WIDTH` wide if there is one.
      side: pixels that images are enlarged to at most, by a whole factor.
    """
    tiles = _captioned(_tiles(images, side), captions)
    return _titled(_arranged(tiles, math.ceil(math.sqrt(len(images)))), title)


def write_grid(
    path: Path,
    images: np.ndarray,
    *captions: Sequence[str],
    title: str = "",
    side: int = GRID_SIDE,
    classes: Sequence[str] = (),
) -> None:
    """The `grid` of images [n, h, w, c] in [0, 1], c being 1 or 3, as a PNG file.

    Args:
      classes: of the images, in words, kept inside the file for the run's page; empty: they have none.
    """
    picture = grid(images, *captions, title=title, side=side)
    _write_png(path, picture, _tiles_of(picture, images, len(list(filter(len, captions))), side, classes))


def write_rows(path: Path, rows: Mapping[str, np.ndarray | Row], title: str = "") -> None:
    """A row of images [n, h, w, c] in [0, 1] below each heading, as a PNG file.

    Rows may differ in size and channels (1 or 3), as images and observations do; all are enlarged to about the same
    side.
    """
    of_heading = {heading: row if isinstance(row, Row) else Row(row) for heading, row in rows.items()}
    largest = max((row.images for row in of_heading.values()), key=lambda images: max(images.shape[1:3]))
    side = max(largest.shape[1:3]) * _scale(largest, GRID_SIDE)
    parts = []
    for heading, row in of_heading.items():
        tiles = _captioned(_in_colour(_tiles(row.images, side, row.hidden)), [row.captions])
        parts.append((heading, _arranged(tiles, len(tiles))))
    width = max(LEAST_WIDTH, *(max(style.heading_width(heading), part.shape[1]) for heading, part in parts))
    pieces = [piece for heading, part in parts for piece in (style.heading_band(heading, width), part)]
    _write_png(path, _titled(_stacked(pieces, width), title))


def write_strip(
    path: Path, frames: np.ndarray, steps: Sequence[int] = (), title: str = "", captions: Sequence[str] = ()
) -> None:
    """Chains as rows, their frames [frames, n, h, w, c] from left to right, as a PNG file.

    At most `STRIP` columns, spaced evenly from the first frame to the last.

    Args:
      steps: of the frames, shown above their columns; empty: not shown.
      captions: one of each chain, below its last frame; empty: none.
    """
    shown = np.rint(np.linspace(0, len(frames) - 1, min(len(frames), STRIP))).astype(int)
    images = frames[shown].swapaxes(0, 1)
    below = [words for caption in captions for words in [*[""] * (len(shown) - 1), caption]]
    tiles = _captioned(_tiles(images.reshape(-1, *images.shape[2:]), STRIP_SIDE), [below])
    picture = _arranged(tiles, len(shown))
    if len(steps):
        above = [style.caption_band(f"step {steps[index]:,}", tiles.shape[2]) for index in shown]
        picture = _stacked([np.concatenate(list(map(np.asarray, above)), 1), picture], picture.shape[1])
    _write_png(path, _titled(picture, title))


def write_film(
    path: Path, frames: np.ndarray, steps: Sequence[int] = (), title: str = "", captions: Sequence[str] = ()
) -> None:
    """The grids of frames [frames, n, h, w, c] one after another, as an animated GIF that repeats for ever.

    It shows `1000 / FRAME_MS` frames a second, and the last frame for `LAST_FRAME_MS`. Pillow merges a frame with an
    equal frame before it.

    Args:
      steps: of the frames, shown as the last line of their titles; empty: not shown.
      captions: one below each image of every frame; empty: none.
    """
    lines = [f"step {step:,} of {steps[-1]:,}" for step in steps] or [""] * len(frames)
    titles = ["\n".join(filter(None, (title, line))) for line in lines]
    pictures = [_pil(grid(images, captions, title=title)) for images, title in zip(frames, titles, strict=True)]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _scale(images: np.ndarray, side: int) -> int:
    """How often to repeat a pixel so that images have at most `side` pixels a side; 1 for larger ones."""
    return max(1, side // max(images.shape[1:3]))


def _tiles(images: np.ndarray, side: int, hidden: np.ndarray | None = None) -> np.ndarray:
    """Each image as uint8, enlarged to about `side` pixels, in a frame; without it neighbouring strokes read as one.

    Hidden pixels [h, w] are hatched; then the tiles have three channels.
    """
    scale = _scale(images, side)
    shown = quantised(images).repeat(scale, 1).repeat(scale, 2)
    if hidden is not None:
        y, x = np.indices(shown.shape[1:3])
        ground, stripes = np.asarray(style.HATCH, np.uint8)
        hatch = np.where(style.is_hatched(y, x)[:, :, None], stripes, ground)
        shown = np.where(hidden.repeat(scale, 0).repeat(scale, 1)[:, :, None], hatch, _in_colour(shown))
    n, h, w, c = shown.shape
    gap = _gap(h, w)
    tiles = np.full((n, h + 2 * gap, w + 2 * gap, c), BACKGROUND, np.uint8)
    tiles[:, gap:-gap, gap:-gap] = shown
    return tiles


def _captioned(tiles: np.ndarray, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Tiles [n, h, w, c] with each sequence of captions as a line below them."""
    for line in filter(len, captions):
        bands = np.stack([np.asarray(style.caption_band(words, tiles.shape[2])) for words in line])
        tiles = np.concatenate([tiles, bands[..., None].repeat(tiles.shape[3], 3)], 1)
    return tiles


def _arranged(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles [n, h, w, c] in reading order, the last row filled up with background."""
    n, h, w, c = tiles.shape
    rows = math.ceil(n / columns)
    full = np.full((rows * columns, h, w, c), BACKGROUND, np.uint8)
    full[:n] = tiles
    return full.reshape(rows, columns, h, w, c).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)


def _tiles_of(picture: np.ndarray, images: np.ndarray, lines: int, side: int, classes: Sequence[str]) -> Tiles | None:
    """Where the images of a grid with so many lines of captions lie; None if they have no classes."""
    if not len(classes):
        return None
    h, w = (length * _scale(images, side) for length in images.shape[1:3])
    gap, columns = _gap(h, w), math.ceil(math.sqrt(len(images)))
    pitch = w + 2 * gap, h + 2 * gap + lines * style.CAPTION_LINE
    top = len(picture) - math.ceil(len(images) / columns) * pitch[1]  # below the title
    return Tiles((gap, top + gap), pitch, (w, h), columns, tuple(classes))


def _gap(h: int, w: int) -> int:
    """The width of the frame around an image of this height and width."""
    return max(1, max(h, w) // 16)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture [h, w, c] below its title, widened to where a title can be read."""
    if not title:
        return picture
    width = max(LEAST_WIDTH, picture.shape[1])
    return _stacked([style.title_band(title, width), picture], width)


def _stacked(pieces: Sequence[np.ndarray | Image.Image], width: int) -> np.ndarray:
    """Pieces below one another at the left; in colour if one of them is."""
    arrays = [np.atleast_3d(np.asarray(piece)) for piece in pieces]
    channels = max(array.shape[2] for array in arrays)
    full = np.full((sum(map(len, arrays)), width, channels), BACKGROUND, np.uint8)
    top = 0
    for array in arrays:
        full[top : top + len(array), : array.shape[1]] = array
        top += len(array)
    return full


def _in_colour(images: np.ndarray) -> np.ndarray:
    return images.repeat(3 // images.shape[3], 3)


def _pil(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def _write_png(path: Path, picture: np.ndarray, of_classes: Tiles | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _pil(picture).save(file, "PNG", pnginfo=as_entry(of_classes) if of_classes else None)
