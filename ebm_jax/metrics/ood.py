"""Out-of-distribution detection: scores of images under an energy, and how well they tell the data from other images.

A score is high if the model takes the image for data. "Inside" is the data, unseen in training; "outside" is anything
else.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import rankdata

from ebm_jax.types import Energies, EnergyFn, Images

Inside = Float[np.ndarray, " m"]  # scores of images
Outside = Float[np.ndarray, " n"]


class Auroc(NamedTuple):
    """The area under the curve of true against false positives."""

    value: float
    """P(inside > outside) + P(inside = outside) / 2, in [0, 1]: 0.5 where the scores tell nothing."""
    standard_error: float
    """DeLong's, for inside and outside images drawn independently; 0 if the two ranges of scores do not overlap."""


def energy_and_gradient_norm(energy_fn: EnergyFn, images: Images) -> tuple[Energies, Energies]:
    """U(x) and the L2 norm of ∇U(x) over all values of an image, both [b]."""
    energies, pull_back = jax.vjp(energy_fn, images)
    (gradient,) = pull_back(jnp.ones_like(energies))
    return energies, jnp.sqrt(jnp.square(gradient).sum(range(1, images.ndim)))


def minimum_over_classes(energy_of: Callable[..., Energies], num_classes: int) -> EnergyFn:
    """The energy min_y U(x, y); its gradient is the gradient of the class of lowest energy.

    Args:
      energy_of: (images, labels) -> U(x, y), [b].
    """

    def energy_fn(images: Images) -> Energies:
        labels = jax.lax.stop_gradient(_of_classes(energy_of, images, num_classes)).argmin(0)
        return energy_of(images, labels)

    return energy_fn


def log_sum_exp_over_classes(energy_of: Callable[..., Energies], num_classes: int) -> EnergyFn:
    """The energy -log Σ_y exp(-U(x, y)) of the mixture of all classes, all with the same weight.

    For a gradient the network runs twice for each class, and keeps the layers of only one class in memory.

    Args:
      energy_of: (images, labels) -> U(x, y), [b].
    """
    remembered = jax.checkpoint(energy_of)  # pyright: ignore[reportPrivateImportUsage]
    return lambda images: -jax.nn.logsumexp(-_of_classes(remembered, images, num_classes), axis=0)


def _of_classes(energy_of: Callable[..., Energies], images: Images, num_classes: int) -> Float[Array, "k b"]:
    labels = jnp.tile(jnp.arange(num_classes, dtype=jnp.int32)[:, None], len(images))
    return jax.lax.map(lambda labels: energy_of(images, labels), labels)


def typicality(energies: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """-|U(x) - mean U of the reference|: high for images as likely as the training set's, not for the likeliest."""
    return -np.abs(np.asarray(energies, np.float64) - np.mean(reference, dtype=np.float64))


def auroc(inside: Inside, outside: Outside) -> Auroc:
    """How well scores rank inside [m] above outside [n], m and n at least 2; ties count half.

    From ranks, in O((m + n) log(m + n)). Source: DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or
    more correlated receiver operating characteristic curves", Biometrics 44, 1988; by ranks: Sun & Xu, IEEE Signal
    Processing Letters 21, 2014.
    """
    m, n = len(inside), len(outside)
    inside, outside = inside.astype(np.float64), outside.astype(np.float64)  # newer SciPy's ranks have the scores' type
    ranks = rankdata(np.concatenate([inside, outside]))
    above = (ranks[:m] - rankdata(inside)) / n  # share of outside scores below each inside one
    below = 1 - (ranks[m:] - rankdata(outside)) / m  # share of inside scores above each outside one
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    value = (ranks[:m].sum() - m * (m + 1) / 2) / (m * n)  # exact: the mean of `above` would be off by rounding
    return Auroc(float(value), float(np.sqrt(variance)))


def false_positive_rate(inside: Inside, outside: Outside, true_positive_rate: float) -> float:
    """The share of outside scores at or above the threshold that keeps `true_positive_rate`, in (0, 1], of inside."""
    kept = int(np.ceil(true_positive_rate * len(inside)))
    return float((outside >= np.sort(inside)[len(inside) - kept]).mean())


def bootstrap_standard_error(
    rng: np.random.Generator, statistic: Callable[[Inside, Outside], float], inside: Inside, outside: Outside, *, n: int
) -> float:
    """The standard deviation of a statistic over `n` >= 2 pairs of sets, redrawn with replacement from both sets."""
    drawn = [statistic(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(n)]
    return float(np.std(drawn, ddof=1))


def curve(inside: Inside, outside: Outside, points: int) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates for a picture: (0, 0), then `points` evenly spaced true ones, then (1, 1)."""
    true = np.linspace(0, 1, points + 1)
    false = [false_positive_rate(inside, outside, rate) for rate in true[1:]]
    return np.array([0, *false, 1]), np.array([*true, 1])
