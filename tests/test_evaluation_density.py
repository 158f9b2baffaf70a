"""Integrals over the box against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from scipy.special import erf

from configs import density2d
from ebm_jax import assemble, samplers
from ebm_jax.data.densities import DENSITIES
from ebm_jax.metrics.density import grid, grid_report

FLOAT32 = 1e-5  # energies and positions are rounded by 6e-8, relatively, and slopes are up to 100 a unit


def gaussian_energy(mean, std):
    return lambda x: 0.5 * jnp.square((x - jnp.asarray([mean], jnp.float32)) / std).sum(-1)


def gaussian_log_density(mean, std):
    return lambda x: -0.5 * np.square((x - mean) / std).sum(-1) - 2 * np.log(std) - np.log(2 * np.pi)


def truncated_mass(mean, std):
    """Mass in [0, 1] of exp(-(x - mean)² / 2 std²), in one dimension."""
    ends = [erf((end - mean) / (std * np.sqrt(2))) for end in (0.0, 1.0)]
    return np.sqrt(np.pi / 2) * std * (ends[1] - ends[0])


def energy_of(log_density, offset):
    """The energy of a density that only NumPy knows."""

    def energy_fn(x):
        shape = jax.ShapeDtypeStruct((x.shape[0],), jnp.float32)
        return jax.pure_callback(lambda x: (offset - log_density(np.asarray(x))).astype(np.float32), shape, x)

    return energy_fn


def test_grid_is_the_midpoints_of_equal_cells_with_the_second_coordinate_fastest():
    np.testing.assert_allclose(grid(2), [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
    np.testing.assert_allclose(grid(7).mean(0), 0.5)


def test_log_normaliser_of_a_gaussian_cut_off_by_the_box_is_that_of_the_error_function():
    # The midpoint rule's error is of second order: h²/24 of the slope at the border, less than 1e-5 here.
    mean, std = np.array([0.1, 0.7]), 0.3
    report = grid_report(gaussian_energy(mean, std), gaussian_log_density(mean, std), side=300)
    exact = np.log(truncated_mass(mean[0], std)) + np.log(truncated_mass(mean[1], std))
    assert abs(report.log_z - exact) < 1e-5


@pytest.mark.parametrize("side", [50, 131])
def test_divergence_of_two_gaussians_is_the_closed_form_at_either_side(side):
    # Both lie in the box to more than six standard deviations; 50 cells are twice the narrower one's 2/σ.
    (mean_p, std_p), (mean_q, std_q) = ([0.5, 0.45], 0.06), ([0.52, 0.5], 0.07)
    report = grid_report(gaussian_energy(mean_q, std_q), gaussian_log_density(mean_p, std_p), side=side)
    ratio = (std_p / std_q) ** 2
    shift = np.square(np.subtract(mean_p, mean_q)).sum() / std_q**2
    kl = ratio - 1 - np.log(ratio) + shift / 2
    entropy = 1 + np.log(2 * np.pi * std_p**2)
    assert abs(report.kl - kl) < FLOAT32
    assert abs(report.entropy - entropy) < FLOAT32
    assert abs(report.nll - (kl + entropy)) < FLOAT32
    assert abs(report.log_z - np.log(2 * np.pi * std_q**2)) < FLOAT32


@pytest.mark.parametrize("name", DENSITIES)
def test_a_model_that_is_the_law_of_the_data_has_no_divergence_and_the_entropy_as_its_likelihood(name):
    log_density = DENSITIES[name].log_density
    report = grid_report(energy_of(log_density, 3.0), log_density, side=100)
    assert abs(report.kl) < FLOAT32
    assert abs(report.nll - report.entropy) < FLOAT32
    assert abs(report.log_z + 3.0) < FLOAT32


def test_a_constant_energy_is_the_uniform_law_on_the_box():
    checkerboard = DENSITIES["checkerboard"].log_density
    report = grid_report(lambda x: jnp.full(x.shape[0], -2.5), checkerboard, side=40)
    assert abs(report.log_z - 2.5) < 1e-9
    assert abs(report.nll) < 1e-9  # the uniform density on the unit box is 1
    assert abs(report.entropy - np.log(8 * 0.2**2)) < 1e-9
    assert abs(report.kl + np.log(8 * 0.2**2)) < 1e-9


def test_an_additive_constant_moves_the_log_normaliser_only():
    energy_fn, log_density = gaussian_energy([0.4, 0.6], 0.2), DENSITIES["two_moons"].log_density
    plain = grid_report(energy_fn, log_density, side=60)
    moved = grid_report(lambda x: energy_fn(x) + 4.0, log_density, side=60)
    assert abs(moved.log_z - (plain.log_z - 4.0)) < FLOAT32
    assert abs(moved.kl - plain.kl) < FLOAT32
    assert abs(moved.nll - plain.nll) < FLOAT32


def test_a_log_density_known_up_to_a_constant_gives_the_same_report():
    energy_fn, log_density = gaussian_energy([0.4, 0.6], 0.2), DENSITIES["rings"].log_density
    plain = grid_report(energy_fn, log_density, side=60)
    np.testing.assert_allclose(grid_report(energy_fn, lambda x: log_density(x) + 7.0, side=60), plain, atol=1e-9)


def test_a_runs_report_is_of_the_law_of_its_chains_at_their_temperature():
    """The log-density is -U/T - log Z, so that of T = ¼ has four times the differences of that of T = 1."""
    config = density2d.get_config()
    params = assemble.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    hot, cold = (samplers.make_density_report(changed(config, chain__temperature=t))(params)[1] for t in (1.0, 0.25))
    assert hot.std() > 0.1
    np.testing.assert_allclose(cold - cold.mean(), 4 * (hot - hot.mean()), atol=1e-4)
    assert np.exp(cold).mean() == pytest.approx(1)
    quiet = changed(config, chain__temperature=0.0, chain__kernel="langevin")
    still = samplers.make_density_report(quiet)(params)[1]
    np.testing.assert_array_equal(still, hot)
