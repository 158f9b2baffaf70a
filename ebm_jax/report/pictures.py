"""Images as pictures: grids, captioned rows, strips of chains, films."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ebm_jax.kinds import printable
from ebm_jax.pixels import quantised
from ebm_jax.storage.writing import replacing

TILE = 56  # pixels: small images are enlarged to at least about this side in a grid
BACKGROUND = 128  # gray, between images
CAPTION, CAPTION_WIDTH = 16, 160  # pixels: height of a caption, and the least width of a picture with captions
SMALL_CAPTION = 14  # pixels: height of a caption below one image of a grid
STRIP = 12  # columns
FRAME_MS, LAST_FRAME_MS = 80, 1500


def grid(images: np.ndarray, captions: Sequence[str] = ()) -> np.ndarray:
    """Images [n, h, w, c] in [0, 1] as one nearly square uint8 picture, row by row; small images are enlarged.

    Args:
      captions: one below each image, cut to its width; empty: none.
    """
    tiles = _tiles(images, TILE)
    if captions:
        bands = [_band(caption, *tiles.shape[2:]) for caption in captions]
        tiles = np.concatenate([tiles, np.stack(bands)], 1)
    return _arranged(tiles, math.ceil(math.sqrt(len(images))))


def _band(caption: str, width: int, channels: int) -> np.ndarray:
    """A caption in white on gray, uint8 [SMALL_CAPTION, width, channels]."""
    font, text = ImageFont.load_default(SMALL_CAPTION - 4), printable(caption)
    fitting = (length for length in range(len(text), 0, -1) if font.getlength(text[:length]) <= width - 2)
    band = Image.new("L", (width, SMALL_CAPTION), BACKGROUND)
    ImageDraw.Draw(band).text((1, 0), text[: next(fitting, 0)], fill="white", font=font)
    return np.asarray(band)[:, :, None].repeat(channels, 2)


def write_grid(path: Path, images: np.ndarray, captions: Sequence[str] = ()) -> None:
    """The `grid` of images [n, h, w, c] in [0, 1], c being 1 or 3, as a PNG file."""
    _write_png(path, grid(images, captions))


def write_rows(path: Path, rows: dict[str, np.ndarray]) -> None:
    """A row of images [n, h, w, c] in [0, 1] below each caption, as a PNG file.

    Rows may differ in size and channels (1 or 3), as images and observations do; all are enlarged to about the same
    side.
    """
    largest = max(rows.values(), key=lambda images: max(images.shape[1:3]))
    side = _scale(largest, TILE) * max(largest.shape[1:3])
    pictures = [_arranged(_tiles(images, side), len(images)) for images in rows.values()]
    width = max(CAPTION_WIDTH, *(picture.shape[1] for picture in pictures))
    canvas = Image.new("RGB", (width, sum(CAPTION + len(picture) for picture in pictures)), (BACKGROUND,) * 3)
    pen, top = ImageDraw.Draw(canvas), 0
    for caption, picture in zip(rows, pictures, strict=True):
        pen.text((3, top), caption, fill="white", font=ImageFont.load_default(CAPTION - 4))
        canvas.paste(_pil(picture), (0, top + CAPTION))
        top += CAPTION + len(picture)
    _write_png(path, np.asarray(canvas))


def write_strip(path: Path, frames: np.ndarray) -> None:
    """Chains as rows, their frames [frames, n, h, w, c] from left to right, as a PNG file.

    At most `STRIP` columns, spaced evenly from the first frame to the last.
    """
    shown = np.rint(np.linspace(0, len(frames) - 1, min(len(frames), STRIP))).astype(int)
    images = frames[shown].swapaxes(0, 1)
    _write_png(path, _arranged(_tiles(images.reshape(-1, *images.shape[2:]), TILE), len(shown)))


def write_film(path: Path, frames: np.ndarray) -> None:
    """The grids of frames [frames, n, h, w, c] one after another, as an animated GIF that repeats for ever.

    It shows `1000 / FRAME_MS` frames a second, and the last frame for `LAST_FRAME_MS`. Pillow merges a frame with an
    equal frame before it.
    """
    pictures = [_pil(grid(images)) for images in frames]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _scale(images: np.ndarray, side: int) -> int:
    """How often to repeat a pixel so that images have at most about `side` pixels a side."""
    return max(1, side // max(images.shape[1:3]))


def _tiles(images: np.ndarray, side: int) -> np.ndarray:
    """Each image as uint8, enlarged to about `side` pixels, in a frame; without it neighbouring strokes read as one."""
    n, h, w, c = images.shape
    scale = _scale(images, side)
    gap = max(1, max(h, w) * scale // 16)
    tiles = np.full((n, h * scale + 2 * gap, w * scale + 2 * gap, c), BACKGROUND, np.uint8)
    tiles[:, gap:-gap, gap:-gap] = quantised(images).repeat(scale, 1).repeat(scale, 2)
    return tiles


def _arranged(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles [n, h, w, c] in reading order, the last row filled up with background."""
    n, h, w, c = tiles.shape
    rows = math.ceil(n / columns)
    full = np.full((rows * columns, h, w, c), BACKGROUND, np.uint8)
    full[:n] = tiles
    return full.reshape(rows, columns, h, w, c).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)


def _pil(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def _write_png(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        _pil(picture).save(file, "PNG")
