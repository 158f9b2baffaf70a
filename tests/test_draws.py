"""Flat draws are `jax.random`'s own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax import random

SHAPES = [(), (5,), (4, 4, 3, 2), (2, 3, 5, 1)]


PAIRS = {
    "normal": (random.normal, jax.random.normal),
    "uniform": (random.uniform, jax.random.uniform),
    "bernoulli": (
        lambda key, shape: random.bernoulli(key, 0.3, shape),
        lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_those_of_jax_random_bit_for_bit(name, shape):
    ours, theirs = PAIRS[name]
    expected = theirs(jax.random.key(7), shape)
    for draw in (ours, jax.jit(ours, static_argnums=1)):
        actual = draw(jax.random.key(7), shape)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


def test_draws_of_many_keys_are_those_of_each():
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda key: random.normal(key, (2, 3)))(keys)
    np.testing.assert_array_equal(together, [jax.random.normal(key, (2, 3)) for key in keys])


def test_dequantised_pixels_are_uniform_within_their_own_bin():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(400, 0)
    values = np.asarray(random.dequantise(jax.random.key(0), jnp.asarray(images))) * 256
    fraction = (values - images).reshape(-1)
    assert fraction.min() >= 0
    assert fraction.max() <= 1
    standard_error = np.sqrt(1 / 12 / fraction.size)
    assert abs(fraction.mean() - 0.5) < 5 * standard_error
    np.testing.assert_array_equal(random.dequantise(jax.random.key(0), jnp.ones((2, 3)) * 0.3), jnp.ones((2, 3)) * 0.3)
