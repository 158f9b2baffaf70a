"""How a measurement arises from an image, and the energy that an image has given one.

Put such an energy and a model's into `energy.conjunction`, and a sampler draws images that are likely and explain the
measurement: the posterior, up to the temperature of the chain. A Langevin chain of step size s is stable where
s · weight · |A|² < 2, A being the measurement's linear map; s · weight is the share of the misfit that one step
removes, and a natural unit for it.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ebm_jax import draws
from ebm_jax.types import BadInput, EnergyFn, Images, PRNGKey

Forward = Callable[[Images], Images]


def blur(width: float) -> Forward:
    """A Gaussian blur of standard deviation `width` > 0 pixels; at the border the kernel is cut and normalised anew.

    Each axis is a product with a fixed matrix, whose gradient is as fast inside a scan as outside.
    """

    def blurred(images: Images) -> Images:
        rows, columns = (jnp.asarray(_smoother(size, width)) for size in images.shape[1:3])
        return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images)

    return blurred


def _smoother(size: int, width: float) -> Float[np.ndarray, "n n"]:
    places = np.arange(size)
    kernel = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)


def downsample(factor: int) -> Forward:
    """The means of `factor` x `factor` squares of pixels.

    Raises:
      BadInput: where it is called, if the factor does not divide height and width.
    """

    def smaller(images: Images) -> Images:
        b, h, w, c = images.shape
        if factor < 1 or h % factor or w % factor:
            raise BadInput(f"factor {factor} does not divide images of {h}x{w}; use a common divisor of both sides")
        return images.reshape(b, h // factor, factor, w // factor, factor, c).mean((2, 4))

    return smaller


def gray(images: Images) -> Images:
    """The mean over channels [b, h, w, 1]."""
    return images.mean(-1, keepdims=True)


def identity(images: Images) -> Images:
    """The image itself."""
    return images


def salt_and_pepper(key: PRNGKey, images: Images, share: float) -> Images:
    """Images of which a `share` in [0, 1] of the pixels, all channels alike, became 0 or 1, either as likely."""
    u = draws.uniform(key, (*images.shape[:-1], 1))
    return jnp.where(u < share / 2, 0.0, jnp.where(u < share, 1.0, images))


def gaussian_noise(key: PRNGKey, images: Images, std: float) -> Images:
    """Images with noise N(0, std²) on every value, clipped to [0, 1]."""
    return jnp.clip(images + std * draws.normal(key, images.shape), 0.0, 1.0)


def gaussian_likelihood(forward: Forward, observed: Images, weight: float) -> EnergyFn:
    """weight/2 · Σ (forward(x) - observed)² for each image: a measurement with Gaussian noise of variance 1/weight."""

    def energy_fn(images: Images):
        return 0.5 * weight * jnp.square(forward(images) - observed).sum((1, 2, 3))

    return energy_fn


def impulse_likelihood(observed: Images, weight: float, width: float = 0.1) -> EnergyFn:
    """weight/2 · Σ d² / (1 + d²/width²), d = x - observed: quadratic for small differences, constant for large ones.

    Geman and McClure's penalty: a pixel that salt or pepper hit stops pulling once the model disagrees by more than
    `width` > 0; where the model agrees, 0 and 1 are values like others.
    """

    def energy_fn(images: Images):
        squares = jnp.square(images - observed)
        return 0.5 * weight * (squares / (1.0 + squares / width**2)).sum((1, 2, 3))

    return energy_fn
