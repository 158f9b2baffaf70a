"""Group normalisation of images, written so that its derivatives of both orders are cheap too."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ebm_jax.models.convolution import Features

EPSILON = 1e-5  # added to the variance


def group_norm(x: Features, gain: Float[Array, "c"], bias: Float[Array, "c"], groups: int) -> Features:
    """Group normalisation (Wu & He 2018): gain · (x - mean) / √(variance + EPSILON) + bias, in x's type.

    Mean and variance, E[x²] - E[x]², are those of an image's group of neighbouring channels over all pixels, in
    float32. They are taken of each channel first and of the group then. So images are only summed over their pixels,
    and scaled and shifted for each channel: no pass has another shape, and neither has any of a derivative.

    Raises:
      ValueError: `groups` does not divide the number of channels.
    """
    b, _, _, c = x.shape
    if groups < 1 or c % groups:
        raise ValueError(f"{groups} groups do not divide {c} channels; use a divisor of {c}")
    values = x.astype(jnp.float32)
    mean = _of_groups(values.mean((1, 2)), groups)
    variance = jnp.maximum(_of_groups(jnp.square(values).mean((1, 2)), groups) - jnp.square(mean), 0.0)
    mean, deviation = (
        jnp.broadcast_to(value, (b, groups, c // groups)).reshape(b, c)
        for value in (mean, lax.rsqrt(variance + EPSILON))
    )
    scale = gain[None] * deviation
    shift = bias[None] - mean * scale
    return (values * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)


def _of_groups(means: Float[Array, "b c"], groups: int) -> Float[Array, "b g 1"]:
    return means.reshape(means.shape[0], groups, -1).mean(2, keepdims=True)
