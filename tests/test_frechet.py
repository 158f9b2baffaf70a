"""Moments and the Fréchet distance against NumPy's two-pass formulas and closed forms."""

import numpy as np
import pytest
import scipy.linalg

from ebm_jax.metrics import moments
from ebm_jax.metrics.frechet import Gaussian, frechet_distance, gaussian, jackknifed_distance, symmetric_root
from ebm_jax.types import BadInput

ROUNDING = 1e-10  # relative, of sums and decompositions of some thousand float64 values


def rows(n, d, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


def of_law(mean, covariance):
    return Gaussian(np.asarray(mean, float), symmetric_root(np.asarray(covariance, float)))


@pytest.mark.parametrize("sizes", [(200,), (1, 199), (7, 0, 93, 100), (50, 50, 50, 50)])
def test_moments_of_batches_are_those_of_all_rows_at_once(sizes):
    x = rows(200, 6)
    gathered, start = moments.empty(6), 0
    for size in sizes:
        gathered, start = moments.update(gathered, x[start : start + size]), start + size
    assert gathered.count == 200
    np.testing.assert_allclose(gathered.mean, x.mean(0), rtol=ROUNDING)
    np.testing.assert_allclose(gathered.scatter / 199, np.cov(x, rowvar=False), rtol=ROUNDING, atol=ROUNDING)


def test_moments_of_merged_sets_are_those_of_their_union_and_an_empty_set_adds_nothing():
    x, y = rows(40, 3), rows(25, 3, seed=1)
    union = moments.union([moments.of(x), moments.empty(3), moments.of(y)])
    whole = moments.of(np.concatenate([x, y]))
    np.testing.assert_allclose(union.scatter, whole.scatter, rtol=ROUNDING)
    np.testing.assert_allclose(union.mean, whole.mean, rtol=ROUNDING)


def test_variance_survives_an_offset_that_a_sum_of_squares_would_not():
    x = np.random.default_rng(0).normal(size=(2000, 1))
    shifted = moments.empty(1)
    for part in np.split(x + 1e7, 20):
        shifted = moments.update(shifted, part)
    # 1e7 is rounded to 2e-9, and each deviation is off by that; squares of 1e14 would be rounded to 0.016
    assert abs(shifted.scatter.item() / 1999 - x.var(ddof=1)) < 1e-7


def test_features_of_float32_are_summed_in_float64():
    x = np.full((3_000, 1), 0.1, np.float32)
    x[0] = 1e5  # in float32 the sum would lose most of what follows
    assert abs(moments.of(x).mean.item() - x.astype(np.float64).mean()) < 1e-12


def test_distance_of_diagonal_gaussians_is_the_sum_over_coordinates():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    std_a, std_b = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.0])
    found = frechet_distance(of_law(mean_a, np.diag(std_a**2)), of_law(mean_b, np.diag(std_b**2)))
    assert found == pytest.approx(np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum(), rel=ROUNDING)


def test_distance_of_commuting_covariances_is_that_of_their_eigenvalues():
    basis, _ = np.linalg.qr(rows(5, 5))
    a, b = np.array([4.0, 1.0, 0.25, 9.0, 2.0]), np.array([1.0, 1.0, 4.0, 0.0, 3.0])
    found = frechet_distance(of_law(np.zeros(5), basis * a @ basis.T), of_law(np.ones(5), basis * b @ basis.T))
    # the zero eigenvalue comes out as 1e-15, and its root as 3e-8
    assert found == pytest.approx(5 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), abs=1e-6)


def test_distance_of_covariances_that_do_not_commute_is_that_of_scipys_matrix_root():
    a, b = moments.of(rows(300, 8)), moments.of(rows(400, 8, seed=1, offset=0.3))
    covariances = [found.scatter / (found.count - 1) for found in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    exact = np.square(a.mean - b.mean).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(exact, rel=1e-9)


def test_distance_of_a_set_to_itself_is_zero_also_where_its_covariance_is_singular():
    for n in (2, 5, 200):  # of 8 features
        law = gaussian(moments.of(rows(n, 8)))
        assert 0 <= frechet_distance(law, law) < ROUNDING * np.square(law.root).sum()


def test_distance_is_symmetric_and_shifting_one_set_adds_the_squared_shift():
    x, y, shift = rows(100, 4), rows(100, 4, seed=1), np.array([1.0, -2.0, 0.0, 3.0])
    a, b, moved = (gaussian(moments.of(points)) for points in (x, y, x - x.mean(0) + y.mean(0) + shift))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=ROUNDING)
    spread = frechet_distance(a, b) - np.square(a.mean - b.mean).sum()
    assert frechet_distance(moved, b) == pytest.approx(spread + 14.0, rel=ROUNDING)


def test_scaling_both_sets_scales_the_distance_by_the_square():
    a, b = rows(100, 4), rows(100, 4, seed=1)
    one, tenfold = (
        frechet_distance(gaussian(moments.of(scale * a)), gaussian(moments.of(scale * b))) for scale in (1, 10)
    )
    assert tenfold == pytest.approx(100 * one, rel=ROUNDING)


def test_jackknifed_error_is_the_deviation_over_repeated_sets():
    rng, reference = np.random.default_rng(0), of_law(np.zeros(3), np.eye(3))
    drawn = rng.normal(size=(100, 200, 3)) * 1.5 + 0.5  # 100 sets of 200
    found = [jackknifed_distance([moments.of(part) for part in np.split(points, 10)], reference) for points in drawn]
    distances, errors = np.transpose(found)
    # the deviation of 100 distances is known to 1 / sqrt(200), the mean of the jackknives better
    assert np.mean(errors) == pytest.approx(distances.std(ddof=1), rel=5 / np.sqrt(200))


def test_jackknifed_distance_is_that_of_the_whole_set_and_its_error_that_of_leaving_out_one_group():
    parts, reference = np.split(rows(60, 3), 6), of_law(np.zeros(3), np.eye(3))
    whole, *without = (
        frechet_distance(gaussian(moments.of(np.concatenate(kept))), reference)
        for kept in (parts, *(parts[:left_out] + parts[left_out + 1 :] for left_out in range(6)))
    )
    distance, error = jackknifed_distance([moments.of(part) for part in parts], reference)
    assert distance == pytest.approx(whole, rel=ROUNDING)
    # the standard error of the mean of Tukey's pseudo-values
    assert error == pytest.approx(np.std(6 * whole - 5 * np.array(without), ddof=1) / np.sqrt(6), rel=1e-8)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_for_a_covariance_are_refused_in_one_line(n):
    with pytest.raises(BadInput, match=rf"^{n} samples have no covariance; .* at least 2 .*$"):
        gaussian(moments.update(moments.empty(3), rows(n, 3)))


def test_sets_of_different_features_and_values_that_are_not_finite_are_refused_in_one_line():
    with pytest.raises(BadInput, match=r"^a Fréchet distance of 2 and 3 features.*$"):
        frechet_distance(of_law(np.zeros(2), np.eye(2)), of_law(np.zeros(3), np.eye(3)))
    with pytest.raises(BadInput, match=r"^features are not finite.*$"):
        gaussian(moments.of(np.array([[np.nan], [1.0]])))
    with pytest.raises(BadInput, match=r"^a standard error needs at least 2 groups.*$"):
        jackknifed_distance([moments.of(rows(5, 2))], of_law(np.zeros(2), np.eye(2)))
