"""How far a classifier's probabilities can be trusted: accuracy, calibration error, likelihood of the labels.

On the host, in float64: the classes' energies may differ by less than a float32 softmax keeps.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15  # Guo et al. 2017, "On calibration of modern neural networks"
LOG_TEMPERATURES = (-16.0, 7.0)  # `fitted_temperature` looks between these; an untied chain's T is 1e-6
STEP = 0.5  # of its grid

Logits = Float[np.ndarray, "n k"]
Classes = Int[np.ndarray, " n"]


class Bins(NamedTuple):
    """Predictions by their confidence, in equal intervals ](i - 1)/m, i/m] of [0, 1]; NaN in empty bins."""

    count: Int[np.ndarray, " m"]
    confidence: Float[np.ndarray, " m"]
    """Mean probability of the predicted class."""
    accuracy: Float[np.ndarray, " m"]


class Report(NamedTuple):
    """The measures of n predictions; standard errors are for a mean over n independent images."""

    accuracy: float
    accuracy_error: float
    calibration_error: float
    """Σ count/n |accuracy - confidence| over the bins, in [0, 1]."""
    nll: float
    """Mean -log q(y | x), nats; a uniform guess has log k."""
    nll_error: float
    bins: Bins


def report(logits: Logits, labels: Classes) -> Report:
    """The report of logits, such as -U(x, y) with equally likely classes; the first of the largest is the prediction.

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
    """Count predictions in `number` bins, by confidence in [0, 1]; `right` [n] says whether each is right."""
    place = np.clip(np.ceil(confidence * number).astype(int) - 1, 0, number - 1)
    count = np.bincount(place, minlength=number)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, number) / count for values in (confidence, right.astype(np.float64))]
    return Bins(count, *means)


def share_error(right: np.ndarray) -> float:
    """The standard error sqrt(p (1 - p) / n) of p, the share of n images that are right."""
    share = right.mean()
    return float((share * (1.0 - share) / len(right)) ** 0.5)


def fitted_temperature(logits: Logits, labels: Classes) -> float:
    """The T > 0 that makes the labels likeliest under softmax(logits / T): temperature scaling (Guo et al. 2017).

    If the likelihood has no maximum, T is about the bound of the search that it rises to (`bound_reached`).

    An energy's scale is a convention of its training, so without a fitted T the probabilities of classes say little.
    Fit T on other images than you judge.
    """
    logits = np.asarray(logits, np.float64)

    def nll(log_temperature: float) -> float:
        log_q = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -log_q[np.arange(len(labels)), labels].mean()

    low, high = LOG_TEMPERATURES
    grid = np.arange(low, high + STEP, STEP)  # nll is flat in log T on one side, so a grid comes first
    best = grid[np.argmin([nll(point) for point in grid])]
    found = minimize_scalar(nll, bounds=(best - STEP, best + STEP), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]


def bound_reached(temperature: float) -> str:
    """Why a fitted temperature is only where the search ended, in words; empty for one inside `LOG_TEMPERATURES`."""
    low, high = LOG_TEMPERATURES
    if math.log(temperature) <= low + STEP:
        return f"the smaller T, the likelier the labels, down to the smallest T of the search, {math.exp(low):.2g}"
    if math.log(temperature) >= high - STEP:
        return f"the larger T, the likelier the labels, up to the largest T of the search, {math.exp(high):.2g}"
    return ""
