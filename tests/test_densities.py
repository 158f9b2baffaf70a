"""The six densities are normalised, and their samples follow them."""

import numpy as np
import pytest
from scipy import integrate, stats

from ebm_jax.data.densities import DENSITIES
from ebm_jax.report.figures import density_figure

SIDE = 200
AXIS = (np.arange(SIDE) + 0.5) / SIDE
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)


@pytest.fixture(scope="module", params=DENSITIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def log_density(name):
    return DENSITIES[name].log_density(GRID)


def probabilities(log_density):
    return np.exp(log_density) / len(GRID)


def samples(name, n, seed=0):
    return DENSITIES[name].sample(np.random.default_rng(seed), n)


def test_density_integrates_to_one_so_that_less_than_a_millionth_of_the_mass_lies_outside_the_box(log_density):
    # The formulas are normalised on the plane. On 200 cells a side the midpoint rule is exact for features this wide.
    assert abs(probabilities(log_density).sum() - 1) < 1e-6


def test_samples_fall_into_coarse_cells_as_often_as_the_density_says(name, log_density):
    n, coarse, significance = 50_000, 20, 1e-3
    blocks = probabilities(log_density).reshape(coarse, SIDE // coarse, coarse, SIDE // coarse)
    expected = n * blocks.sum((1, 3)).ravel()
    observed, *_ = np.histogram2d(*samples(name, n).T, bins=coarse, range=[(0, 1), (0, 1)])
    often = expected >= 5
    rest = [expected[~often].sum()], [observed.ravel()[~often].sum()]
    expected = np.concatenate([expected[often], np.maximum(rest[0], 1e-9)])
    observed = np.concatenate([observed.ravel()[often], rest[1]])
    chi_square = (np.square(observed - expected) / expected).sum()
    assert stats.chi2.sf(chi_square, len(expected) - 1) > significance


def test_mean_log_density_of_samples_is_the_negative_entropy(name, log_density):
    p = probabilities(log_density)
    entropy = -p[p > 0] @ log_density[p > 0]
    at_samples = DENSITIES[name].log_density(samples(name, 10_000))
    standard_error = at_samples.std() / np.sqrt(len(at_samples))
    assert abs(at_samples.mean() + entropy) < 5 * standard_error + 1e-9  # a uniform law has no spread


def test_samples_are_float32_points_of_the_box_and_a_function_of_the_generator(name):
    points = samples(name, 1_000)
    assert points.dtype == np.float32
    assert points.shape == (1_000, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    np.testing.assert_array_equal(points, samples(name, 1_000))
    assert (points != samples(name, 1_000, seed=1)).any()


def test_density_is_zero_outside_the_box(name):
    outside = np.array([[-1e-3, 0.5], [0.5, 1.001], [2.0, 2.0]])
    assert (DENSITIES[name].log_density(outside) == -np.inf).all()


def moons_arc(t):
    """scikit-learn's first moon, in the box."""
    return np.array([0.25 * np.cos(np.pi * t) + 0.375, 0.25 * np.sin(np.pi * t) + 0.4375])


def spiral_arm(t):
    turn = np.sqrt(t)
    return np.array([0.5 + 0.36 * turn * np.cos(3 * np.pi * turn), 0.5 + 0.36 * turn * np.sin(3 * np.pi * turn)])


def log_of_noise_along(arc, point, std):
    """log ∫_0^1 N(point; arc(t), std² I) dt by adaptive quadrature in units of its peak, for the far tails."""

    def exponent(t):
        return -np.square(arc(t).T - point).sum(-1) / (2 * std**2)

    fine = np.linspace(0, 1, 20_001)
    at = np.argmax(exponent(fine))
    peak = exponent(fine)[at]
    integral, _ = integrate.quad(
        lambda t: np.exp(exponent(t) - peak), 0, 1, points=[fine[at]], epsabs=0, epsrel=1e-11, limit=2_000
    )
    return peak + np.log(integral / (2 * np.pi * std**2))


@pytest.mark.parametrize(("name", "arc", "std"), [("two_moons", moons_arc, 0.025), ("spirals", spiral_arm, 0.02)])
def test_density_along_arcs_is_that_of_adaptive_quadrature_even_in_the_corners(name, arc, std):
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.02, 0.98], [0.5, 0.5], [0.3, 0.6], [0.85, 0.52], [0.13, 0.45]])
    for point, ours in zip(points, DENSITIES[name].log_density(points), strict=True):
        # The second arc is the first one mirrored in the centre.
        both = [log_of_noise_along(arc, point, std), log_of_noise_along(arc, 1 - point, std)]
        assert abs(ours - (np.logaddexp(*both) - np.log(2))) < 1e-9


def test_rings_noise_averaged_over_a_circle_is_the_bessel_function_of_the_formula():
    # The periodic trapezoid rule on the circle is exact to float precision from a few hundred nodes on.
    radii, std, angles = (0.12, 0.24, 0.36), 0.02, 2 * np.pi * np.arange(2_000) / 2_000
    points = np.array([[0.5, 0.5], [0.51, 0.5], [0.62, 0.5], [0.3, 0.8], [0.0, 0.0]])
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    exact = 0.0
    for radius in radii:
        squares = np.square(points[:, None] - 0.5 - radius * circle).sum(-1)
        exact = exact + np.exp(-squares / (2 * std**2)).mean(1) / (3 * 2 * np.pi * std**2)
    np.testing.assert_allclose(DENSITIES["rings"].log_density(points), np.log(exact), rtol=1e-9)


@pytest.mark.parametrize(("name", "turns"), [("eight_gaussians", 8), ("pinwheel", 5), ("spirals", 2), ("rings", 7)])
def test_density_is_unchanged_by_its_symmetry_turn(name, turns):
    points = samples(name, 200).astype(np.float64)
    cos, sin = np.cos(2 * np.pi / turns), np.sin(2 * np.pi / turns)
    turned = 0.5 + (points - 0.5) @ np.array([[cos, sin], [-sin, cos]])
    density = DENSITIES[name].log_density
    np.testing.assert_allclose(density(turned), density(points), atol=1e-9)


def test_figure_is_four_panels_wide_and_shows_the_density_with_the_second_coordinate_upwards(tmp_path):
    from PIL import Image

    peak = -np.square(GRID - [0.25, 0.75]).sum(-1) / (2 * 0.03**2)
    peak -= np.log(np.exp(peak).mean())
    path = tmp_path / "made" / "figure.png"
    density_figure(path, peak, samples("rings", 50), peak, title="one peak")
    pixels = np.asarray(Image.open(path).convert("RGB"), float)
    height, width, _ = pixels.shape
    assert width > 2.5 * height
    for quarter in (0, 2):  # truth and model, without the bar below
        panel = pixels[: int(0.75 * height), quarter * width // 4 : (quarter + 1) * width // 4]
        yellow = np.argwhere((panel[:, :, 0] > 200) & (panel[:, :, 2] < 100))
        purple = np.argwhere((panel[:, :, 0] < 80) & (panel[:, :, 1] < 20) & (panel[:, :, 2] > 60))
        low, high = purple.min(0), purple.max(0)
        row, column = (yellow.mean(0) - low) / (high - low)
        assert abs(row - 0.25) < 0.03  # rows of an image run downwards
        assert abs(column - 0.25) < 0.03
