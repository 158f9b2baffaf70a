"""How images give a measurement, and the energy that a measurement gives images.

A forward operator A is a linear function of images [b, h, w, c]. Each operator below states ‖A‖², the largest
eigenvalue of AᵀA. Under a likelihood of weight w, chains with step size s are stable while s · w · ‖A‖² < 2. So the
product s · w, in (0, 1], says how strongly an observation binds, whatever the step size.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_jax import random
from ebm_jax.types import BadInput, Energies, EnergyFn, Images, PRNGKey, Scalar

Pixels = Float[Array, "b h w c"]
Measured = Float[Array, "b measured_h measured_w measured_c"]
Forward = Callable[[Pixels], Measured]


def identity(images: Pixels) -> Pixels:
    """The images themselves; ‖A‖² = 1."""
    return images


def gray(images: Pixels) -> Measured:
    """The mean of the channels, [b, h, w, 1]; ‖A‖² = 1/c. On one channel it is the identity."""
    return images.mean(3, keepdims=True)


def downsample(factor: int) -> Forward:
    """The mean of each block of factor x factor pixels, [b, h / factor, w / factor, c]; ‖A‖² = 1/factor².

    Raises:
      BadInput: `factor` is below 1; the operator raises it if `factor` does not divide height and width.
    """
    if factor < 1:
        raise BadInput(f"a downsampling factor of {factor}; give 1 or more")

    def forward(images: Pixels) -> Measured:
        b, h, w, c = images.shape
        if h % factor or w % factor:
            raise BadInput(f"the downsampling factor {factor} does not divide {h}x{w} pixels; give one that does")
        return images.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4))

    return forward


def blur(width: float) -> Forward:
    """A Gaussian blur of standard deviation `width` pixels, cut off at 4 · width, of the same shape; ‖A‖² = 1.

    Beyond its edges the image is mirrored (c b a | a b c), as often as needed. So A is symmetric, and keeps constants
    and the sum of the pixels.

    Raises:
      BadInput: `width` is not above 0.
    """
    if not width > 0:
        raise BadInput(f"a blur of {width} pixels; give a width above 0, or use identity")

    def forward(images: Pixels) -> Pixels:
        rows, columns = (jnp.asarray(_blur_matrix(size, width)) for size in images.shape[1:3])
        # Two matrices, because a convolution's gradient is slow inside a scan on a CPU
        return jnp.einsum("ij,bjkc,lk->bilc", rows, images, columns, precision="highest")

    return forward


def _blur_matrix(size: int, width: float) -> Float[np.ndarray, "size size"]:
    """Row i holds the weights of a line's `size` pixels in blurred pixel i."""
    offsets = np.arange(-np.ceil(4 * width), np.ceil(4 * width) + 1, dtype=np.int64)
    weights = np.exp(-0.5 * np.square(offsets / width))
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    for offset, weight in zip(offsets, weights, strict=True):
        seen = (np.arange(size) + offset) % (2 * size)
        np.add.at(matrix, (np.arange(size), np.minimum(seen, 2 * size - 1 - seen)), weight)
    return matrix.astype(np.float32)


def medians(images: Pixels) -> Pixels:
    """The median of the 3x3 pixels around each pixel, channel by channel; mirrored beyond the edges (b a b)."""
    h, w = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return jnp.median(jnp.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)]), axis=0)


def salt_and_pepper(key: PRNGKey, images: Pixels, share: float | Scalar) -> Pixels:
    """Turn each pixel white or black in all channels, each with probability `share` / 2, `share` in [0, 1]."""
    drawn = random.uniform(key, (*images.shape[:3], 1))
    return jnp.where(drawn < share, jnp.where(drawn < share / 2, 0.0, 1.0), images)


def gaussian_noise(key: PRNGKey, images: Images, std: float | Scalar) -> Images:
    """The images plus N(0, std²), not cut off at 0 and 1; so `gaussian_likelihood` is their exact law."""
    return images + std * random.normal(key, images.shape)


def gaussian_likelihood(forward: Forward, observed: Measured, weight: float | Scalar) -> EnergyFn:
    """L(x) = weight / 2 · |A x - observed|²: the observation has Gaussian noise of variance 1 / weight.

    Raises:
      BadInput: the likelihood raises it if A x and `observed` differ in shape.
    """

    def likelihood(images: Images) -> Energies:
        seen = forward(images)
        if seen.shape != observed.shape:
            raise BadInput(f"{observed.shape} was observed of images that give {seen.shape}; use the same operator")
        return 0.5 * weight * jnp.square(seen - observed).sum((1, 2, 3))

    return likelihood


def impulse_likelihood(observed: Pixels, weight: float | Scalar, width: float | Scalar) -> EnergyFn:
    """A likelihood for salt and pepper: pixels far from the observed ones hardly pull (Geman & McClure 1987).

        L(x) = weight / 2 · Σ d² / (1 + d² / width²)        d: distance of a pixel from the observed one

    Where d is far below `width`, it equals `gaussian_likelihood` of the same weight. Far above, its pull, weight · d /
    (1 + d² / width²)², fades as d⁻³. Ignoring all observed 0s and 1s would ignore the true ones too, most of the pixels
    of a drawing. A mixture of Gaussian and uniform noise would serve as well at temperature 1. But its width is sqrt(1
    / weight), far above the unit box at the small weights of a nearly noise-free chain.

    Its curvature is between -weight / 4 and weight. Its pull never exceeds 0.325 · weight · width. A chain that starts
    at a wrong pixel leaves it if the prior pulls harder; else start elsewhere, or take a smaller width.

    Raises:
      BadInput: the likelihood raises it if the images and `observed` differ in shape.
    """

    def likelihood(images: Images) -> Energies:
        if images.shape != observed.shape:
            raise BadInput(f"{observed.shape} was observed of images {images.shape}; give images of that shape")
        squares = jnp.square(images - observed).sum(3)
        return 0.5 * weight * (squares / (1.0 + squares / width**2)).sum((1, 2))

    return likelihood
