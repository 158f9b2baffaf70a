"""Hamiltonian Monte Carlo: long moves along the energy's own dynamics, reflected at the walls of the box."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ebm_jax import random
from ebm_jax.sampling.kernel import Info, Kernel, Point, Project, metropolis, norms, point, unit_box
from ebm_jax.types import BadInput, Energies, EnergyFn, Images, PRNGKey, Scalar

Reflect = Callable[[Images, Images], tuple[Images, Images]]
"""(positions after a drift, momenta) -> both after the bounces on the way. It is reversible and keeps volumes."""


def unit_box_walls(x: Images, momentum: Images) -> tuple[Images, Images]:
    """Fold coordinates back into [0, 1] at its walls, and reverse the momenta that bounce an odd number of times.

    Folding is exact in floating point, however far a coordinate went. Coordinates in the box stay as they are.
    """
    distance = jnp.abs(x)
    phase = distance - 2.0 * jnp.floor(0.5 * distance)  # in [0, 2): the period of the triangle wave
    odd = (x < 0.0) ^ (phase > 1.0)
    return jnp.where(phase > 1.0, 2.0 - phase, phase), jnp.where(odd, -momentum, momentum)


def no_walls(x: Images, momentum: Images) -> tuple[Images, Images]:
    """The reflection of a space without walls."""
    return x, momentum


class Phase(NamedTuple):
    """The chains' points in phase space."""

    at: Point
    momentum: Images


def leapfrog(
    start: Phase, energy_fn: EnergyFn, step_size: float | Scalar, num_leaps: int, reflect: Reflect = no_walls
) -> Phase:
    """`num_leaps` steps of size ε, each:  p ← p - ε/2 ∇U(x);  x ← x + ε p, reflected;  p ← p - ε/2 ∇U(x)."""

    def leap(phase: Phase, _: None) -> tuple[Phase, None]:
        momentum = phase.momentum - 0.5 * step_size * phase.at.grad
        x, momentum = reflect(phase.at.x + step_size * momentum, momentum)
        at = point(x, energy_fn)
        return Phase(at, momentum - 0.5 * step_size * at.grad), None

    return lax.scan(leap, start, length=num_leaps)[0]


def hmc(
    step_size: float | Scalar,
    num_leaps: int,
    *,
    project: Project,
    temperature: float | Scalar = 1.0,
    reflect: Reflect | None = None,
) -> Kernel:
    """Hamiltonian Monte Carlo (Duane et al. 1987) with law exp(-U/T) on the support.

        p ~ N(0, T I);   (y, p') = leapfrog(x, p);   H = U + |p|²/2
        x ← y with probability min(1, exp((H(x, p) - H(y, p')) / T))

    The support is the set that `project` leaves alone; a proposal outside it is rejected. On the unit box trajectories
    bounce at the walls (Neal 2011, "MCMC using Hamiltonian dynamics", section 5.5.1), so no proposal is lost there. The
    walls must not be narrower than the support.

    One leap is MALA's move with s = ε²/2.

    Args:
      step_size: ε > 0, time of one leap.
      num_leaps: L >= 1 leaps a step, one gradient each; a trajectory lasts the time ε L.
      project: moves the start into the support, such as `kernel.unit_box` for pixels or `kernel.unbounded`; afterwards
        it only tells whether a point is inside.
      temperature: T > 0.
      reflect: the walls where trajectories bounce; None: `unit_box_walls` if `project` is `kernel.unit_box`, else
        `no_walls`.

    Raises:
      BadInput: num_leaps is below 1.

    Examples:
      >>> import jax
      >>> from ebm_jax.sampling.kernel import run, unbounded
      >>> from ebm_jax.sampling.hmc import hmc
      >>> start = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> x, info = run(hmc(0.2, 5, project=unbounded), jax.random.key(1), start, lambda x: 2 * (x**2).sum(-1), 20)
      >>> print(f"{x.std():.1f}")  # of exp(-2 x²): 1/2
      0.5
    """
    if num_leaps < 1:
        raise BadInput(f"a trajectory of {num_leaps} leaps goes nowhere; give num_leaps >= 1")
    walls = reflect or (unit_box_walls if project is unit_box else no_walls)

    def kinetic(phase: Phase) -> Energies:
        return 0.5 * jnp.square(norms(phase.momentum))

    def init(x: Images, energy_fn: EnergyFn) -> Point:
        return point(project(x), energy_fn)

    def step(key: PRNGKey, state: Point, energy_fn: EnergyFn) -> tuple[Point, Info]:
        key_momentum, key_accept = jax.random.split(key)
        std = jnp.sqrt(jnp.asarray(temperature, state.x.dtype))
        start = Phase(state, std * random.normal(key_momentum, state.x.shape, state.x.dtype))
        end = leapfrog(start, energy_fn, step_size, num_leaps, walls)
        log_ratio = (state.energy - end.at.energy + kinetic(start) - kinetic(end)) / temperature
        return metropolis(key_accept, state, end.at, log_ratio, project)

    return Kernel(init, step)
