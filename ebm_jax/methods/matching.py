"""Equilibrium matching: Wang & Du 2025, arXiv 2510.02300. Descent of the energy itself leads from noise to data."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq

from ebm_jax import random
from ebm_jax.methods.method import Limits, Memory, Method, Model, Range, no_memory
from ebm_jax.methods.pairing import Pair
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import energy_and_grad
from ebm_jax.types import Batch, EnergyFn, Images, Labels, Metrics, PRNGKey, Scalar, Unlabelled

NEAR_DATA = 0.9  # share of data in an image from which on the error near the data counts
CLASS_SHARES = (0.25, 0.4)  # of data in the images by which classes are compared: there they differ most
GRID = 1000  # midpoints of an integral over γ; of a decay that is linear there its relative error is 3e-7


def equilibrium(
    base: Base,
    limits: Limits,
    unlabelled: Unlabelled | None,
    *,
    flat_until: float,
    start: float,
    strength: float,
    class_dropout: float,
) -> Method:
    """Match the energy's gradient to the way from data to noise, shorter and shorter towards the data; no chain.

        x_γ = γ x + (1 - γ) ε;   loss = mean over pixels of (σ ∇U(x_γ) - c(γ) (ε - x) / σ)²

    ε is drawn from the base, σ is the base's scale, and γ ~ U(0, 1); the energy does not see γ. So for the base N(½, ¼
    I) the loss is the paper's, for pixels in [-1, 1]. Since c(1) = 0, the energy is flat at the data: it orders images
    by how noisy they are, and is no log-density. Its minimum for each x is the mean of c(γ) (ε - x) given x_γ = x.

    Metrics and the other arguments: `matching`.

    Args:
      flat_until, start, strength: of `decay`.
    """
    length = partial(decay, flat_until=flat_until, start=start, strength=strength)
    return matching(base, limits, unlabelled, length=length, class_dropout=class_dropout)


def matching(
    base: Base,
    limits: Limits,
    unlabelled: Unlabelled | None,
    *,
    length: Callable[[Any], Any],
    class_dropout: float,
    pair: Pair | None = None,
    weight: Callable[[Any], Any] | None = None,
) -> Method:
    """The loss mean over images and pixels of w(γ) (σ ∇U(x_γ) - c(γ) (ε - x) / σ)², x_γ = γ x + (1 - γ) ε.

    Metrics, both with w = 1: `matching_error`, the loss divided by the loss of a constant energy; and
    `matching_error_near_data`, the same for γ > 0.9 alone. Only a tenth of a batch is there, and its targets may be
    short by chance, so the constant energy's loss is the expected one there: no batch divides by little, and the mean
    over batches is the error. A batch of n images has none there, and so the value 0, with the probability 0.9^n.

    Args:
      limits: from `healthy`.
      unlabelled: makes the labels that stand for no class; None: there are no classes, and nothing to drop.
      length: c, of an array of γ.
      class_dropout: the probability in [0, 1) that an image counts as one of no class, for guidance.
      pair: which ε goes with which x; None: any.
      weight: w; None: 1.
    """

    def loss(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> tuple[Scalar, tuple[Memory, Metrics]]:
        key_data, key_base, key_time, key_labels, key_dropout = jax.random.split(key, 5)
        x = random.dequantise(key_data, batch.images)
        if pair is None:
            noise = base.sample(key_base, len(x))
        else:
            key_base, key_pair = jax.random.split(key_base)
            noise = pair(key_pair, base.sample(key_base, len(x)), x)
        share, labels = random.uniform(key_time, (len(x),)), batch.labels
        if unlabelled is not None and class_dropout:
            dropped = random.bernoulli(key_labels, class_dropout, (len(x),)).reshape(-1, *(1,) * (labels.ndim - 1))
            labels = jnp.where(dropped, unlabelled(labels), labels)
        target, field = _target_and_field(base, length, model.energy(labels, key_dropout), x, noise, share)
        pixels = tuple(range(1, x.ndim))
        errors, zeros = jnp.square(field - target).mean(pixels), jnp.square(target).mean(pixels)
        near_data = jnp.where(share > NEAR_DATA, errors, 0.0).mean()
        expected = _squared_length_near_data(length) * jnp.square((noise - x) / base.scale).mean()
        metrics = {"matching_error": errors.mean() / zeros.mean(), "matching_error_near_data": near_data / expected}
        return (errors if weight is None else weight(share) * errors).mean(), (memory, metrics)

    return Method(no_memory, loss, base, limits)


def _squared_length_near_data(length: Callable[[Any], Any]) -> Scalar:
    """The mean over γ in [0, 1] of c(γ)² where the image is near the data, and of 0 elsewhere."""
    gammas = np.float32(1.0 - (1.0 - NEAR_DATA) * (np.arange(GRID) + 0.5) / GRID)  # float32 under x64 as well
    return (1.0 - NEAR_DATA) * jnp.square(length(gammas)).mean()


def _target_and_field(
    base: Base, length: Callable[[Any], Any], energy_fn: EnergyFn, x: Images, noise: Images, share: Float[Array, " b"]
) -> tuple[Images, Images]:
    """c(γ) (ε - x) / σ, and σ ∇U(x_γ) that is to match it."""
    data_share = share.reshape(-1, *(1,) * (x.ndim - 1))
    target = length(data_share) * (noise - x) / base.scale
    at = data_share * x + (1.0 - data_share) * noise
    return target, base.scale * energy_and_grad(energy_fn, at)[1]


def class_errors(
    base: Base,
    energy_of: Callable[[Labels], EnergyFn],
    num_classes: int,
    *,
    length: Callable[[Any], Any],
    draws: int,
    shares: Sequence[float] = CLASS_SHARES,
) -> Callable[[PRNGKey, Images], Float[Array, "b k"]]:
    """How badly the energy of each class matches the way from noise to the image: the least tells its class.

        E(x, y) = Σ over pixels of the mean over γ and ε of (σ ∇U(x_γ, y) - c(γ) (ε - x) / σ)²

    It is the loss of training, for every class under the same noise: a classifier made of a model of denoising (Li et
    al. 2023, arXiv 2303.16203). U(x, y) itself, flat at the data, hardly tells classes.

    Args:
      length: c, of an array of γ.
      draws: of noise at each share, 1 or more; each costs a gradient for every class.
      shares: γ in [0, 1).

    Returns:
      (key, images [b, *event]) -> [b, num_classes].
    """
    gammas = jnp.asarray([share for share in shares for _ in range(draws)])

    def of(key: PRNGKey, x: Images) -> Float[Array, "b k"]:
        classes = jnp.tile(jnp.arange(num_classes, dtype=jnp.int32)[:, None], len(x))

        def one(draw: tuple[PRNGKey, Scalar]) -> Float[Array, "k b"]:
            noise, share = base.sample(draw[0], len(x)).astype(x.dtype), jnp.broadcast_to(draw[1], len(x))

            def of_class(labels: Labels) -> Float[Array, " b"]:
                target, field = _target_and_field(base, length, energy_of(labels), x, noise, share)
                return jnp.square(field - target).sum(tuple(range(1, x.ndim)))

            return jax.lax.map(of_class, classes)

        return jax.lax.map(one, (jax.random.split(key, len(gammas)), gammas)).mean(0).T

    return of


def decay(share: Any, flat_until: float, start: float, strength: float) -> Any:
    """c(γ): the target's length at the share γ of data in the image; 0 at the data.

        c(γ) = strength · (start + (1 - start) γ / a)  below a = flat_until,   strength · (1 - γ) / (1 - a)  above

    start = 1 is the paper's truncated decay, and with a = 0 its linear one; other starts are its piecewise decay. With
    a = 1 and start = 1 it is constant.

    Args:
      share: γ in [0, 1], a number or an array.
      flat_until: a in [0, 1].
      start: c(0) / strength, above 0.
      strength: above 0; 4 in the paper.
    """
    rising = start + (1.0 - start) * share / flat_until if flat_until else share
    falling = (1.0 - share) / (1.0 - flat_until) if flat_until < 1.0 else 0.0
    return strength * ((share < flat_until) * rising + (share >= flat_until) * falling)


def shares(first: float, num_steps: int, step_size: float, **keys: float) -> Float[np.ndarray, " steps"]:
    """The share γ of data in an image after each step of the descent that starts at the share `first`.

    Along the way from noise ε to one image x the gradient is c(γ) (ε - x) in units of the base's scale, so a step s
    takes γ to γ + s c(γ).

    Args:
      step_size: s > 0 in units of the base's scale: of the energy's gradient by pixels, s / σ².
      keys: the arguments of `decay`.
    """
    return np.asarray(_shares(first, num_steps, step_size, keys), np.float32)


def _shares(first: float, num_steps: int, step_size: float, keys: dict[str, float]) -> list[float]:
    found, share = [], first
    for _ in range(num_steps):
        share = min(1.0, share + step_size * decay(share, **keys))
        found.append(share)
    return found


def step_between(first: float, last: float, num_steps: int, **keys: float) -> float:
    """The step size s of `shares` that leads from the share `first` to the share `last` in so many steps.

    Args:
      first, last: 0 <= first < last < 1.
      num_steps: 1 or more.
      keys: the arguments of `decay`.
    """
    in_one_step = 1.0 / min(decay(share, **keys) for share in (first, last))  # or more: beyond `last` by then
    return float(brentq(lambda step_size: _shares(first, num_steps, step_size, keys)[-1] - last, 0.0, in_one_step))  # pyright: ignore[reportArgumentType]  # it has no `full_output`


CONSTANT = {"flat_until": 1.0, "start": 1.0, "strength": 1.0}
"""The arguments of `decay` for a flow of speed 1."""


def healthy(*, error: float) -> tuple[Range, ...]:
    """The healthy region: the loss is at most `error` times the loss of a constant energy; inf means no limit."""
    return (Range("matching_error", 0.0, error),)
