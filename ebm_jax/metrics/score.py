"""The Inception Score of class probabilities, from sums that do not grow with the number of images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import xlogy

from ebm_jax.types import BadInput


class ClassSums(NamedTuple):
    """Sums over images of their class probabilities."""

    count: int
    probabilities: np.ndarray
    """float64 [classes]: Σ p."""
    negative_entropy: float
    """Σ Σ_k p_k log p_k, nats."""
    predicted: np.ndarray
    """int64 [classes]: how many images have this class as their likeliest one."""


def empty(num_classes: int) -> ClassSums:
    """The sums of no image."""
    return ClassSums(0, np.zeros(num_classes), 0.0, np.zeros(num_classes, np.int64))


def of(probabilities: np.ndarray) -> ClassSums:
    """The sums of images with probabilities [n, classes]."""
    rows = np.asarray(probabilities, np.float64)
    return ClassSums(
        len(rows),
        rows.sum(0),
        float(xlogy(rows, rows).sum()),
        np.bincount(rows.argmax(1), minlength=rows.shape[1]),
    )


def update(sums: ClassSums, probabilities: np.ndarray) -> ClassSums:
    """The sums after adding more images, with probabilities [n, classes]."""
    return merge(sums, of(probabilities))


def merge(a: ClassSums, b: ClassSums) -> ClassSums:
    """The sums of the union of two disjoint sets."""
    return ClassSums(
        a.count + b.count,
        a.probabilities + b.probabilities,
        a.negative_entropy + b.negative_entropy,
        a.predicted + b.predicted,
    )


def inception_score(sums: ClassSums) -> float:
    """exp of the mean KL(p(y|x) || p(y)) over the images: from 1 to the number of classes (Salimans 2016).

    Raises:
      BadInput: there is no image.
    """
    if not sums.count:
        raise BadInput("an Inception Score of no images; give at least as many as there are splits")
    marginal = sums.probabilities / sums.count
    return float(np.exp(sums.negative_entropy / sums.count - xlogy(marginal, marginal).sum()))


def score_over_splits(splits: Sequence[ClassSums]) -> tuple[float, float]:
    """The mean score of the splits, as in the paper, and its standard error, their deviation / sqrt(splits).

    The paper states the deviation itself. Smaller splits have lower scores.

    Raises:
      BadInput: there are fewer than two splits, or one is empty.
    """
    if len(splits) < 2:
        raise BadInput("a standard error needs at least 2 splits; use more")
    scores = [inception_score(split) for split in splits]
    return float(np.mean(scores)), float(np.std(scores, ddof=1) / np.sqrt(len(scores)))


def class_overlap(a: ClassSums, b: ClassSums) -> float:
    """How far two sets agree in how often each class is predicted: Σ_k min(share in a, share in b), from 0 to 1.

    It is 1 minus the total variation of the two laws. It is 1/K if one set has K equally frequent classes and the other
    has only one of them.

    Raises:
      BadInput: one of the sets is empty.
    """
    if not (a.count and b.count):
        raise BadInput("the classes of no images; give at least one of either set")
    return float(np.minimum(a.predicted / a.count, b.predicted / b.count).sum())
