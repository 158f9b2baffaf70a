"""Annealed importance sampling: an energy's log-normaliser bounded from below and from above, with error bars.

Neal 2001, "Annealed importance sampling". Chains in the other direction give the bound from above: Grosse, Ghahramani &
Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", and Burda, Grosse & Salakhutdinov
2015, "Accurate and conservative estimates of MRF log-likelihood using reverse annealing".

    path         U_β = (1 - β) U₀ + β U,   0 = β_0 < ... < β_K = 1,   exp(-U₀) normalised and easy to draw from
    forward      x_0 ~ exp(-U₀);  x_k from x_{k-1} by a kernel of law exp(-U_{β_k})
                 log w = -Σ_k (β_k - β_{k-1}) (U - U₀)(x_{k-1}),   E w = Z
    reverse      the same with the path from 1 to 0 and x_0 ~ exp(-U)/Z,   E w = 1/Z

By Jensen's inequality the log of a mean of weights is too low on average. So forward log Z is a lower bound in
expectation, and reverse log Z, minus such a log, is an upper bound. Few chains exceed a bound only with the probability
of a large deviation: P(log Z_forward > log Z + c) < exp(-c). The upper bound holds only if the reverse chains start
exactly from the model's law.
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

GAIN = 1.0  # the pilot adds this to log step size for each unit of acceptance beyond the target
KernelOf = Callable[[Scalar], Kernel]
"""Step size -> a kernel with a Metropolis test; its law is exp(-U) on the base's support."""


class Path(NamedTuple):
    """The way from the base to the model, or back."""

    shares: Float[Array, " stops"]
    """β at each stop; the first is where the chains start."""
    step_sizes: Float[Array, " stops"]
    """The kernel's step size at each stop."""


def reverse(path: Path) -> Path:
    """The same path from its end to its start."""
    return Path(path.shares[::-1], path.step_sizes[::-1])


class Annealed(NamedTuple):
    """The result of chains along a path."""

    x: Images
    """The positions where the chains ended."""
    differences: Float[Array, "steps b"]
    """U - U₀ at every stop, before the step to the next."""
    acceptance: Float[Array, " steps"]
    """Mean over the chains, in [0, 1]."""


def anneal(key: PRNGKey, x: Images, base: Base, energy_fn: EnergyFn, kernel_of: KernelOf, path: Path) -> Annealed:
    """Run chains along a path, one move of the kernel a stop: a pure function, one `lax.scan`, to be jitted or sharded.

    Chains are independent, so the rows of `x` may lie on any devices.

    Args:
      x: draws [b, *event] from the law at the path's first stop: the base's for a forward path, the model's for a
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
    """What the pilot's chains tell about a path, at every stop but the first; the chains themselves are thrown away."""

    shares: Float[Array, " steps"]
    step_sizes: Float[Array, " steps"]
    """With these the kernel's acceptance was about the target."""
    spread: Float[Array, " steps"]
    """Standard deviation of U - U₀ over the chains."""


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
    """A forward run, from draws `x` of the base, that adapts the step size: log ε ← log ε + acceptance - target.

    Its weights are useless, because steps that depend on where the chains are leave no law as it is. `path_of` makes a
    fixed path from it, for other chains.

    Args:
      num_steps: stops after the first, at β = (k / num_steps)⁴: dense near the base, where a strong energy grips.
      acceptance: the target, in (0, 1).
      largest_step: the first step size, and the largest.
    """
    shares = jnp.linspace(0.0, 1.0, num_steps + 1, dtype=jnp.float32)[1:] ** 4

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

    A small step dβ adds the variance Var_β(U - U₀) dβ² to a log-weight. So all steps get the same product of spread and
    length. The path mixes in a tenth of equal steps in β, in case the pilot saw no spread.
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
    """log w = -Σ_k (β_k - β_{k-1}) (U - U₀), float64 [b], of chains along a path with `differences` [steps, b]."""
    return -np.diff(np.asarray(path.shares, np.float64)) @ np.asarray(differences, np.float64)


def log_z_along(path: Path, differences: np.ndarray) -> np.ndarray:
    """Forward log Z at every stop but the first, float64 [steps].

    For the uniform base, with energy 0, U_β = β U: these are the log-normalisers of the model at 1/β times its
    temperature.
    """
    steps = -np.diff(np.asarray(path.shares, np.float64))[:, None] * np.asarray(differences, np.float64)
    return np.logaddexp.reduce(np.cumsum(steps, axis=0), axis=1) - math.log(differences.shape[1])


class Mean(NamedTuple):
    """The log of a mean of weights."""

    log: float
    """In nats."""
    standard_error: float
    """Of `log`, to first order: the weights' relative spread over the square root of their number.

    If the effective sample size is near 1 it means nothing: the chains missed the weights that matter.
    """
    effective_sample_size: float
    """(Σ w)² / Σ w²: 1 to the number of chains."""


def mean_of_weights(log_weights: np.ndarray) -> Mean:
    """The mean of weights, from their logs [n].

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
    """The bounds of log Z from the log-weights of forward chains [n] and of reverse chains [m]."""
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
    """Bits for one pixel's level: -log₂ of the density on [0, 1]^d, divided by d, plus log₂(levels).

    A level's probability is the density's mean over its cell of width 1/levels, divided by `levels`. Under uniform
    dequantisation the mean of the log is at most the log of the mean, so these bits are an upper bound of the discrete
    ones (Theis, van den Oord & Bethge 2016).

    Args:
      log_likelihood: log of the density, in nats.
      dimensions: d.
      levels: 256 for 8-bit images, where the uniform law has 8 bits; 1 for continuous data, where bits may be negative.
    """
    return -log_likelihood / (dimensions * math.log(2)) + math.log2(levels)
