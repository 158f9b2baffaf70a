"""Decoding of an image of any size into pixels of the shape that a run trains on."""

import contextlib
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ebm_jax.types import Shape

MODES = {1: "L", 3: "RGB"}
# Pillow tells formats by their content, whatever a file is called. Those that are not here may start other programs
# (PostScript starts Ghostscript), or are no pictures of a data set.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
BY_NAME = {".tga": "TGA"}  # formats without a mark of their own: any bytes may look like one
LARGEST_IMAGE = 178_956_970  # pixels; Pillow's own limit, which its users can take away

Deep = Callable[[np.ndarray], np.ndarray]
"""From the pixels of a 16-bit image, uint16 [h, w], to uint8 [h, w]."""


class Unreadable(Exception):
    """An image that cannot be used; the message says why in a few words."""


class OutOfRange(Exception):
    """An image of more than 8 bits whose values are not those of its set; the message says which, and the cure."""


def high_byte(values: np.ndarray) -> np.ndarray:
    """Values of 16 bits as their first 8: white is 65,535."""
    return (values >> 8).astype(np.uint8)


@contextlib.contextmanager
def opened(encoded: bytes, ending: str = "") -> Iterator[Image.Image]:
    """The image of an encoded file, of `FORMATS` alone, before its pixels are decoded.

    Args:
      ending: of the file's name, such as ".tga".

    Raises:
      Unreadable: in the context too, whatever Pillow raises; or the image claims more than LARGEST_IMAGE pixels.
    """
    Image.init()
    formats = [name for name in (*FORMATS, *filter(None, [BY_NAME.get(ending)])) if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise Unreadable(f"claims {image.height}x{image.width} pixels, of which {LARGEST_IMAGE:,} are read")
            if image.format == "PPM" and image.mode == "I":  # Pillow has scaled its values to 16 bits
                yield Image.fromarray(np.asarray(image).astype(np.uint16))
            else:
                yield image
    except (Unreadable, OutOfRange):
        raise
    except Exception as error:  # damaged files made PIL raise OSError, SyntaxError, struct.error, TypeError and more
        raise Unreadable(f"cannot be decoded ({type(error).__name__})") from error


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a file has 16 bits a channel, of which Pillow reads the first 8 alone; ask before its pixels are read."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in ("PNG", "TIFF"):
        return False
    return not image.mode.startswith("I") and any(";16" in str(tile) for tile in image.tile)


def decode(
    encoded: bytes, shape: Shape, crop: bool, gain: int = 1, *, deep: Deep = high_byte, ending: str = ""
) -> np.ndarray:
    """The pixels of an encoded image (PNG, JPEG, all of `FORMATS`) as uint8 of `shape` (height, width, channels).

    Take the first frame of an animation, turn it upright by its EXIF orientation, then `conform` it.

    Args:
      crop: True: take images of any size, as `fit` does; False: refuse any other height and width.
      gain: factor on the stored pixels before resizing, for sets that store white as less than 255.
      deep: what becomes of 16-bit pixels.
      ending: as for `opened`.

    Raises:
      Unreadable: it is no image, is truncated, or has another size without `crop`.
      OutOfRange: as `deep` does; or another `deep` than the high byte is asked for, and Pillow reads no other.
    """
    with opened(encoded, ending) as image:
        if deep is not high_byte and is_deep_colour(image):
            raise OutOfRange(
                "has 16 bits a channel, of which only the high byte can be read; save it with 8 bits a channel, or use "
                "data.max_value=65535"
            )
        if crop:
            _draft(image, shape)
        ImageOps.exif_transpose(image, in_place=True)
        return conform(image if gain == 1 else image.point(lambda value: value * gain), shape, crop, deep)


def conform(image: Image.Image, shape: Shape, crop: bool, deep: Deep = high_byte) -> np.ndarray:
    """A PIL image as uint8 of `shape`: gray or RGB, transparent parts over white, 16 bits made 8 by `deep`.

    Args: as `decode`.

    Raises:
      Unreadable: the image has another size and `crop` is False, or 32-bit pixels of unknown range.
    """
    height, width, channels = shape
    if not crop and image.size != (width, height):
        raise Unreadable(
            f"is {image.height}x{image.width} and not {height}x{width} (data.crop=True takes images of any size)"
        )
    if image.size == (width, height) and image.mode == MODES[channels] and "transparency" not in image.info:
        return pixels(image)  # saves three copies in sets of many small images
    return pixels(fit(_convert(image, MODES[channels], deep), shape))


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


def _convert(image: Image.Image, mode: str, deep: Deep) -> Image.Image:
    if image.mode in ("I", "F"):
        raise Unreadable("has 32-bit pixels of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # PIL's own conversion clips at 255
        image = Image.fromarray(deep(np.asarray(image)))
    if image.has_transparency_data:  # else the colours under transparent parts would show
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)
