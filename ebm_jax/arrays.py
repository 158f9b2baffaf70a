"""What a person gives `fit` as images and labels: checked, and as a run's files have them."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ebm_jax.pixels import quantised
from ebm_jax.types import BadInput

CHANNELS = (1, 3)  # that an image can have
SLACK = 0.2  # beyond [0, 1], where interpolation overshoots


def pixels(images: Any, enough: int | None = None) -> np.ndarray:
    """uint8 [n, h, w, c] of [n, h, w] or [n, h, w, c], uint8 or floats in [0, 1], or of batches of these.

    Args:
      enough: no further batch is read once there are so many images; None: all are read.

    Raises:
      BadInput: it is no such array, or its values are none of pixels; with the cure.
    """
    return _levels(np.asarray(images)) if hasattr(images, "dtype") else _joined(images, enough)


def _levels(array: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, c] of one array of images."""
    shape = array.shape
    if _is_one(shape):
        side = round(shape[1] ** 0.5)
        rows = f", flat ones as images.reshape(-1, {side}, {side})" if shape == (shape[0], side * side) else ""
        raise BadInput(f"images of shape {shape} is one image; give many, [n, h, w, c]{rows}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in CHANNELS or 0 in shape:
        raise BadInput(f"images has the shape {shape}; an image is [h, w] or [h, w, c] with c 1 or 3: {_shaped(shape)}")
    if array.dtype == np.uint8:
        if array.max() == 1:
            raise BadInput("images is uint8 with values from 0 to 1, and white is 255; give images * np.uint8(255)")
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise BadInput(f"images is of {array.dtype}; give uint8, or floats in [0, 1]{_typed(array)}")
    if number := array.size - int(np.isfinite(array).sum()):
        raise BadInput(f"images has {number:,} values of {array.size:,} that are not finite; give finite values")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):
        raise BadInput(
            f"images has values from {low:g} to {high:g}, and pixels are in [0, 1]; give {_scaled(low, high)}"
        )
    return quantised(array)


def labels(given: Any, number: int) -> np.ndarray | None:
    """Labels of so many images as a run's files have them; None for None.

    Raises:
      BadInput: they are no classes or vectors, one for each image.
    """
    if given is None:
        return None
    array = np.asarray(given)
    kinds = {1: "iu", 2: "f"}  # of classes, of vectors
    if array.dtype.kind not in kinds.get(array.ndim, "") or len(array) != number:
        raise BadInput(
            f"labels is {array.dtype} {array.shape}; give integers [{number}], or floats [{number}, k], one an image"
        )
    if array.ndim == 1 and array.min() < 0:
        raise BadInput(f"labels has the class {array.min()}; classes are numbered from 0")
    return array


def _joined(given: Any, enough: int | None) -> np.ndarray:
    """The images of all batches, or of the first ones with `enough` images, in one array.

    Raises:
      BadInput: these are no batches of images, or of several shapes.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        folder = "; a folder of images is trained by the command: --config=folder" if isinstance(given, str) else ""
        raise BadInput(
            f"images is of the type {type(given).__name__}; give an array [n, h, w, c], or batches of it{folder}"
        )
    batches: list[np.ndarray] = []
    number = 0
    for batch in given:
        if not (hasattr(batch, "dtype") or hasattr(batch, "__array_interface__")):
            kind = type(batch).__name__
            raise BadInput(f"images gives batches of the type {kind}; give arrays [b, h, w, c], and labels=... apart")
        if _is_one(np.shape(batch)):
            shape = np.shape(batch)
            raise BadInput(f"images gives single images of shape {shape}, not batches; give np.stack(images)")
        batches.append(_levels(np.asarray(batch)))  # as bytes at once: floats take four times the memory
        number += len(batches[-1])
        if enough is not None and number >= enough:
            break
    shapes = {batch.shape[1:] for batch in batches}
    if len(shapes) != 1:
        raise BadInput(f"images has batches of {len(shapes)} shapes; give one shape, not none")
    return np.concatenate(batches)


def _is_one(shape: tuple[int, ...]) -> bool:
    """Whether it is the shape of one image."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS and shape[0] > CHANNELS[-1])


def _shaped(shape: tuple[int, ...]) -> str:
    """What to do about images of a wrong shape."""
    if shape[1:2] in ((1,), (3,)):
        return "channels come last: give images.transpose(0, 2, 3, 1)"
    if 0 in shape:
        return "give 1 or more"
    return "give images[..., :3], without alpha" if shape[3:] == (4,) else "give images[..., :1], or resize them"


def _typed(array: np.ndarray) -> str:
    """What to do about images that are neither uint8 nor floats."""
    if array.dtype == np.bool_:
        return ": images.astype(float)"
    is_bytes = array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255
    return ": images.astype(np.uint8)" if is_bytes else ""


def _scaled(low: float, high: float) -> str:
    """What to do about values from `low` to `high`."""
    if low >= -SLACK and high <= 1 + SLACK:
        return "images.clip(0, 1)"
    if low >= -1.0 and high <= 1.0:
        return "(images + 1) / 2"
    if low >= 0.0:
        return "images / 255" if high <= 255.0 else "images / images.max()"
    return "(images - images.min()) / (images.max() - images.min())"
