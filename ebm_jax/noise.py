"""Keys whose random numbers are a hash of a counter: for the noise of chains that take less time than threefry.

A chain needs numbers without visible order, not a cipher's. A key of this kind works wherever one of `jax.random.key`
does; it splits as threefry does, so only the numbers that it gives are other ones.
"""

import math
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

from ebm_jax.types import PRNGKey

NAME = "ebm_jax_hash"
COSINE = (6.5277061, -25.966885, 60.167431, -85.450111, 64.939117, -19.739204, 1.0)
"""cos(2πt) for t in [-½, ½] as a polynomial of t², the highest power first: within 5e-7 in float32."""
Words = UInt32[Array, " n"]


def hashed(key: PRNGKey) -> PRNGKey:
    """The same key, of the generator of this module.

    Args:
      key: one typed PRNG key, `jax.random.key(SEED)`, of any generator.

    Examples:
      >>> import jax, ebm_jax
      >>> key = ebm_jax.hashed(jax.random.key(0))  # for `ebm_jax.run`, for example
      >>> jax.random.uniform(key, (2, 3)).shape
      (2, 3)
    """
    data = jax.random.key_data(key)
    two = data if data.shape == (2,) else jax.random.bits(key, (2,), jnp.uint32)  # rbg's have four words
    return jax.random.wrap_key_data(two, impl=GENERATOR)


def is_hashed(key: PRNGKey) -> bool:
    """Whether the key is one of `hashed`."""
    return str(jax.random.key_impl(key)) == str(GENERATOR)


def normal(key: PRNGKey, shape: tuple[Any, ...]) -> Float[Array, "..."]:
    """Independent standard normal numbers, float32, by Box and Muller's transform (1958); at most 5.9 in size.

    Two that stand side by side share a radius, from one word, and have angles a quarter of the circle apart, from
    another.
    """
    places = lax.iota(jnp.uint32, math.prod(shape))
    pair, odd = places >> 1, places & 1
    of_radius, of_turn = _words(jax.random.key_data(key), pair)
    radius = jnp.sqrt(-2.0 * jnp.log((of_radius >> 8).astype(jnp.int32) * 2.0**-24 + 2.0**-25))
    turned = of_turn - (odd << 30)
    turn = lax.bitcast_convert_type(turned, jnp.int32).astype(jnp.float32) * 2.0**-32
    cosine = jnp.full_like(turn, COSINE[0])
    for coefficient in COSINE[1:]:
        cosine = cosine * (turn * turn) + coefficient
    return (radius * cosine).reshape(shape)


def _words(data: UInt32[Array, " 2"], places: Words) -> tuple[Words, Words]:
    """Two words for each place; different places have different first and different second words.

    Threefry, once a key, keeps keys that look alike apart.
    """
    starts = jax.random.bits(_threefry(data), (4,), jnp.uint32)
    first, second = (_mixed(_mixed(places + starts[at]) ^ starts[at + 1]) for at in (0, 2))
    return first, second


def _mixed(word: Words) -> Words:
    """A bijection of words, in which each bit moves about half of them (Wellons 2018, "lowbias32")."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def _random_bits(data: UInt32[Array, " 2"], width: int, shape: tuple[int, ...]) -> Array:
    """Unsigned integers of 8, 16, 32 or 64 bits."""
    places = lax.iota(jnp.uint32, math.prod(shape))
    words, more = _words(data, places)
    if width == 64:
        words = (words.astype(jnp.uint64) << 32) | more.astype(jnp.uint64)
    return words.astype(f"uint{width}").reshape(shape)


def _threefry(data: UInt32[Array, " 2"]) -> PRNGKey:
    return jax.random.wrap_key_data(data, impl="threefry2x32")


GENERATOR = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
    split=lambda data, shape: jax.random.key_data(jax.random.split(_threefry(data), shape)),
    random_bits=_random_bits,
    fold_in=lambda data, number: jax.random.key_data(jax.random.fold_in(_threefry(data), number)),
    name=NAME,
    tag="hash",
)
