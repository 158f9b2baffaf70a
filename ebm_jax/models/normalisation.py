"""Normalisation of feature maps."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ebm_jax.models.convolution import Features

EPSILON = 1e-5


def group_norm(x: Features, gain: Float[Array, " c"], bias: Float[Array, " c"], groups: int) -> Features:
    """Each image's groups of channels at mean 0 and variance 1, times gain, plus bias (Wu & He 2018).

    Statistics are float32; the result has x's type.

    Args:
      groups: a divisor of the number of channels.
    """
    b, _, _, c = x.shape
    h = x.astype(jnp.float32).reshape(b, -1, groups, c // groups)
    mean = h.mean((1, 3), keepdims=True)
    variance = jnp.square(h).mean((1, 3), keepdims=True) - jnp.square(mean)
    normal = ((h - mean) * lax.rsqrt(variance + EPSILON)).reshape(x.shape)
    return (normal * gain.reshape(1, 1, 1, c) + bias.reshape(1, 1, 1, c)).astype(x.dtype)
