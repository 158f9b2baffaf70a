"""Images that are no data, made from nothing or from the data; uint8, like every set that they are compared with."""

import numpy as np
from jaxtyping import UInt8

from ebm_jax.types import BadInput

Pixels = UInt8[np.ndarray, "n h w c"]


def uniform(rng: np.random.Generator, images: Pixels) -> Pixels:
    """As many images, every value drawn uniformly from 0..255."""
    return rng.integers(0, 256, images.shape, np.uint8)


def constant(rng: np.random.Generator, images: Pixels) -> Pixels:
    """As many images of one colour each, its channels drawn uniformly from 0..255."""
    n, _, _, c = images.shape
    return np.broadcast_to(rng.integers(0, 256, (n, 1, 1, c), np.uint8), images.shape).copy()


def interpolation(rng: np.random.Generator, images: Pixels) -> Pixels:
    """The mean of each image and another one, halves rounded up (paper: CIFAR-10 interpolations).

    Raises:
      BadInput: there are fewer than two images.
    """
    n = len(images)
    if n < 2:
        raise BadInput(f"the mean of two images needs two, and there is {n}; take more")
    others = images[(np.arange(n) + rng.integers(1, n, n)) % n]
    return ((images.astype(np.uint16) + others + 1) // 2).astype(np.uint8)


def rotation(rng: np.random.Generator, images: Pixels) -> Pixels:
    """Each image, turned by 90 degrees counter-clockwise.

    Raises:
      BadInput: the images are not square.
    """
    del rng
    if images.shape[1] != images.shape[2]:
        raise BadInput(f"images of {images.shape[1]}x{images.shape[2]} cannot be turned by 90 degrees; leave it out")
    return np.rot90(images, axes=(1, 2)).copy()
