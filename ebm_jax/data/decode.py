"""Decoding of an image of any size into pixels of the shape that a run trains on."""

import io

import numpy as np
from PIL import Image, ImageOps

from ebm_jax.types import Shape

MODES = {1: "L", 3: "RGB"}


class Unreadable(Exception):
    """An image that cannot be used; the message says why in a few words."""


def decode(encoded: bytes, shape: Shape, crop: bool, gain: int = 1) -> np.ndarray:
    """The pixels of an encoded image (PNG, JPEG, whatever PIL reads) as uint8 of `shape` (height, width, channels).

    Take the first frame of an animation, turn it upright by its EXIF orientation, then `conform` it.

    Args:
      crop: True: take images of any size, as `fit` does; False: refuse any other height and width.
      gain: factor on the stored pixels before resizing, for sets that store white as less than 255.

    Raises:
      Unreadable: it is no image, is truncated, or has another size without `crop`.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if crop:
                _draft(image, shape)
            ImageOps.exif_transpose(image, in_place=True)
            return conform(image if gain == 1 else image.point(lambda value: value * gain), shape, crop)
    except Unreadable:
        raise
    except Exception as error:  # damaged files made PIL raise OSError, SyntaxError, struct.error, TypeError and more
        raise Unreadable(f"cannot be decoded ({type(error).__name__})") from error


def conform(image: Image.Image, shape: Shape, crop: bool) -> np.ndarray:
    """A PIL image as uint8 of `shape`: gray or RGB, transparent parts over white, 16 bits cut to 8.

    Args: as `decode`.

    Raises:
      Unreadable: the image has another size and `crop` is False, or 32-bit pixels of unknown range.
    """
    height, width, channels = shape
    if not crop and image.size != (width, height):
        raise Unreadable(f"is {image.height}x{image.width} and not {height}x{width}")
    if image.size == (width, height) and image.mode == MODES[channels] and "transparency" not in image.info:
        return pixels(image)  # saves three copies in sets of many small images
    return pixels(fit(_convert(image, MODES[channels]), shape))


def fit(image: Image.Image, shape: Shape) -> Image.Image:
    """The largest centred part of the image that has the aspect of `shape`, shrunk or enlarged to that size."""
    height, width, _ = shape
    scale = min(image.width / width, image.height / height)
    box_width, box_height = width * scale, height * scale
    # Begin at a whole pixel, so that a crop without resizing copies pixels and does not interpolate.
    left, top = (image.width - box_width) // 2, (image.height - box_height) // 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def pixels(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 [h, w, c]."""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def _draft(image: Image.Image, shape: Shape) -> None:
    """Let PIL decode a JPEG at 1/2, 1/4 or 1/8 of its size, stored upright or not.

    At least twice the wanted size remains: decoded at the wanted size itself, edges differ visibly.
    """
    scale = min(image.size) / (2 * max(shape[:2]))
    image.draft(MODES[shape[2]], (round(image.width / scale), round(image.height / scale)))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F"):
        raise Unreadable("has 32-bit pixels of unknown range")
    if image.mode.startswith("I;16"):  # PIL's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # else the colours under transparent parts would show
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)
