"""Annealed importance sampling: an energy's log-normaliser bounded from below and from above, with error bars.

Neal 2001, "Annealed importance sampling"; the bound from above by chains in the other direction: Grosse, Ghahramani &
Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", and Burda, Grosse & Salakhutdinov
2015, "Accurate and conservative estimates of MRF log-likelihood using reverse annealing".

    path         U_β = (1 - β) U₀ + β U,   0 = β_0 < ... < β_K = 1,   exp(-U₀) normalised and easy to draw from
    forward      x_0 ~ exp(-U₀);  x_k from x_{k-1} by a kernel of law exp(-U_{β_k})
                 log w = -Σ_k (β_k - β_{k-1}) (U - U₀)(x_{k-1}),   E w = Z
    reverse      the same with the path from 1 to 0 and x_0 ~ exp(-U)/Z,   E w = 1/Z

By Jensen's inequality log of a mean of weights is too low on average: forward log Z is a lower bound in expectation,
and, being minus such a log, reverse log Z an upper one. With few chains either is exceeded with the probability of a
large deviation only: P(log Z_forward > log Z + c) < exp(-c). The upper bound holds for starts that follow the model's
law exactly, and for no others.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ebm_jax.models import energy
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import Kernel, run
from ebm_jax.types import BadInput, EnergyFn, Images, PRNGKey, Scalar

GAIN = 1.0  # of log step size for each unit of acceptance beyond the target, in the pilot
KernelOf = Callable[[Scalar], Kernel]
"""From a step size to a kernel whose law is exp(-U) on the support of the base: with a Metropolis test."""


class Path(NamedTuple):
    """The way from the base to the model, or back."""

    shares: Float[Array, " stops"]
    """β at each stop; the first is where the chains start."""
    step_sizes: Float[Array, " stops"]
    """Of the kernel at each stop."""


def reverse(path: Path) -> Path:
    """The way back."""
    return Path(path.shares[::-1], path.step_sizes[::-1])


class Annealed(NamedTuple):
    """What chains along a path give."""

    x: Images
    """Where they ended."""
    differences: Float[Array, "steps b"]
    """(U - U₀) at every stop before the step to the next."""
    acceptance: Float[Array, " steps"]
    """Mean over the chains, in [0, 1]."""


def anneal(key: PRNGKey, x: Images, base: Base, energy_fn: EnergyFn, kernel_of: KernelOf, path: Path) -> Annealed:
    """Chains along a path, one move of the kernel a stop: a pure function, one `lax.scan`, to be jitted or sharded.

    Chains do not know of each other, so that the rows of `x` may lie on any devices.

    Args:
      x: draws [b, *event] from the law at the path's first stop: of the base for a forward path, of the model for a
        reverse one.
    """

    def body(x, now):
        key, share, step_size = now
        difference = energy_fn(x) - base.energy_fn(x)
        x, info = run(kernel_of(step_size), key, x, energy.bridge(base.energy_fn, energy_fn, share), 1)
        return x, (difference, info.acceptance.mean())

    keys = jax.random.split(key, len(path.shares) - 1)
    x, (differences, acceptance) = lax.scan(body, x, (keys, path.shares[1:], path.step_sizes[1:]))
    return Annealed(x, differences, acceptance)


class Pilot(NamedTuple):
    """What chains that are thrown away tell about a path, at every stop but the first."""

    shares: Float[Array, " steps"]
    step_sizes: Float[Array, " steps"]
    """With which the kernel was accepted about as often as asked for."""
    spread: Float[Array, " steps"]
    """Standard deviation over the chains of U - U₀."""


def pilot(
    key: PRNGKey,
    x: Images,
    base: Base,
    energy_fn: EnergyFn,
    kernel_of: KernelOf,
    num_steps: int,
    *,
    acceptance: float,
    largest_step: float,
) -> Pilot:
    """A forward run from draws `x` of the base that adapts the step size: log ε ← log ε + acceptance - target.

    Its weights are of no use, for steps that depend on where the chains are leave no law as it is. `path_of` makes a
    fixed path of it, for other chains.

    Args:
      num_steps: stops after the first, at β = (k / num_steps)⁴: dense near the base, where a strong energy grips.
      acceptance: the target, in (0, 1).
      largest_step: where the step size starts, and what it never exceeds.
    """
    shares = jnp.linspace(0.0, 1.0, num_steps + 1)[1:] ** 4

    def body(carry, now):
        x, log_step = carry
        key, share = now
        bridged = energy.bridge(base.energy_fn, energy_fn, share)
        x, info = run(kernel_of(jnp.exp(log_step)), key, x, bridged, 1)
        moved = log_step + GAIN * (info.acceptance.mean() - acceptance)
        difference = energy_fn(x) - base.energy_fn(x)
        return (x, jnp.minimum(moved, math.log(largest_step))), (jnp.exp(log_step), difference.std())

    start = x, jnp.asarray(math.log(largest_step), jnp.float32)
    _, (step_sizes, spread) = lax.scan(body, start, (jax.random.split(key, num_steps), shares))
    return Pilot(shares, step_sizes, spread)


def path_of(found: Pilot, num_steps: int) -> Path:
    """The forward path of `num_steps` steps that spreads the weights least, as far as a pilot tells.

    The variance that a small step dβ adds to a log-weight is Var_β(U - U₀) dβ², so that all steps have the same product
    of spread and length. A tenth of each is that of equal steps, in case the pilot saw no spread.
    """
    shares = np.concatenate([[0.0], np.asarray(found.shares, np.float64)])
    spread = np.asarray(found.spread, np.float64)
    lengths = spread * np.diff(shares)
    covered = lengths / lengths.sum() if lengths.sum() > 0 else np.diff(shares)
    way = np.concatenate([[0.0], np.cumsum(0.9 * covered + 0.1 * np.diff(shares))])
    stops = np.interp(np.linspace(0.0, 1.0, num_steps + 1), way / way[-1], shares)
    log_steps = np.interp(stops, shares[1:], np.log(np.asarray(found.step_sizes, np.float64)))
    return Path(jnp.asarray(stops, jnp.float32), jnp.exp(jnp.asarray(log_steps, jnp.float32)))


def log_weights(path: Path, differences: Array | np.ndarray) -> np.ndarray:
    """log w, float64 [b], of chains along a path with `differences` [steps, b]: -Σ_k (β_k - β_{k-1}) (U - U₀)."""
    return -np.diff(np.asarray(path.shares, np.float64)) @ np.asarray(differences, np.float64)


def log_z_along(path: Path, differences: np.ndarray) -> np.ndarray:
    """Forward log Z at every stop but the first, float64 [steps]: all models U_β = U at 1/β times its temperature.

    That is so for the uniform base, whose energy is 0.
    """
    steps = -np.diff(np.asarray(path.shares, np.float64))[:, None] * np.asarray(differences, np.float64)
    return np.logaddexp.reduce(np.cumsum(steps, axis=0), axis=1) - math.log(differences.shape[1])


class Mean(NamedTuple):
    """The log of a mean of weights."""

    log: float
    """In nats."""
    standard_error: float
    """Of `log`, to first order: the weights' relative spread over the square root of their number. Where the effective
    sample size is near 1 it says nothing: the weights that matter were not seen."""
    effective_sample_size: float
    """(Σ w)² / Σ w²: 1 to the number of chains."""


def mean_of_weights(log_weights: np.ndarray) -> Mean:
    """The mean of weights given by their logs [n].

    Raises:
      BadInput: there are fewer than two, or one is not finite.
    """
    n = len(log_weights)
    if n < 2:
        raise BadInput(f"{n} chain has no spread of weights; use 2 or more")
    if not np.isfinite(log_weights).all():
        raise BadInput(f"{np.sum(~np.isfinite(log_weights))} of {n} log-weights are not finite: the energy is not")
    log_sum = float(np.logaddexp.reduce(log_weights))
    size = math.exp(2 * log_sum - float(np.logaddexp.reduce(2 * log_weights)))
    relative_variance = max(n / size - 1.0, 0.0) * n / (n - 1)
    return Mean(log_sum - math.log(n), math.sqrt(relative_variance / n), size)


class Sandwich(NamedTuple):
    """log Z in nats between two bounds, each in expectation."""

    lower: float
    lower_error: float
    """Standard error of the lower bound."""
    lower_size: float
    """Effective sample size of the forward chains."""
    upper: float
    upper_error: float
    upper_size: float

    @property
    def gap(self) -> float:
        """Upper minus lower bound; below 0 by chance, or because the reverse chains did not start in the model."""
        return self.upper - self.lower

    @property
    def gap_error(self) -> float:
        """Standard error of the gap."""
        return math.hypot(self.lower_error, self.upper_error)


def sandwich(forward: np.ndarray, backward: np.ndarray) -> Sandwich:
    """The bounds of log Z by the log-weights [n] of forward chains and those [m] of reverse ones."""
    below, above = mean_of_weights(forward), mean_of_weights(backward)
    return Sandwich(
        below.log,
        below.standard_error,
        below.effective_sample_size,
        -above.log,
        above.standard_error,
        above.effective_sample_size,
    )


def bits_per_dimension(log_likelihood: float, dimensions: int, levels: int) -> float:
    """-log₂ of the density on [0, 1]^d, a dimension, plus log₂ of the levels of a pixel: bits for one pixel's level.

    A level's probability is the density's mean over its cell of width 1/levels, divided by `levels`; under uniform
    dequantisation the mean of the log is at most the log of that mean, so that these bits are an upper bound of the
    discrete ones (Theis, van den Oord & Bethge 2016). `levels` 256: 8-bit images, 8 bits for the uniform law; 1: data
    that is continuous, of which the bits may be negative.

    Args:
      log_likelihood: nats, of the density.
    """
    return -log_likelihood / (dimensions * math.log(2)) + math.log2(levels)
