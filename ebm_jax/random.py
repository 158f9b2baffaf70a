"""Random arrays that compile fast everywhere: `jax.random`'s own numbers, bit for bit, in float32 whatever x64 says."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, UInt8

from ebm_jax import noise
from ebm_jax.types import Images, PRNGKey

Sizes = tuple[Any, ...]  # integers, or the symbolic sizes of jax.export


def normal(key: PRNGKey, shape: Sizes, dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """`jax.random.normal(key, shape, dtype)`; of a key of `hashed`, its own normal numbers."""
    if noise.is_hashed(key):
        return noise.normal(key, shape).astype(dtype)
    return _flat_on_cpu(lambda key, shape: jax.random.normal(key, shape, dtype), key, shape)


def uniform(key: PRNGKey, shape: Sizes, dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """`jax.random.uniform(key, shape, dtype)`, in [0, 1)."""
    return _flat_on_cpu(lambda key, shape: jax.random.uniform(key, shape, dtype), key, shape)


def bernoulli(key: PRNGKey, probability: float, shape: Sizes) -> Bool[Array, "..."]:
    """`jax.random.bernoulli(key, probability, shape)`, decided in float32."""
    chance = jnp.float32(probability)
    return _flat_on_cpu(lambda key, shape: jax.random.bernoulli(key, chance, shape), key, shape)


def dequantise(key: PRNGKey, images: UInt8[Array, "b *event"] | Images) -> Images:
    """uint8 pixels v as v/256 + U(0, 1/256) in [0, 1] (release data.py); float images as they are."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) + uniform(key, images.shape)) / 256.0


def _flat_on_cpu(draw: Callable[..., Array], key: PRNGKey, shape: Sizes) -> Array:
    """On a CPU draw in one dimension: LLVM unrolls the generator over small inner ones and compiles ten times longer.

    Elsewhere draw in `shape`: a reshape may cost a copy at every step of a chain.
    """

    def flat(key: PRNGKey) -> Array:
        return draw(key, (math.prod(shape),)).reshape(shape)

    return lax.platform_dependent(key, cpu=flat, default=partial(draw, shape=shape))
