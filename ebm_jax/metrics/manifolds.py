"""How far two sets of feature vectors cover each other: precision and recall, density and coverage, by neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ebm_jax.types import BadInput

CHUNK = 1024  # rows of distances in memory at once


class Cover(NamedTuple):
    """How two sets cover each other.

    A set's neighbourhoods are balls, one around each vector: the radius is the distance to the vector's k-th nearest
    other vector of the set.
    """

    precision: float
    """Share of the samples in some neighbourhood of the reference (Kynkäänniemi 2019), 0 to 1."""
    recall: float
    """Share of the reference in some neighbourhood of the samples (Kynkäänniemi 2019), 0 to 1."""
    density: float
    """Mean number of the reference's neighbourhoods that a sample lies in, divided by k (Naeem 2020).

    Samples of the reference's law have 1 in expectation; more is possible.
    """
    coverage: float
    """Share of the reference's neighbourhoods that some sample lies in (Naeem 2020), 0 to 1."""


def cover(reference: np.ndarray, samples: np.ndarray, *, neighbours: int) -> Cover:
    """All four measures of features [n, d] and [m, d] of any floating type, by Euclidean distances in float64.

    Beside the sets, the memory holds `CHUNK` rows of distances; the time grows with (n + m)².

    Args:
      neighbours: k.

    Raises:
      BadInput: a set has no k-th nearest other vector, or the sets have different numbers of features.
    """
    if reference.shape[1] != samples.shape[1]:
        raise BadInput(f"sets of {reference.shape[1]} and {samples.shape[1]} features; use one network for both")
    smallest = min(len(reference), len(samples))
    if not 1 <= neighbours < smallest:
        raise BadInput(f"{neighbours} neighbours among {smallest} samples; use 1 to {smallest - 1}")
    reference, samples = np.asarray(reference, np.float64), np.asarray(samples, np.float64)
    of_reference, of_samples = (neighbour_distances(rows, neighbours) for rows in (reference, samples))
    balls_with_sample = np.zeros(len(samples), np.int64)  # of the reference, around each sample
    covered = in_samples = 0
    for rows, distances in distance_chunks(reference, samples):
        inside = distances <= of_reference[rows, None]
        balls_with_sample += inside.sum(0)
        covered += int(inside.any(1).sum())
        in_samples += int((distances <= of_samples).any(1).sum())
    return Cover(
        precision=float((balls_with_sample > 0).mean()),
        recall=in_samples / len(reference),
        density=float(balls_with_sample.mean() / neighbours),
        coverage=covered / len(reference),
    )


def neighbour_distances(features: np.ndarray, neighbours: int) -> np.ndarray:
    """The squared distance float64 [n] of each row to its k-th nearest other row."""
    found = np.empty(len(features))
    for rows, distances in distance_chunks(features, features):
        distances[np.arange(len(rows)), rows] = np.inf
        found[rows] = np.partition(distances, neighbours - 1, 1)[:, neighbours - 1]
    return found


def distance_chunks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields row numbers [c] of x [n, d], and these rows' squared distances [c, m] to all rows of y [m, d]."""
    squares = np.square(y).sum(1)
    for start in range(0, len(x), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(x)))
        distances = np.square(x[rows]).sum(1)[:, None] + squares - 2.0 * (x[rows] @ y.T)
        yield rows, np.maximum(distances, 0.0)
