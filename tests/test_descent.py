"""Descent with a look-ahead on quadratic energies, whose recursion and stationary law are known."""

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax.sampling import kernel
from ebm_jax.sampling.descent import descent
from ebm_jax.sampling.kernel import unbounded, unit_box

STIFFNESS = jnp.asarray([3.0, 0.5])


def bowl(x):
    return 0.5 * (STIFFNESS[None] * jnp.square(x)).sum(1)


def test_positions_follow_the_recursion_of_the_last_gradient_as_momentum():
    x = np.array([[1.0, -2.0]])
    found, info = kernel.run(
        descent(0.1, project=unbounded, look_ahead=0.3), jax.random.key(0), jnp.asarray(x, jnp.float32), bowl, 5
    )
    grad = np.zeros_like(x)
    for step in range(5):
        grad = np.asarray(STIFFNESS) * (x - 0.1 * 0.3 * grad)
        np.testing.assert_allclose(info.grad_norm[step, 0], np.linalg.norm(grad), rtol=1e-5)
        x = x - 0.1 * grad
    np.testing.assert_allclose(found, x, rtol=1e-5)


def test_a_chain_rests_bit_for_bit_once_its_gradient_is_small_and_others_go_on():
    start = jnp.asarray([[0.01, 0.0], [1.0, 1.0]])
    stop = 0.1  # root mean square of (3 x, 0.5 y): 0.021 and 2.15 at the start
    found, _ = kernel.run(descent(0.01, project=unbounded, stop=stop), jax.random.key(0), start, bowl, 20)
    np.testing.assert_array_equal(found[0], start[0])
    x, norms = np.array([1.0, 1.0]), []
    for _ in range(20):
        norms.append(np.linalg.norm(np.asarray(STIFFNESS) * x) / np.sqrt(2))
        x = x - 0.01 * np.asarray(STIFFNESS) * x
    assert min(norms) > stop
    np.testing.assert_allclose(found[1], x, rtol=1e-5)


def test_with_noise_the_variance_is_that_of_the_discretised_langevin_equation():
    step, temperature = 0.1, 0.5
    noisy = descent(step, project=unbounded, temperature=temperature)
    found, _ = kernel.run(noisy, jax.random.key(0), jnp.zeros((20_000, 2)), bowl, 150)
    shrink = 1 - step * np.asarray(STIFFNESS)
    expected = 2 * step * temperature * (1 - shrink**300) / (1 - shrink**2)
    np.testing.assert_allclose(np.asarray(found).var(0), expected, rtol=5 * np.sqrt(2 / 20_000))


def test_chains_stay_in_the_set_that_they_are_projected_on():
    found, _ = kernel.run(
        descent(10.0, project=unit_box), jax.random.key(0), jnp.full((1, 2), 7.0), lambda x: -x.sum(1), 3
    )
    np.testing.assert_array_equal(found, 1.0)
