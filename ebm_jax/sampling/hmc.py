"""Hamiltonian Monte Carlo: long moves along trajectories, and a test that makes the law exact at any step size."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ebm_jax import draws
from ebm_jax.sampling.kernel import (
    Info,
    Kernel,
    Project,
    accepted_or_old,
    energy_and_grad,
    metropolis,
    norms,
    unit_box,
)
from ebm_jax.types import Energies, EnergyFn, Images, PRNGKey, Scalar

Reflect = Callable[[Images, Images], tuple[Images, Images]]


class HmcState(NamedTuple):
    """The chains' positions [b, *event], with the energy and its gradient there."""

    x: Images
    energy: Energies
    grad: Images


def hmc(
    step_size: float | Scalar,
    num_leaps: int,
    *,
    temperature: float | Scalar = 1.0,
    project: Project = unit_box,
    reflect: Reflect | None = None,
) -> Kernel:
    """Hamiltonian Monte Carlo (Neal 2011, "MCMC using Hamiltonian dynamics"), with law exp(-U/T) on the support.

    A momentum p ~ N(0, T) is drawn, `num_leaps` leapfrog steps follow dx/dt = p, dp/dt = -∇U, and the end is accepted
    with probability min(1, exp(-(H' - H) / T)), H = U + p²/2:

        p ← p - ε/2 ∇U(x);   x, p ← reflect(x + ε p, p);   p ← p - ε/2 ∇U(x)

    On the unit box a trajectory bounces off the faces, which keeps it reversible and its volume: no move is lost, and
    the law is exp(-U/T) cut off at the faces. Any other support has its `project` and rejects what ends outside.

    Args:
      step_size: ε > 0, in units of x. One leap of ε moves as MALA does with s = ε²/2.
      num_leaps: leapfrog steps of one step, at least 1; each costs one gradient.
      temperature: T > 0.
      project: applied to the start; afterwards it only says what is inside.
      reflect: (x, p) -> (x, p) after each drift; None: `unit_box_walls` for `unit_box`, else `no_walls`.
    """
    bounce = reflect or (unit_box_walls if project is unit_box else no_walls)

    def init(x: Images, energy_fn: EnergyFn) -> HmcState:
        x = project(x)
        return HmcState(x, *energy_and_grad(energy_fn, x))

    def step(key: PRNGKey, state: HmcState, energy_fn: EnergyFn) -> tuple[HmcState, Info]:
        key_momentum, key_accept = jax.random.split(key)
        momentum = jnp.sqrt(temperature) * draws.normal(key_momentum, state.x.shape)

        def leap(carry: tuple[HmcState, Images], _: None) -> tuple[tuple[HmcState, Images], None]:
            at, momentum = carry
            momentum = momentum - 0.5 * step_size * at.grad
            x, momentum = bounce(at.x + step_size * momentum, momentum)
            at = HmcState(x, *energy_and_grad(energy_fn, x))
            return (at, momentum - 0.5 * step_size * at.grad), None

        (end, last_momentum), _ = lax.scan(leap, (state, momentum), length=num_leaps)
        kinetic = 0.5 * jnp.square(norms(momentum)) - 0.5 * jnp.square(norms(last_momentum))
        log_ratio = (state.energy - end.energy + kinetic) / temperature
        acceptance, accepted = metropolis(key_accept, log_ratio, end.x, project)
        moved = HmcState(*accepted_or_old(accepted, end, state))
        return moved, Info(moved.energy, norms(moved.grad), acceptance)

    return Kernel(init, step)


def unit_box_walls(x: Images, momentum: Images) -> tuple[Images, Images]:
    """Positions folded back into [0, 1], however often they crossed; an odd number of bounces turns the momentum."""
    folded = jnp.mod(x, 2.0)
    turned = folded > 1.0
    return unit_box(jnp.where(turned, 2.0 - folded, folded)), jnp.where(turned, -momentum, momentum)


def no_walls(x: Images, momentum: Images) -> tuple[Images, Images]:
    """Free flight."""
    return x, momentum
