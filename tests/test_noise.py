"""Hashed keys: their numbers have the law they claim, across places, steps and keys, and chains run on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from scipy import stats

import ebm_jax
from configs import density2d
from ebm_jax import chains, noise, random
from ebm_jax.sampling.kernel import hashing, run, unbounded
from ebm_jax.sampling.langevin import langevin

N = 1 << 19
ALIKE = [0, 1, 2, 1 << 16]  # seeds whose keys differ in a bit or two


def numbers(seed, n=N):
    return np.asarray(random.normal(noise.hashed(jax.random.key(seed)), (n,)), np.float64)


def within(value, error, what):
    assert abs(value) < 4.5 * error, f"{what}: {value} is {value / error:.1f} standard errors from 0"


@pytest.mark.parametrize("seed", ALIKE)
def test_normal_numbers_have_the_normal_law_and_neighbours_are_independent(seed):
    z = numbers(seed)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        within((z**power).mean() - moment, (variance / N) ** 0.5, f"moment {power}")
    for lag in (1, 2, 3, 8, 16, 1 << 10):
        within((z[:-lag] * z[lag:]).mean(), N**-0.5, f"lag {lag}")
        within(((z[:-lag] ** 2 - 1) * (z[lag:] ** 2 - 1)).mean(), 2 * N**-0.5, f"squares, lag {lag}")
    assert 4.5 < np.abs(z).max() < 5.9


def test_the_tails_have_their_mass():
    z = np.concatenate([numbers(seed) for seed in range(8)])
    for beyond in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(beyond) * len(z)
        within((np.abs(z) > beyond).sum() - expected, expected**0.5, f"beyond {beyond}")


def test_the_steps_of_a_chain_and_keys_that_look_alike_are_independent():
    """256 steps' noise at 4,096 places: no correlation of the same place, or of squares, at any lag up to 64."""
    keys = jax.random.split(noise.hashed(jax.random.key(7)), 256)
    steps = np.asarray(jax.vmap(lambda key: random.normal(key, (4096,)))(keys), np.float64)
    for lag in (*range(1, 9), 64):
        count = steps[lag:].size
        within((steps[lag:] * steps[:-lag]).mean(), count**-0.5, f"steps apart {lag}")
        within(((steps[lag:] ** 2 - 1) * (steps[:-lag] ** 2 - 1)).mean(), 2 * count**-0.5, f"squares, apart {lag}")
    columns = np.corrcoef(steps.T[:512])  # places over steps
    apart = columns[~np.eye(512, dtype=bool)]
    within(apart.mean(), 256**-0.5 / 512, "places")
    assert np.abs(apart).max() < 6 * 256**-0.5
    alike = [numbers(seed) for seed in range(5)]
    for one in range(5):
        for other in range(one):
            within((alike[one] * alike[other]).mean(), N**-0.5, f"seeds {one} and {other}")


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_every_bit_is_as_often_1_as_0_and_independent_of_the_others(width):
    with jax.enable_x64(True):
        words = np.asarray(jax.random.bits(noise.hashed(jax.random.key(0)), (N // 4,), f"uint{width}"))
    bits = (words[:, None] >> np.arange(width, dtype=words.dtype)) & words.dtype.type(1)
    signs = bits.astype(np.float64) - 0.5
    correlation = signs.T @ signs / (len(words) / 4)
    assert np.abs(signs.mean(0)).max() < 5 * 0.5 * len(words) ** -0.5
    assert np.abs(correlation - np.eye(width)).max() < 6 * len(words) ** -0.5
    assert np.abs((signs[1:] * signs[:-1]).mean(0)).max() < 5 * 0.25 * len(words) ** -0.5


def test_a_hashed_key_works_where_another_does():
    key = noise.hashed(jax.random.key(3))
    assert noise.is_hashed(key)
    assert not noise.is_hashed(jax.random.key(3))
    splits, threefrys = jax.random.split(key, 5), jax.random.split(jax.random.key(3), 5)
    np.testing.assert_array_equal(jax.random.key_data(splits), jax.random.key_data(threefrys))
    both = jax.random.fold_in(jax.random.clone(key), 9), jax.random.fold_in(jax.random.key(3), 9)
    np.testing.assert_array_equal(*map(jax.random.key_data, both))
    assert noise.is_hashed(splits[0])
    of_rbg = noise.hashed(jax.random.key(3, impl="rbg"))
    assert jax.random.uniform(of_rbg, (4, 3)).shape == (4, 3)
    half = random.normal(jax.random.clone(key), (3, 5), jnp.bfloat16)
    assert (half.shape, half.dtype) == ((3, 5), jnp.bfloat16)


def test_chains_of_hashed_keys_have_the_law_of_their_energy():
    """A normal law of standard deviation 1/2 in each of two coordinates, whose noise is a pair."""
    kernel = langevin(0.01, project=unbounded)
    start = jnp.zeros((20_000, 2))

    def energy_fn(x):
        return 2.0 * jnp.square(x).sum(1)

    x, _ = jax.jit(lambda key: run(kernel, key, start, energy_fn, 200))(ebm_jax.hashed(jax.random.key(5)))
    x = np.asarray(x, np.float64)
    variance = 2 * 0.01 / (1 - (1 - 4 * 0.01) ** 2)  # of the discretised chain
    assert stats.kstest(x.ravel() / variance**0.5, "norm").pvalue > 1e-4
    within((x[:, 0] * x[:, 1]).mean(), variance * len(x) ** -0.5, "coordinates")


def test_the_config_chooses_the_generator():
    """The same chain as that of hashed keys of its steps, and another than without."""
    configs = [
        changed(density2d.get_config(), chain__kernel="langevin", chain__generator=g) for g in ("hash", "threefry")
    ]
    x, key = jnp.full((6, 2), 0.5), jax.random.key(0)

    def step(kernel):
        return kernel.step(jax.random.clone(key), kernel.init(x, lambda x: x.sum(1)), lambda x: x.sum(1))[0].x

    hashed, plain = (step(chains.make_kernel(config, 1.0)) for config in configs)
    by_hand = step(hashing(chains.make_kernel(configs[1], 1.0)))
    np.testing.assert_array_equal(hashed, by_hand)
    assert (np.asarray(hashed) != np.asarray(plain)).all()
