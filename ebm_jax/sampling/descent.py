"""Gradient descent with a look-ahead, for energies whose own descent generates."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from ebm_jax import random
from ebm_jax.sampling.kernel import Info, Kernel, Project, energy_and_grad, norms
from ebm_jax.types import EnergyFn, Images, PRNGKey, Scalar


class DescentState(NamedTuple):
    """The chains' positions, the gradients of the step before, and which chains are at rest."""

    x: Images
    last_grad: Images
    at_rest: Bool[Array, " b"]


def descent(
    step_size: float | Scalar,
    *,
    project: Project,
    look_ahead: float | Scalar = 0.0,
    stop: float = 0.0,
    temperature: float | Scalar = 0.0,
) -> Kernel:
    """Descent that takes the gradient ahead of where it stands (Nesterov's, with the last gradient as momentum).

        y = x - s μ g;   g ← ∇U(y);   x ← project(x - s g + sqrt(2 s T) α)          α ~ N(0, I)

    At the start g is 0. A chain rests for good once the root mean square of its gradient's elements is below `stop`
    (Wang & Du 2025, arXiv 2510.02300, section 3.3: their sampler and their adaptive number of steps).

    Args:
      step_size: s > 0, the factor of the gradient.
      project: applied to the start and after every move.
      look_ahead: μ in [0, 1); 0 is plain descent.
      stop: >= 0, in units of energy by pixel value; 0: no chain rests.
      temperature: T >= 0 of the noise; 0: none.

    Examples:
      >>> import jax
      >>> from ebm_jax.sampling.kernel import run, unbounded
      >>> from ebm_jax.sampling.descent import descent
      >>> start = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> x, info = run(descent(0.1, project=unbounded), jax.random.key(1), start, lambda x: 2 * (x**2).sum(-1), 100)
      >>> print(f"{abs(x).max():.3f}")  # all at the bottom
      0.000
    """
    quiet = isinstance(temperature, float | int) and temperature == 0  # XLA would draw numbers to multiply them by 0

    def init(x: Images, energy_fn: EnergyFn) -> DescentState:
        del energy_fn
        x = project(x)
        return DescentState(x, jnp.zeros_like(x), jnp.zeros_like(x, jnp.bool_).any(tuple(range(1, x.ndim))))

    def step(key: PRNGKey, state: DescentState, energy_fn: EnergyFn) -> tuple[DescentState, Info]:
        energy, grad = energy_and_grad(energy_fn, state.x - step_size * look_ahead * state.last_grad)
        at_rest = state.at_rest | (norms(grad) < stop * (grad[0].size ** 0.5))
        moved = state.x - step_size * grad
        if not quiet:
            moved += (2.0 * step_size * temperature) ** 0.5 * random.normal(key, moved.shape, moved.dtype)
        rests = at_rest.reshape(-1, *(1,) * (grad.ndim - 1))
        x = jnp.where(rests, state.x, project(moved))
        return DescentState(x, jnp.where(rests, 0.0, grad), at_rest), Info(energy, norms(grad), jnp.ones_like(energy))

    return Kernel(init, step)
