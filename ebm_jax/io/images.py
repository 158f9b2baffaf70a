"""From an encoded image of any size to pixels of the shape that a run trains on."""

import io

import numpy as np
from PIL import Image

from ebm_jax.types import Shape

MODES = {1: "L", 3: "RGB"}


class Unreadable(Exception):
    """An image that cannot be used; the message says why in a few words."""


def decode(encoded: bytes, shape: Shape, crop: bool, gain: int = 1) -> np.ndarray:
    """The pixels of an encoded image (PNG, JPEG, whatever PIL reads) as uint8 of `shape` (height, width, channels).

    Args:
      crop: take images of any size, as `fit` does; else only those of exactly this height and width.
      gain: factor of the stored pixels, before they are resized, for sets whose white is not 255.

    Raises:
      Unreadable: it is no image, or a truncated one, or of another size.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if not crop and image.size != (shape[1], shape[0]):
                raise Unreadable(f"is {image.size[1]}x{image.size[0]} and not {shape[0]}x{shape[1]}")
            if crop:
                image.draft(MODES[shape[2]], _cover(image.size, shape))  # JPEG: decode at half size where that suffices
            image = image.convert(MODES[shape[2]])
            return pixels(fit(image if gain == 1 else image.point(lambda value: value * gain), shape))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises each of these
        raise Unreadable(f"cannot be decoded ({type(error).__name__})") from error


def fit(image: Image.Image, shape: Shape) -> Image.Image:
    """The image shrunk or enlarged, its aspect kept, until it just covers `shape`, then cropped at its centre."""
    height, width, _ = shape
    image = image.resize(_cover(image.size, shape), Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def pixels(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 [h, w, c]."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _cover(size: tuple[int, int], shape: Shape) -> tuple[int, int]:
    """The smallest (width, height) of the aspect of `size` that covers `shape`."""
    width, height = size
    scale = max(shape[1] / width, shape[0] / height)
    return max(shape[1], round(width * scale)), max(shape[0], round(height * scale))
