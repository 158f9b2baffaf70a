"""How well a classifier's probabilities are worth their name: accuracy, calibration error, likelihood of the labels.

On the host, in float64: energies of the classes may differ by less than a float32 softmax keeps.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15  # Guo et al. 2017, "On calibration of modern neural networks"
LOG_TEMPERATURES = (-16.0, 7.0)  # between which `fitted_temperature` looks: an untied chain's T is 1e-6

Logits = Float[np.ndarray, "n k"]
Classes = Int[np.ndarray, " n"]


class Bins(NamedTuple):
    """Predictions by their confidence, in equal intervals ](i - 1)/m, i/m] of [0, 1]; NaN where a bin is empty."""

    count: Int[np.ndarray, " m"]
    confidence: Float[np.ndarray, " m"]
    """Mean probability of the predicted class."""
    accuracy: Float[np.ndarray, " m"]


class Report(NamedTuple):
    """Of n predictions; standard errors are those of a mean of n independent images."""

    accuracy: float
    accuracy_error: float
    calibration_error: float
    """Σ count/n |accuracy - confidence| over the bins, in [0, 1]."""
    nll: float
    """Mean -log q(y | x), nats; log k is a guess."""
    nll_error: float
    bins: Bins


def report(logits: Logits, labels: Classes) -> Report:
    """The report of logits, such as -U(x, y), no class being likelier beforehand; the predicted class is the first
    of the largest.

    Raises:
      ValueError: there are no predictions.
    """
    if not len(logits):
        raise ValueError("0 predictions have no accuracy; give at least one")
    n, log_q = len(logits), log_softmax(np.asarray(logits, np.float64), axis=1)
    right, losses = logits.argmax(1) == labels, -log_q[np.arange(n), labels]
    found = bins(np.exp(log_q.max(1)), right)
    filled = found.count > 0
    gaps = found.count[filled] / n * np.abs(found.accuracy - found.confidence)[filled]
    return Report(
        float(right.mean()),
        share_error(right),
        float(gaps.sum()),
        float(losses.mean()),
        float(losses.std() / n**0.5),
        found,
    )


def bins(confidence: Float[np.ndarray, " n"], right: np.ndarray, number: int = BINS) -> Bins:
    """Predictions, each with its confidence in [0, 1] and whether it is right, in `number` bins."""
    place = np.clip(np.ceil(confidence * number).astype(int) - 1, 0, number - 1)
    count = np.bincount(place, minlength=number)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, number) / count for values in (confidence, right.astype(np.float64))]
    return Bins(count, *means)


def share_error(right: np.ndarray) -> float:
    """The standard error sqrt(p (1 - p) / n) of the share p of n images that are right."""
    share = right.mean()
    return float((share * (1.0 - share) / len(right)) ** 0.5)


def fitted_temperature(logits: Logits, labels: Classes) -> float:
    """The T > 0 that makes the labels likeliest under softmax(logits / T): temperature scaling (Guo et al. 2017).

    The scale of an energy is a convention of its training: without it the probabilities of classes say little. Fit it
    on other images than those that are judged.
    """
    logits = np.asarray(logits, np.float64)

    def nll(log_temperature: float) -> float:
        log_q = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -log_q[np.arange(len(labels)), labels].mean()

    grid = np.linspace(*LOG_TEMPERATURES, 47)  # as a function of log T it is flat on one side, hence first a grid
    best = grid[np.argmin([nll(point) for point in grid])]
    found = minimize_scalar(nll, bounds=(best - 0.5, best + 0.5), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]
