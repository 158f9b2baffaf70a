"""Langevin dynamics by Heun's method: two gradients a step, for long steps along a flow."""

import jax.numpy as jnp

from ebm_jax import random
from ebm_jax.sampling.kernel import Info, Kernel, Positions, Project, energy_and_grad, norms
from ebm_jax.types import EnergyFn, Images, PRNGKey, Scalar


def heun(step_size: float | Scalar, *, project: Project, temperature: float | Scalar = 1.0) -> Kernel:
    """dx = -∇U dt + sqrt(2 T) dW by the stochastic Heun method, without a Metropolis test.

        n = sqrt(2 s T) α;   y = x - s ∇U(x) + n;   x ← project(x - s (∇U(x) + ∇U(y)) / 2 + n)        α ~ N(0, I)

    Energy matching's sampler (Balcerak et al. 2025), with T = 0 along its flow and T above 0 after it. Where the energy
    is quadratic, the error of its stationary variance is of second order in s; that of `langevin` is of first order.

    Args:
      step_size: s > 0.
      project: applied to the start and after every move.
      temperature: T >= 0.

    Examples:
      >>> import jax
      >>> from ebm_jax.sampling.kernel import run, unbounded
      >>> from ebm_jax.sampling.heun import heun
      >>> start = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> x, info = run(heun(0.02, project=unbounded), jax.random.key(1), start, lambda x: 2 * (x**2).sum(-1), 100)
      >>> print(f"{x.std():.1f}")  # of exp(-2 x²): 1/2
      0.5
    """
    noise_std = (2.0 * step_size * temperature) ** 0.5

    def init(x: Images, energy_fn: EnergyFn) -> Positions:
        del energy_fn
        return Positions(project(x))

    def step(key: PRNGKey, state: Positions, energy_fn: EnergyFn) -> tuple[Positions, Info]:
        noise = noise_std * random.normal(key, state.x.shape, state.x.dtype)
        energy, grad = energy_and_grad(energy_fn, state.x)
        _, ahead = energy_and_grad(energy_fn, state.x - step_size * grad + noise)
        x = project(state.x - 0.5 * step_size * (grad + ahead) + noise)
        return Positions(x), Info(energy, norms(grad), jnp.ones_like(energy))

    return Kernel(init, step)
