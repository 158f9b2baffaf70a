"""The kernel distance against scikit-learn's kernel, sums over pairs, and a closed form of Gaussians."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel as sklearns_kernel

from ebm_jax.metrics.kernel_distance import kernel_distance, polynomial_kernel, squared_discrepancy
from ebm_jax.types import BadInput


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_kernel_is_scikit_learns_of_degree_three():
    x, y = normal(5, 7), normal(6, 7, seed=1)
    np.testing.assert_allclose(polynomial_kernel(x, y), sklearns_kernel(x, y, degree=3, coef0=1), rtol=1e-12)


def test_discrepancy_leaves_out_pairs_of_a_row_with_itself():
    x, y = normal(5, 3), normal(4, 3, seed=1)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([k(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]) for rows in (x, y)]
    across = np.mean([k(a, b) for a in x for b in y])
    assert squared_discrepancy(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-10)


def test_distance_is_unbiased_for_equal_and_for_shifted_gaussians():
    # For N(0, 1) and N(m, 1) in one dimension, (xy + 1)³ = Σ_j binom(3, j) x^j y^j: MMD² is the sum of
    # binom(3, j) (difference of j-th moments)²: 3 m² + 3 (m²)² + (m³ + 3m)².
    m, n = 0.5, 100
    exact = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    for mean, expected in ((0.0, 0.0), (m, exact)):
        found = [
            squared_discrepancy(normal(n, 1, seed=2 * seed), normal(n, 1, seed=2 * seed + 1) + mean)
            for seed in range(100)
        ]
        assert abs(np.mean(found) - expected) < 5 * np.std(found) / np.sqrt(len(found))


def test_distance_of_subsets_is_their_mean_and_its_standard_error():
    x, y = normal(60, 2).astype(np.float32), normal(50, 2, seed=1).astype(np.float32) + 0.3
    mean, error = kernel_distance(np.random.default_rng(3), x, y, num_subsets=7, subset_size=50)
    # a subset of 50 is all of y, so only the subsets of x differ
    rng, found = np.random.default_rng(3), []
    for _ in range(7):
        chosen = x[rng.choice(60, 50, replace=False)].astype(np.float64)
        rng.choice(50, 50, replace=False)
        found.append(squared_discrepancy(chosen, y.astype(np.float64)))
    assert mean == pytest.approx(np.mean(found), rel=1e-9)
    assert error == pytest.approx(np.std(found, ddof=1) / np.sqrt(7), rel=1e-6)


def test_subsets_larger_than_a_set_and_sets_of_different_features_are_refused_in_one_line():
    rng = np.random.default_rng(0)
    with pytest.raises(BadInput, match=r"^a kernel distance over 5 subsets of 9 of 8 samples; use .* 2 to 8 samples$"):
        kernel_distance(rng, normal(20, 2), normal(8, 2), num_subsets=5, subset_size=9)
    with pytest.raises(BadInput, match=r"^a kernel distance of 2 and 3 features.*$"):
        kernel_distance(rng, normal(20, 2), normal(20, 3), num_subsets=5, subset_size=9)
