"""Metropolis-adjusted Langevin: the tied form with a test that makes its stationary law exact at any step size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

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


class MalaState(NamedTuple):
    """The chains' positions [b, *event], with the energy and its gradient there."""

    x: Images
    energy: Energies
    grad: Images


def mala(
    step_size: float | Scalar,
    *,
    grad_clip: float = jnp.inf,
    temperature: float | Scalar = 1.0,
    project: Project = unit_box,
) -> Kernel:
    """The Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996), with law exp(-U/T) on the support.

        y ~ q(y|x) = N(y; x - s clip(∇U(x)), 2 s T)
        x ← y with probability min(1, exp((U(x) - U(y)) / T) q(x|y) / q(y|x))

    The support is what `project` leaves alone: a proposal outside it is rejected, so that on the unit box the law is
    exp(-U/T) cut off at the box's faces. A clipped gradient makes another proposal, not another law.

    Args:
      step_size: s > 0, the factor of the gradient.
      grad_clip: c > 0, every element of ∇U is clipped to [-c, c].
      temperature: T > 0.
      project: applied to the start; afterwards it only says what is inside.
    """
    variance = 2.0 * step_size * temperature

    def drifted(x: Images, grad: Images) -> Images:
        return x - step_size * jnp.clip(grad, -grad_clip, grad_clip)

    def log_proposal(to: Images, mean: Images) -> Energies:
        return -jnp.square(norms(to - mean)) / (2.0 * variance)

    def init(x: Images, energy_fn: EnergyFn) -> MalaState:
        x = project(x)
        return MalaState(x, *energy_and_grad(energy_fn, x))

    def step(key: PRNGKey, state: MalaState, energy_fn: EnergyFn) -> tuple[MalaState, Info]:
        key_noise, key_accept = jax.random.split(key)
        x, mean = state.x, drifted(state.x, state.grad)
        y = mean + jnp.sqrt(variance) * draws.normal(key_noise, x.shape)
        energy, grad = energy_and_grad(energy_fn, y)
        log_ratio = (state.energy - energy) / temperature + log_proposal(x, drifted(y, grad)) - log_proposal(y, mean)
        acceptance, accepted = metropolis(key_accept, log_ratio, y, project)
        moved = MalaState(*accepted_or_old(accepted, MalaState(y, energy, grad), state))
        return moved, Info(moved.energy, norms(moved.grad), acceptance)

    return Kernel(init, step)
