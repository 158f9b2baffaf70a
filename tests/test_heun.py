"""Heun's method on a quadratic energy: the law after any number of steps has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax.sampling import kernel
from ebm_jax.sampling.heun import heun
from ebm_jax.sampling.kernel import unbounded, unit_box

CHAINS, STEP = 20_000, 0.4


def bowl(x):
    return 0.5 * jnp.square(x).sum(1)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_stationary_variance_is_that_of_the_scheme_which_is_near_the_temperature(temperature):
    x, info = kernel.run(
        heun(STEP, project=unbounded, temperature=temperature), jax.random.key(0), jnp.zeros((CHAINS, 1)), bowl, 60
    )
    shrink = 1.0 - STEP + STEP**2 / 2.0  # x <- shrink x + (1 - s / 2) n
    expected = 2.0 * STEP * temperature * (1.0 - STEP / 2.0) ** 2 / (1.0 - shrink**2)
    assert abs(float(x.var()) - expected) < 5 * expected * np.sqrt(2.0 / CHAINS)
    assert abs(expected / temperature - 1.0) < 0.06 < abs(1.0 / (1.0 - STEP / 2.0) - 1.0), "Langevin's is 25 % off"
    assert info.energy.shape == info.grad_norm.shape == (60, CHAINS)
    assert (info.acceptance == 1.0).all()


def test_without_noise_a_step_is_of_second_order():
    x = jnp.ones((1, 1))
    for step in (0.4, 0.1):
        moved, _ = kernel.run(heun(step, project=unbounded, temperature=0.0), jax.random.key(0), x, bowl, 1)
        np.testing.assert_allclose(moved, 1.0 - step + step**2 / 2.0, rtol=1e-6)


def test_chains_stay_in_their_set():
    x, _ = kernel.run(heun(STEP, project=unit_box), jax.random.key(0), jnp.full((100, 3), 2.0), bowl, 5)
    assert ((x >= 0.0) & (x <= 1.0)).all()
    assert (x == 0.0).any()
