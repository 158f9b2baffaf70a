"""Random arrays that compile fast everywhere: `jax.random`'s own numbers, bit for bit."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Bool, Float

from ebm_jax.types import PRNGKey

Sizes = tuple[Any, ...]  # integers, or the symbolic sizes of jax.export


def normal(key: PRNGKey, shape: Sizes) -> Float[Array, "..."]:
    """`jax.random.normal(key, shape)`."""
    return _flat_on_cpu(jax.random.normal, key, shape)


def uniform(key: PRNGKey, shape: Sizes) -> Float[Array, "..."]:
    """`jax.random.uniform(key, shape)`, in [0, 1)."""
    return _flat_on_cpu(jax.random.uniform, key, shape)


def bernoulli(key: PRNGKey, probability: float, shape: Sizes) -> Bool[Array, "..."]:
    """`jax.random.bernoulli(key, probability, shape)`."""
    return _flat_on_cpu(lambda key, shape: jax.random.bernoulli(key, probability, shape), key, shape)


def _flat_on_cpu(draw: Callable[..., Array], key: PRNGKey, shape: Sizes) -> Array:
    """On a CPU in one dimension: LLVM unrolls the generator over small inner ones, and compiles it ten times longer.

    Elsewhere a reshape may cost a copy at every step of a chain.
    """

    def flat(key: PRNGKey) -> Array:
        return draw(key, (math.prod(shape),)).reshape(shape)

    return lax.platform_dependent(key, cpu=flat, default=partial(draw, shape=shape))
