"""Langevin dynamics without a Metropolis test: the method's own kernel."""

from typing import NamedTuple

import jax.numpy as jnp

from ebm_jax import random
from ebm_jax.sampling.kernel import Info, Kernel, Project, energy_and_grad, norms
from ebm_jax.types import EnergyFn, Images, PRNGKey, Scalar


class LangevinState(NamedTuple):
    """The chains' positions [b, *event]; a step needs nothing else from the step before."""

    x: Images


def langevin(
    step_size: float | Scalar,
    noise_scale: float | Scalar | None = None,
    *,
    project: Project,
    grad_clip: float = jnp.inf,
    temperature: float | Scalar = 1.0,
) -> Kernel:
    """Langevin dynamics in one of two forms.

    The tied form (`noise_scale=None`) is the exact equation, ε = 2·step_size, with stationary law exp(-U/T) as ε → 0:

        x ← project(x - s ∇U(x) + sqrt(2 s T) α)                    α ~ N(0, I)

    The untied form is the paper's practice: noise first, then the gradient at the noised point (release
    train.py:734-781):

        x ← x + sqrt(T) σ α;   x ← project(x - s ∇U(x))

    With the release's s = 10 and σ = 0.005 the untied form samples at temperature σ²/(2s) = 1.25e-6. It is nearly
    clipped gradient descent, and on purpose.

    Args:
      step_size: s > 0, the factor of the gradient.
      noise_scale: σ >= 0, standard deviation of one step's noise, or None for the tied form.
      project: applied to the start and after every move; `kernel.unit_box` keeps pixels in [0, 1], and
        `kernel.unbounded` leaves the whole space to an energy that is not of pixels.
      grad_clip: c > 0; every element of ∇U is clipped to [-c, c].
      temperature: T >= 0 multiplies the variance of the noise; 0 is noise-free descent.

    Examples:
      >>> import jax
      >>> from ebm_jax.sampling.kernel import run, unbounded
      >>> from ebm_jax.sampling.langevin import langevin
      >>> start = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> x, info = run(langevin(0.01, project=unbounded), jax.random.key(1), start, lambda x: 2 * (x**2).sum(-1), 200)
      >>> print(f"{x.std():.1f}")  # of exp(-2 x²): 1/2
      0.5
    """
    tied = noise_scale is None
    # Plain numbers give a plain number: XLA folds it into the noise, in exported programs too
    noise_std = temperature**0.5 * ((2.0 * step_size) ** 0.5 if tied else noise_scale)

    def init(x: Images, energy_fn: EnergyFn) -> LangevinState:
        del energy_fn
        return LangevinState(project(x))

    def step(key: PRNGKey, state: LangevinState, energy_fn: EnergyFn) -> tuple[LangevinState, Info]:
        noise = noise_std * random.normal(key, state.x.shape, state.x.dtype)
        at = state.x if tied else state.x + noise
        energy, grad = energy_and_grad(energy_fn, at)
        moved = at - step_size * jnp.clip(grad, -grad_clip, grad_clip)
        x = project(moved + noise if tied else moved)
        return LangevinState(x), Info(energy, norms(grad), jnp.ones_like(energy))

    return Kernel(init, step)
