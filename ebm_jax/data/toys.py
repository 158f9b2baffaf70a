"""Generated gray images of one white shape on black, at a random place: dSprites in small, without a download.

A shape is a stack of thin slabs; the value of a pixel is the share of it that the slabs cover. So an image follows its
shape by any fraction of a pixel, and two places never give the same image.
"""

import numpy as np

from ebm_jax.data.memory import Dataset, check_split
from ebm_jax.types import BadInput

SHAPES = ("disc", "bar", "pillar")
MARGIN = 4.5 / 16  # in sides of the image; no shape reaches further from its centre of mass
SIZES = {"train": 4096, "test": 1024}
SLABS = 64


def _slabs(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """The slabs' edges [SLABS + 1], down from the centre of mass, and their half widths [SLABS]; in sides of the image.

    The disc is 6/16 in diameter, the bar 9/16 wide and 3/16 high, the pillar a bar on end.
    """
    edges = np.linspace(-1, 1, SLABS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    if shape == "disc":
        return 3 / 16 * edges, 3 / 16 * np.sqrt(1 - middles**2)
    width, height = (9 / 16, 3 / 16) if shape == "bar" else (3 / 16, 9 / 16)
    return height / 2 * edges, np.full(SLABS, width / 2)


def render(shapes: np.ndarray, positions: np.ndarray, side: int) -> np.ndarray:
    """Images float32 [n, side, side, 1] in [0, 1], antialiased.

    Args:
      shapes: [n], indices into SHAPES.
      positions: (x, y) [n, 2] of the centre of mass, in [0, 1], to the right and downwards. 0 and 1 lie MARGIN inside
        the borders, so that every shape is whole at every position.
      side: pixels a side.
    """
    edges, halves = (np.stack(parts)[shapes] for parts in zip(*map(_slabs, SHAPES), strict=True))
    centres = MARGIN + (1 - 2 * MARGIN) * np.asarray(positions)[:, :, None]
    x, y = side * centres[:, 0], side * (centres[:, 1] + edges)
    columns = _covered(x - side * halves, x + side * halves, side)
    rows = _covered(y[:, :-1], y[:, 1:], side)
    return np.einsum("nsy,nsx->nyx", rows, columns)[..., None].astype(np.float32)


def _covered(low: np.ndarray, high: np.ndarray, side: int) -> np.ndarray:
    """The share [..., side] of each pixel along a line that the intervals from `low` to `high` cover."""
    pixels = np.arange(side)
    return np.clip(np.minimum(high[..., None], pixels + 1) - np.maximum(low[..., None], pixels), 0, None)


def shapes(split: str, shape: tuple[int, ...], condition: str, seed: int = 0) -> Dataset:
    """Images of uniformly random shapes at uniformly random positions: 4,096 for training, 1,024 for testing.

    Args:
      split: "train" or "test", each drawn from its own random stream.
      shape: (side, side, 1) of an image.
      condition: the label, "shape" (a class, 0 to 2) or "position" (x, y), as in `render`.

    Raises:
      BadInput: another split, image shape or condition.
    """
    check_split("shapes", split, list(SIZES))
    side = shape[0]
    if shape != (side, side, 1):
        raise BadInput(f"data.shape {shape} is not a square gray image, as shapes are; use {(side, side, 1)}")
    rng = np.random.default_rng([seed, list(SIZES).index(split)])
    kinds = rng.integers(len(SHAPES), size=SIZES[split]).astype(np.int32)
    positions = rng.random((SIZES[split], 2), np.float32)
    images = np.rint(255 * render(kinds, positions, side)).astype(np.uint8)
    if condition == "shape":
        return Dataset(images, kinds, len(SHAPES), SHAPES)
    if condition == "position":
        return Dataset(images, positions, 2)
    raise BadInput(f"data.condition '{condition}' is not a factor of shapes; use shape or position")
