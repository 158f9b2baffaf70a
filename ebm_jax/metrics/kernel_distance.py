"""The kernel distance (KID) of two sets of feature vectors; it is unbiased at any number of samples."""

import numpy as np

from ebm_jax.types import BadInput


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x·y / d + 1)³ of all pairs of rows of [n, d] and [m, d], float64 [n, m]."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD² between [n, d] and [m, d], n, m >= 2, under the cubic kernel; it may be negative.

    It is the mean of k over pairs of different rows of x, plus the same for y, minus twice the mean of k over pairs of
    a row of x and a row of y (Gretton 2012).
    """
    n, m = len(x), len(y)
    within_x, within_y, across = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    mean_x = (within_x.sum() - np.trace(within_x)) / (n * (n - 1))
    mean_y = (within_y.sum() - np.trace(within_y)) / (m * (m - 1))
    return float(mean_x + mean_y - 2.0 * across.mean())


def kernel_distance(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, *, num_subsets: int, subset_size: int
) -> tuple[float, float]:
    """KID (Bińkowski 2018): the mean MMD² of random subsets of either set, and its standard error over the subsets.

    Subsets of one set may share rows, and must if num_subsets · subset_size exceeds it; the error is then a little too
    small.

    Args:
      x: features [n, d] of any floating type; y: [m, d].
      num_subsets: at least 2.
      subset_size: rows drawn from either set for a subset, without replacement.

    Raises:
      BadInput: there are fewer than 2 subsets; a subset has fewer than 2 rows, or more than a set; or the sets have
        different numbers of features.
    """
    if x.shape[1] != y.shape[1]:
        raise BadInput(f"a kernel distance of {x.shape[1]} and {y.shape[1]} features; use one network for both sets")
    smallest = min(len(x), len(y))
    if not 2 <= subset_size <= smallest or num_subsets < 2:
        raise BadInput(
            f"a kernel distance over {num_subsets} subsets of {subset_size} of {smallest} samples; use at least 2 "
            f"subsets, of 2 to {smallest} samples"
        )
    found = [
        squared_discrepancy(
            *(np.asarray(rows[rng.choice(len(rows), subset_size, replace=False)], np.float64) for rows in (x, y))
        )
        for _ in range(num_subsets)
    ]
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(num_subsets))
