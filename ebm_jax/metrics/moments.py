"""Mean and scatter of feature vectors in float64, gathered batch by batch in memory that does not grow."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Count, mean and scatter of a set of vectors: they give its covariance, and the moments of unions of sets."""

    count: int
    mean: np.ndarray
    """float64 [d]."""
    scatter: np.ndarray
    """float64 [d, d]: the sum of (x - mean)(x - mean)ᵀ."""


def empty(num_features: int) -> Moments:
    """The moments of no vector."""
    return Moments(0, np.zeros(num_features), np.zeros((num_features, num_features)))


def of(features: np.ndarray) -> Moments:
    """The moments of the rows of an array [n, d] of any floating type, n at least 1, summed in float64."""
    rows = np.asarray(features, np.float64)
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two sets (Chan, Golub and LeVeque 1979): no sum of squares that would cancel."""
    count = a.count + b.count
    if not count:
        return a
    shift = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), scatter)


def update(moments: Moments, features: np.ndarray) -> Moments:
    """The moments after adding the rows of [n, d]."""
    return merge(moments, of(features)) if len(features) else moments


def union(sets: Iterable[Moments]) -> Moments:
    """The moments of the union of one set or more."""
    return reduce(merge, sets)
