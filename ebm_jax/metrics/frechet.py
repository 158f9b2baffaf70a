"""The Fréchet distance of two sets of feature vectors, each treated as a Gaussian."""

from typing import NamedTuple

import numpy as np

from ebm_jax.metrics import moments
from ebm_jax.metrics.moments import Moments
from ebm_jax.types import BadInput


class Gaussian(NamedTuple):
    """A Gaussian as its mean and the root of its covariance; the root is computed once for many distances."""

    mean: np.ndarray
    """float64 [d]."""
    root: np.ndarray
    """float64 [d, d]: symmetric and not negative; root @ root is the covariance."""


def gaussian(found: Moments) -> Gaussian:
    """The Gaussian of these moments, with the unbiased covariance; it may be singular.

    Raises:
      BadInput: there are fewer than two vectors, which have no covariance; or a feature is not finite.
    """
    if found.count < 2:
        raise BadInput(f"{found.count} samples have no covariance; a Fréchet distance needs at least 2 of either set")
    if not np.isfinite(found.scatter).all():
        raise BadInput("features are not finite; look at the images and the weights that they were computed with")
    return Gaussian(found.mean, symmetric_root(found.scatter / (found.count - 1)))


def symmetric_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root [d, d] of a symmetric matrix; its eigenvalues may be negative by rounding alone."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) (Heusel 2017): the square of the 2-Wasserstein distance, never below 0.

    The trace of (Σa Σb)^½ is the sum of the singular values of Σa^½ Σb^½ (Olkin and Pukelsheim 1982). So this needs no
    root of an unsymmetric and perhaps singular matrix, and no ε on a diagonal.

    Raises:
      BadInput: the sets have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise BadInput(f"a Fréchet distance of {len(a.mean)} and {len(b.mean)} features; use one network for both sets")
    overlap = np.linalg.svd(a.root @ b.root, compute_uv=False).sum()
    spread = np.square(a.root).sum() + np.square(b.root).sum() - 2.0 * overlap
    return float(np.square(a.mean - b.mean).sum() + max(spread, 0.0))  # below 0 by rounding alone


def jackknifed_distance(groups: list[Moments], reference: Gaussian) -> tuple[float, float]:
    """The distance of the union of some disjoint groups from a reference, and its standard error over the groups.

    The error is the delete-one-group jackknife's, sqrt((g - 1)/g Σ (d_without - mean)²). It sees the sampling of the
    groups, and not of the reference. A distance's bias depends on the number of samples, so the distances of single
    groups would not measure the error.

    Raises:
      BadInput: as `gaussian` and `frechet_distance`; or there are fewer than two groups.
    """
    if len(groups) < 2:
        raise BadInput("a standard error needs at least 2 groups of samples; use more splits")
    whole = frechet_distance(gaussian(moments.union(groups)), reference)
    without = [
        frechet_distance(gaussian(moments.union(groups[:left_out] + groups[left_out + 1 :])), reference)
        for left_out in range(len(groups))
    ]
    share = (len(groups) - 1) / len(groups)
    return whole, float(np.sqrt(share * np.square(np.subtract(without, np.mean(without))).sum()))
