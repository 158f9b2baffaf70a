"""Exact evaluation of an energy on the unit box [0, 1]^2, where its normaliser can be integrated."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from ebm_jax import arguments
from ebm_jax.types import BadInput, EnergyFn

CHUNK = 16_384  # points at a time


class GridReport(NamedTuple):
    """Integrals over the box, in nats."""

    kl: float
    """KL(data || model) = nll - entropy."""
    nll: float
    """-E[log q] over the data's law, q = exp(-U) / Z."""
    entropy: float
    """-E[log p] of the data's law p: the least nll of any model."""
    log_z: float
    """log ∫ exp(-U(x)) dx."""


def grid(side: int) -> np.ndarray:
    """Midpoints float64 [side · side, 2] of the box's equal cells; the second coordinate runs fastest.

    Raises:
      BadInput: `side` is below 1.
    """
    arguments.check_whole("side", side, 1)
    axis = (np.arange(side) + 0.5) / side
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def grid_report(energy_fn: EnergyFn, log_density: Callable[[np.ndarray], np.ndarray], *, side: int) -> GridReport:
    """The energy of float32 points [b, 2] against the data's law, by the midpoint rule on side · side cells in float64.

    For a smooth density that vanishes at the border, the rule's relative error is exp(-2π² (σ·side)²), where σ is the
    standard deviation of the narrowest feature: nothing from side = 2/σ on. Otherwise the error is of second order in
    1/side, and of first order if the density jumps inside cells. Both laws are normalised on the grid, so the KL
    compares two laws on its cells. It is never negative and, up to that error, at most the KL of the two densities.

    Args:
      energy_fn: evaluated in float32, so an energy is off by 6e-8 of its size.
      log_density: maps points float64 [m, 2] to [m], up to a constant; -inf outside the support.
      side: number of cells along each side of the box, 1 or more.

    Raises:
      BadInput: `side` is below 1, or the energy gives another number of values than one for each point.
    """
    points = grid(side)
    return report_of_energies(grid_energies(energy_fn, points), log_density(points))


def grid_energies(energy_fn: EnergyFn, points: np.ndarray) -> np.ndarray:
    """Energies float64 [m] of points [m, 2], computed in float32 a chunk at a time.

    Raises:
      BadInput: the energy gives another number of values than one for each point.
    """
    compiled = jax.jit(energy_fn)
    chunks = np.array_split(points, -(-len(points) // CHUNK))
    found = [np.asarray(compiled(jnp.asarray(chunk, jnp.float32)), np.float64) for chunk in chunks]
    if found[0].shape != (len(chunks[0]),):
        raise BadInput(f"the energy of {len(chunks[0])} points has the shape {found[0].shape}; return one for each")
    return np.concatenate(found)


def report_of_energies(energies: np.ndarray, log_density: np.ndarray) -> GridReport:
    """The report of energies and of the data's log-density, both [m], at the midpoints of m equal cells of the box."""
    log_cell = -np.log(len(energies))
    log_z = logsumexp(-energies) + log_cell
    log_p = log_density - (logsumexp(log_density) + log_cell)
    support = np.isfinite(log_p)
    p = np.exp(log_p[support] + log_cell)
    nll = p @ (energies[support] + log_z)
    entropy = -p @ log_p[support]
    return GridReport(float(nll - entropy), float(nll), float(entropy), float(log_z))
