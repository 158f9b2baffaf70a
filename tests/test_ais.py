"""Bounds of log Z against closed forms, exact integrals and a grid."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.sharding import NamedSharding
from scipy import stats
from scipy.special import logsumexp

import ebm_jax
import run
from ebm_jax.distributed import parallel
from ebm_jax.metrics import ais, density
from ebm_jax.models import networks
from ebm_jax.sampling.base import normal, uniform
from ebm_jax.sampling.hmc import hmc
from ebm_jax.sampling.kernel import unbounded, unit_box
from ebm_jax.sampling.mala import mala
from ebm_jax.types import BadInput

ON_THE_BOX = {
    "mala": partial(mala, project=unit_box),
    "hmc": lambda step_size: hmc(step_size, 3, project=unit_box),
}
ON_THE_LINE = {
    "mala": partial(mala, project=unbounded),
    "hmc": lambda step_size: hmc(step_size, 3, project=unbounded),
}
MEANS, STDS, OFFSET = np.array([0.5, -1.0, 0.2]), np.array([0.3, 1.0, 2.0]), 3.0
CENTRES, WIDTHS = np.array([[0.1, 0.75], [0.8, 0.3]]), np.array([0.08, 0.15])


def gaussian(x):
    """log Z = 3/2 log 2π + Σ log std - 3."""
    return 0.5 * jnp.square((x - jnp.asarray(MEANS[None], jnp.float32)) / STDS[None]).sum(1) + OFFSET


def mixture(x):
    """-log Σ_i exp(-|x - c_i|² / 2 s_i²) of two bumps; the box cuts off the first."""
    squares = jnp.square(x[:, None] - jnp.asarray(CENTRES[None], jnp.float32)).sum(2)
    return -jax.nn.logsumexp(-squares / (2 * jnp.asarray(WIDTHS[None], jnp.float32) ** 2), axis=1)


def mixture_log_z():
    """log Z and each bump's share of it. A bump's mass inside the box is a product of two normal integrals."""
    inside = stats.norm.cdf((1 - CENTRES) / WIDTHS[:, None]) - stats.norm.cdf(-CENTRES / WIDTHS[:, None])
    masses = 2 * np.pi * WIDTHS**2 * inside.prod(1)
    return np.log(masses.sum()), masses / masses.sum()


def mixture_draws(rng, n):
    """Exact draws: a bump by its mass, then a place in it from the normal law cut off at the box."""
    _, weights = mixture_log_z()
    bumps = rng.choice(2, n, p=weights)
    low, high = -CENTRES / WIDTHS[:, None], (1 - CENTRES) / WIDTHS[:, None]
    unit = stats.truncnorm.rvs(low[bumps], high[bumps], random_state=rng)
    return CENTRES[bumps] + WIDTHS[bumps, None] * unit


def piloted(energy_fn, base, kernel_of, *, steps, acceptance=0.65):
    """The path that a pilot of 100 chains finds."""
    key_start, key = jax.random.split(jax.random.key(1))
    with jax.debug_key_reuse(False):
        tried = partial(ais.pilot, base=base, energy_fn=energy_fn, kernel_of=kernel_of, num_steps=steps)
        pilot = jax.jit(partial(tried, acceptance=acceptance, largest_step=1.0))
        return ais.path_of(pilot(key, base.sample(key_start, 100)), steps)


def sandwich_of(energy_fn, base, kernel_of, exact, path):
    """The bounds by equally many chains either way; the reverse ones start at `exact` [chains, d]."""
    key_start, key_forth, key_back = jax.random.split(jax.random.key(0), 3)
    with jax.debug_key_reuse(False):
        anneal = jax.jit(partial(ais.anneal, base=base, energy_fn=energy_fn, kernel_of=kernel_of))
        forth = anneal(key_forth, base.sample(key_start, len(exact)), path=path)
        back = anneal(key_back, jnp.asarray(exact, jnp.float32), path=ais.reverse(path))
    weights = ais.log_weights(path, forth.differences), ais.log_weights(ais.reverse(path), back.differences)
    return ais.sandwich(*weights), weights, forth.acceptance


def assert_closes_on(bounds, log_z, *, gap):
    """Both bounds lie within five standard errors of the truth, and within `gap` nats of one another."""
    assert abs(bounds.lower - log_z) < 5 * bounds.lower_error
    assert abs(bounds.upper - log_z) < 5 * bounds.upper_error
    assert abs(bounds.gap) < 5 * bounds.gap_error < gap


@pytest.mark.parametrize("kernel", ["mala", pytest.param("hmc", marks=pytest.mark.slow)])
def test_bounds_of_a_gaussian_close_on_its_closed_form(kernel):
    exact = MEANS + STDS * np.random.default_rng(0).normal(size=(1_000, 3))
    base = normal((3,), 0.3, 1.5)
    path = piloted(gaussian, base, ON_THE_LINE[kernel], steps=100, acceptance=0.6)
    bounds, _, acceptance = sandwich_of(gaussian, base, ON_THE_LINE[kernel], exact, path)
    assert_closes_on(bounds, 1.5 * np.log(2 * np.pi) + np.log(STDS).sum() - OFFSET, gap=0.2)
    assert min(bounds.lower_size, bounds.upper_size) > 500
    assert abs(acceptance[20:].mean() - 0.6) < 0.1, "the pilot's step sizes are accepted as often as was asked for"


@pytest.mark.parametrize("kernel", ["hmc", pytest.param("mala", marks=pytest.mark.slow)])
def test_bounds_of_a_mixture_that_the_box_cuts_off_close_on_the_truncated_normal_integral(kernel):
    exact = mixture_draws(np.random.default_rng(0), 1_000)
    base = uniform((2,))
    path = piloted(mixture, base, ON_THE_BOX[kernel], steps=200)
    bounds, _, _ = sandwich_of(mixture, base, ON_THE_BOX[kernel], exact, path)
    assert_closes_on(bounds, mixture_log_z()[0], gap=0.4)


def test_weights_are_unbiased_however_short_the_path():
    """With eight steps single chains are nats off either way, yet their mean weights are Z and 1/Z."""
    log_z, chains = mixture_log_z()[0], 20_000
    exact = mixture_draws(np.random.default_rng(0), chains)
    path = ais.Path(jnp.linspace(0, 1, 9), jnp.full(9, 0.05))
    bounds, (forward, backward), _ = sandwich_of(mixture, uniform((2,)), ON_THE_BOX["hmc"], exact, path)
    assert forward.mean() < log_z - 0.1
    assert -backward.mean() > log_z + 0.1
    assert_closes_on(bounds, log_z, gap=0.4)


@pytest.mark.slow
def test_reverse_chains_that_start_in_one_mode_alone_give_a_bound_of_its_share():
    """Why the starts matter: a wide and a narrow bump have equal mass. Chains cross between them only where nearly all
    mass is in the wide one. Starts in the wide one miss up to log 2, and their error bar does not show it.
    """
    centres, widths = np.array([[0.3, 0.3], [0.9, 0.9]], np.float32), np.array([0.1, 0.02], np.float32)

    def two_bumps(x):
        squares = jnp.square(x[:, None] - centres[None]).sum(2)
        return -jax.nn.logsumexp(-squares / (2 * widths[None] ** 2) - 2 * jnp.log(widths)[None], axis=1)

    log_z = np.log(2 * 2 * np.pi)
    starts = centres[0] + widths[0] * np.random.default_rng(0).normal(size=(1_000, 2))
    base = uniform((2,))
    path = piloted(two_bumps, base, ON_THE_BOX["hmc"], steps=200)
    bounds, _, _ = sandwich_of(two_bumps, base, ON_THE_BOX["hmc"], np.clip(starts, 0, 1), path)
    assert abs(bounds.lower - log_z) < 5 * bounds.lower_error
    assert -np.log(2) - 0.1 < bounds.upper - log_z < -10 * bounds.upper_error


def grid_draws(rng, energy_fn, side, n):
    """Draws from a law on the box: a grid cell by its mass, then a uniform point of the cell."""
    points = density.grid(side)
    energies = density.grid_energies(energy_fn, points)
    mass = np.exp(energies.min() - energies)
    cells = rng.choice(len(points), n, p=mass / mass.sum())
    return points[cells] + (rng.random((n, 2)) - 0.5) / side


@pytest.mark.slow
def test_bounds_of_a_network_close_on_the_integral_over_a_grid():
    network = networks.Mlp(width=16, num_classes=1, spectral_norm=False, activation=jax.nn.swish)
    params = network.init(jax.random.key(3), jnp.zeros((1, 2)))
    points = density.grid(300)
    spread = np.ptp(density.grid_energies(lambda x: network.apply(params, x), points))

    def energy_fn(x):
        return 15.0 / spread * network.apply(params, x)  # far from flat: 15 nats

    energies = density.grid_energies(energy_fn, points)
    log_z = logsumexp(-energies) - np.log(len(points))
    exact = grid_draws(np.random.default_rng(0), energy_fn, 300, 500)
    path = ais.Path(jnp.linspace(0, 1, 101), jnp.full(101, 0.05))
    bounds, _, _ = sandwich_of(energy_fn, uniform((2,)), ON_THE_BOX["hmc"], exact, path)
    assert_closes_on(bounds, log_z, gap=0.4)


@pytest.mark.slow
def test_bounds_of_a_trained_model_close_on_the_integral_over_a_grid(tmp_path):
    words = [f"--config={ROOT / 'configs' / 'density2d.py'}", f"--workdir={tmp_path / 'run'}"]
    assert run.main(["run.py", *words, "--config.train.num_steps=1000", "--config.log.images_every=0"]) == 0
    config, params = ebm_jax.load(tmp_path / "run")
    apply = ebm_jax.make_energy_fn(config)

    def energy_fn(x):
        return apply(params, x)

    points = density.grid(400)
    log_z = logsumexp(-density.grid_energies(energy_fn, points)) - np.log(len(points))
    exact = grid_draws(np.random.default_rng(0), energy_fn, 400, 1_000)
    path = piloted(energy_fn, uniform((2,)), ON_THE_BOX["hmc"], steps=200)
    bounds, _, _ = sandwich_of(energy_fn, uniform((2,)), ON_THE_BOX["hmc"], exact, path)
    assert_closes_on(bounds, log_z, gap=0.3)


def test_bases_are_normalised():
    x = np.random.default_rng(0).normal(size=(20, 2, 3)).astype(np.float32)
    log_density = stats.norm(0.3, 1.5).logpdf(x).sum((1, 2))
    np.testing.assert_allclose(normal((2, 3), 0.3, 1.5).energy_fn(jnp.asarray(x)), -log_density, rtol=1e-5)
    np.testing.assert_array_equal(uniform((2, 3)).energy_fn(jnp.asarray(x)), 0.0)
    drawn = np.asarray(normal((2,), 0.3, 1.5).sample(jax.random.key(0), 10_000), np.float64)
    assert abs(drawn.mean() - 0.3) < 5 * 1.5 / np.sqrt(20_000)
    assert abs(drawn.std() - 1.5) < 5 * 1.5 / np.sqrt(40_000)


@pytest.mark.eight_devices
def test_eight_devices_and_vmap_give_the_weights_of_one():
    base, path = uniform((2,)), ais.Path(jnp.linspace(0, 1, 6), jnp.full(6, 0.01))
    x = np.asarray(base.sample(jax.random.key(0), 64))

    def differences(key, x):
        return ais.anneal(key, x, base, lambda x: 9.0 * jnp.square(x).sum(1), ON_THE_BOX["mala"], path).differences

    mesh = parallel.device_mesh()
    assert mesh.size == 8
    spread = jax.device_put(x, NamedSharding(mesh, parallel.SHARDED))
    with jax.debug_key_reuse(False):
        one, many = jax.jit(differences)(jax.random.key(1), x), jax.jit(differences)(jax.random.key(1), spread)
        mapped = jax.jit(jax.vmap(differences, in_axes=(None, 0)))(jax.random.key(1), np.stack([x, 1 - x]))
    assert len(many.sharding.device_set) == 8
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one, mapped[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("std", [0.3, 0.7])
def test_of_log_normal_weights_mean_error_and_effective_size_are_the_closed_forms(std):
    """log E w = μ + σ²/2; n E[w]² / E[w²] = n exp(-σ²); the error is the spread over repetitions."""
    draws = -400.0 + std * np.random.default_rng(0).normal(size=(2_000, 500))
    means = [ais.mean_of_weights(row) for row in draws]
    logs = np.array([mean.log for mean in means])
    assert abs(logs.mean() - (-400 + std**2 / 2)) < 5 * logs.std() / np.sqrt(2_000) + 2 / 500, "and a bias of order 1/n"
    sizes = np.array([mean.effective_sample_size for mean in means])
    np.testing.assert_allclose(sizes.mean(), 500 * np.exp(-(std**2)), rtol=0.04)
    np.testing.assert_allclose(np.mean([mean.standard_error for mean in means]), logs.std(), rtol=0.1)


def test_a_path_goes_through_the_same_spread_at_every_step():
    """If the spread is proportional to 1/β, nine tenths of the steps form a geometric series."""
    shares = jnp.geomspace(1e-4, 1.0, 2_000)
    found = ais.Pilot(shares, jnp.sqrt(shares), 1.0 / shares)
    path = ais.path_of(found, 400)
    stops = np.asarray(path.shares, np.float64)
    assert stops[0] == 0
    assert stops[-1] == 1
    middle = stops[(stops > 1e-3) & (stops < 0.03)]
    np.testing.assert_allclose(np.diff(np.log(middle)), np.log(1e4) / (0.9 * 400), rtol=0.2)
    np.testing.assert_allclose(path.step_sizes[1:], np.sqrt(np.maximum(stops[1:], 1e-4)), rtol=0.01)
    flat = ais.path_of(found._replace(spread=0 * shares), 10)
    np.testing.assert_allclose(flat.shares, np.linspace(0, 1, 11), atol=1e-6)


def test_bits_are_eight_for_the_uniform_law_and_those_of_the_discrete_law_where_the_density_is_flat_in_cells():
    assert ais.bits_per_dimension(0.0, 784, 256) == 8
    probabilities = np.random.default_rng(0).dirichlet(np.ones(256))
    log_likelihood = probabilities @ np.log(256 * probabilities)  # of the density in cells of width 1/256
    discrete = -probabilities @ np.log2(probabilities)
    assert ais.bits_per_dimension(log_likelihood, 1, 256) == pytest.approx(discrete)


def test_weights_that_tell_nothing_are_refused():
    with pytest.raises(BadInput, match="1 chain has no spread"):
        ais.mean_of_weights(np.zeros(1))
    with pytest.raises(BadInput, match="1 of 3 log-weights are not finite"):
        ais.mean_of_weights(np.array([0.0, np.nan, 1.0]))
