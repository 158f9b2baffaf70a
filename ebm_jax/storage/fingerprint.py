"""A number for each array of a state; any flipped bit changes it, because Orbax restores flipped bits silently."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt32


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves of a state by their paths, such as params/Dense_0/kernel, in the order of `jax.tree.leaves`."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def fingerprint(state: Any) -> dict[str, int]:
    """A number in 0..2³²-1 for each leaf, by its path, from the leaf's bits and their places; equal on any sharding."""
    named = named_leaves(state)
    numbers = jax.device_get(_fingerprints(list(named.values())))
    return {path: int(number) for path, number in zip(named, numbers, strict=True)}


@jax.jit
def _fingerprints(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    """Σ mix(bits xor mix(place)) modulo 2³²: exact in any order of summing; one changed value always changes it.

    A plain sum, or one with a factor for the place, would let two flipped sign bits cancel.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:  # XLA gives booleans no bits
        leaf = leaf.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)
    return jnp.sum(_mix(bits ^ _mix(lax.iota(jnp.uint32, bits.size))), dtype=jnp.uint32)


def _mix(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """A bijection of 32-bit integers that scatters neighbours (lowbias32: C. Wellons, "Hash prospector", 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
