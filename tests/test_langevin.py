from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equations

from ebm_jax.sampling import KERNELS
from ebm_jax.sampling.kernel import run, unbounded, unit_box
from ebm_jax.sampling.langevin import langevin

FLOAT32 = float(np.finfo(np.float32).eps)


def quadratic(stiffness=1.0):
    """U(x) = k |x|² / 2."""
    return lambda x: 0.5 * stiffness * jnp.square(x).sum(tuple(range(1, x.ndim)))


def flat(x):
    return 0.0 * x.sum(tuple(range(1, x.ndim)))


def sample(kernel, x, energy_fn, num_steps, seed=0):
    x, info = jax.jit(partial(run, kernel, energy_fn=energy_fn, num_steps=num_steps))(
        jax.random.key(seed), jnp.asarray(x)
    )
    return np.asarray(x), jax.tree.map(np.asarray, info)


@cache
def compiled_chain(stiffness, step_size, noise_scale):
    """(key, temperature) -> many chains long after their start at 0."""

    def chain(key, temperature):
        kernel = langevin(step_size, noise_scale, temperature=temperature, project=unbounded)
        return run(kernel, key, jnp.zeros((200_000, 1)), quadratic(stiffness), 25)[0]

    return jax.jit(chain)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("noise_scale", [None, 0.4])
def test_stationary_variance_is_that_of_the_discretised_equation(noise_scale, temperature):
    s, k = 0.15, 2.0
    contraction = (1 - s * k) ** 2
    if noise_scale is None:  # x' = (1 - sk) x + sqrt(2sT) α, hence var = (1 - sk)² var + 2sT
        expected = 2 * s * temperature / (1 - contraction)
    else:  # x' = (1 - sk) (x + sqrt(T) σ α), hence var = (1 - sk)² (var + T σ²)
        expected = contraction * temperature * noise_scale**2 / (1 - contraction)
    x = np.asarray(compiled_chain(k, s, noise_scale)(jax.random.key(0), temperature), np.float64)
    standard_error = expected * np.sqrt(2 / x.size)
    assert abs(np.square(x).mean() - expected) < 5 * standard_error


def test_energy_is_reported_at_the_noised_point_where_the_untied_gradient_is_taken():
    s, sigma, num_chains, pixels = 0.5, 0.3, 20_000, 4
    kernel = langevin(s, sigma, project=unbounded)
    _, info = sample(kernel, jnp.zeros((num_chains, pixels)), quadratic(1 / s), 3)  # each descent ends at 0
    expected = 0.5 / s * sigma**2 * pixels  # σ² χ² with as many degrees of freedom as pixels
    standard_error = expected * np.sqrt(2 / pixels / num_chains)
    assert (np.abs(info.energy.mean(1, dtype=np.float64) - expected) < 5 * standard_error).all()


class Mixture:
    """A 1-D mixture of two normals, and its component moments through the posterior of the component."""

    weights, means, variances = np.array([0.3, 0.7]), np.array([-1.0, 1.2]), np.array([0.36, 0.64])

    def energy(self, x):
        exponents = -0.5 * jnp.square(x - self.means[None]) / self.variances[None]
        return -jax.nn.logsumexp(exponents, axis=1, b=(self.weights / np.sqrt(self.variances))[None])

    def contributions(self, x):
        """Per sample, what averages to the weights, the means and the variances under the mixture, in this order."""
        x = np.asarray(x, np.float64).reshape(-1, 1)
        density = self.weights / np.sqrt(self.variances) * np.exp(-0.5 * (x - self.means) ** 2 / self.variances)
        posterior = density / density.sum(1, keepdims=True)
        share = posterior / self.weights
        return np.concatenate([posterior, share * x, share * (x - self.means) ** 2], axis=1)

    def truth(self):
        return np.concatenate([self.weights, self.means, self.variances])

    def law_of_the_chain(self, step_size, num_steps):
        """Grid points and their probability after `num_steps` from 0: products of the exact transition density."""
        grid = np.linspace(-6, 6, 401)
        drift = np.asarray(jax.jit(jax.grad(lambda x: self.energy(x).sum()))(jnp.asarray(grid)[:, None]), np.float64)[
            :, 0
        ]
        means = grid - step_size * drift
        transition = np.exp(-0.25 * (grid[None] - means[:, None]) ** 2 / step_size)
        transition /= transition.sum(1, keepdims=True)
        return grid, np.linalg.matrix_power(transition, num_steps)[len(grid) // 2]


def test_tied_chain_recovers_the_weights_means_and_variances_of_a_mixture_to_first_order_in_its_step():
    mixture, step_size, num_steps, num_chains = Mixture(), 0.02, 600, 20_000
    grid, probability = mixture.law_of_the_chain(step_size, num_steps)
    law = probability @ mixture.contributions(grid)
    bias = np.abs(law - mixture.truth())
    assert (bias < step_size / mixture.variances.min()).all()  # relative; twice the bias of a single normal's variance

    x, _ = sample(langevin(step_size, project=unbounded), jnp.zeros((num_chains, 1)), mixture.energy, num_steps)
    values = mixture.contributions(x)
    standard_error = values.std(0) / np.sqrt(num_chains)
    assert (np.abs(values.mean(0) - law) < 5 * standard_error).all()
    assert (np.abs(values.mean(0) - mixture.truth()) < 5 * standard_error + bias).all()


@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_temperature_zero_is_gradient_descent_exactly(noise_scale):
    x0, s, k = np.arange(-8.0, 8.0, dtype=np.float32).reshape(4, 4), 0.5, 0.5
    kernel = langevin(s, noise_scale, temperature=0.0, project=unbounded)
    x, info = sample(kernel, x0, quadratic(k), 5)
    path = [x0 * (1 - s * k) ** step for step in range(6)]  # powers of 3/4 of small integers: exact in float32
    np.testing.assert_array_equal(x, path[-1])
    np.testing.assert_array_equal(info.energy, [0.5 * k * np.square(point).sum(1) for point in path[:-1]])
    norms = [k * np.linalg.norm(point, axis=1) for point in path[:-1]]
    np.testing.assert_allclose(info.grad_norm, norms, rtol=4 * FLOAT32)


@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_gradient_is_clipped_element_by_element_and_reported_unclipped(noise_scale):
    slopes = np.array([-8.0, -2.0, -0.25, 0.0, 0.5, 2.0, 16.0], np.float32)
    kernel = langevin(0.5, noise_scale, grad_clip=2.0, temperature=0.0, project=unbounded)
    x, info = sample(kernel, jnp.zeros((2, 7)), lambda x: x @ jnp.asarray(slopes), 1)
    np.testing.assert_array_equal(x, [[1.0, 1.0, 0.125, 0.0, -0.25, -1.0, -1.0]] * 2)
    np.testing.assert_allclose(info.grad_norm, np.linalg.norm(slopes), rtol=4 * FLOAT32)


@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_chains_stay_in_the_unit_box_and_reach_both_walls(noise_scale):
    x, _ = sample(langevin(0.1, noise_scale, project=unit_box), np.full((64, 16), 0.5, np.float32), flat, 20)
    assert x.min() == 0.0
    assert x.max() == 1.0
    assert ((x > 0) & (x < 1)).any()


def test_start_is_projected():
    start = jnp.array([[-3.0, 0.5, 4.0]])
    np.testing.assert_array_equal(langevin(0.5, project=unit_box).init(start, quadratic()).x, [[0.0, 0.5, 1.0]])
    _, info = sample(langevin(0.5, temperature=0.0, project=unit_box), start, quadratic(2.0), 1)
    assert info.energy[0, 0] == 0.5**2 + 1.0**2


@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_a_projection_of_the_caller_holds_after_every_step(noise_scale):
    def known_pixel(x):
        return x.at[:, 0].set(0.25)

    kernel = langevin(0.5, noise_scale, temperature=0.0, project=known_pixel)
    x, info = sample(kernel, np.zeros((3, 2), np.float32), lambda x: x @ jnp.array([1.0, 2.0]), 4)
    np.testing.assert_array_equal(x, [[0.25, -4.0]] * 3)
    np.testing.assert_array_equal(info.energy, [[0.25 - 2.0 * step] * 3 for step in range(4)])


def test_run_is_a_function_of_its_key_and_no_two_pixels_share_their_noise():
    kernel, start = langevin(0.1, project=unbounded), np.full((64, 4), 0.5, np.float32)
    runner = jax.jit(lambda key: run(kernel, key, jnp.asarray(start), quadratic(), 10))
    first, again, other = (runner(jax.random.key(seed)) for seed in (1, 1, 2))
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(np.unique(np.concatenate([first[0], other[0]]))) == 2 * start.size


def test_run_is_one_scan_in_which_the_energy_is_traced_once():
    calls = []

    def energy(x):
        calls.append(x)
        return quadratic()(x)

    program = jax.jit(lambda key, x: run(langevin(0.1, project=unit_box), key, x, energy, 50))
    start = jnp.zeros((4, 3))
    jaxpr = jax.make_jaxpr(program)(jax.random.key(0), start)
    loops = [equation.primitive.name for equation in equations(jaxpr)]
    assert (loops.count("scan"), loops.count("while")) == (1, 0)
    for seed in range(2):
        program(jax.random.key(seed), start + seed)
    assert len(calls) == 1


def test_vmap_over_keys_gives_the_chains_of_each_key():
    x, keys = jnp.full((4, 4), 0.5), jax.random.split(jax.random.key(0), 4)

    def chain(key):
        return run(langevin(0.1, project=unit_box), key, x, quadratic(), 5)[0]

    one_by_one = np.array([jax.jit(chain)(key) for key in keys])
    assert np.ptp(one_by_one, axis=0).min() > 0
    with jax.debug_key_reuse(False):  # vmap transposes the scanned keys, which the checker calls a use
        at_once = jax.jit(jax.vmap(chain))(keys)
    np.testing.assert_allclose(at_once, one_by_one, rtol=0, atol=5 * FLOAT32)


def test_step_size_and_temperature_may_be_traced():
    sizes, num_steps = jnp.array([0.25, 0.5, 0.75]), 4

    def chain(s, temperature):
        kernel = langevin(s, temperature=temperature, project=unbounded)
        return run(kernel, jax.random.key(0), jnp.ones((1, 1)), quadratic(), num_steps)[0]

    ends = jax.jit(jax.vmap(chain))(sizes, jnp.zeros(3))
    np.testing.assert_allclose(ends.ravel(), (1 - np.asarray(sizes)) ** num_steps, rtol=4 * FLOAT32)


def test_chain_is_differentiable_in_a_parameter_of_the_energy():
    s, k, x0, num_steps = 0.125, 2.0, 3.0, 6

    def end(k):
        kernel = langevin(s, temperature=0.0, project=unbounded)
        return run(kernel, jax.random.key(0), jnp.full((1, 1), x0), quadratic(k), num_steps)[0].sum()

    expected = -num_steps * s * (1 - s * k) ** (num_steps - 1) * x0
    assert abs(jax.jit(jax.grad(end))(k) - expected) < 4 * num_steps * FLOAT32 * abs(expected)


@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_guesses_the_set_that_chains_stay_in(name):
    own = {"num_leaps": 3} if name == "hmc" else {}
    with pytest.raises(TypeError, match=r"required .*argument: 'project'"):
        KERNELS[name](0.1, **own)
    kernel, start = KERNELS[name](0.1, project=unbounded, **own), jnp.zeros((2_000, 1))

    def energy(x):  # of N(3, 1), far outside the box of pixels
        return 0.5 * jnp.square(x - 3.0).sum(1)

    x, _ = jax.jit(lambda key: run(kernel, key, start, energy, 100))(jax.random.key(0))
    # variance at most 1 / (1 - s/2) = 1.06; a step takes 0.9 of the way, one of HMC cos(0.3) = 0.955
    assert abs(x.mean() - 3.0) < 5 * np.sqrt(1.06 / 2_000) + 3 * 0.956**100
