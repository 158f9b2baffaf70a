"""Metropolis-adjusted Langevin: the tied form with a test that makes its stationary law exact at any step size."""

import jax
import jax.numpy as jnp

from ebm_jax import random
from ebm_jax.sampling.kernel import Info, Kernel, Point, Project, metropolis, norms, off_faces, point
from ebm_jax.types import Energies, EnergyFn, Images, PRNGKey, Scalar

NOISES_DEEP = 4.0  # standard deviations: of 10,000 pixels so far from a face, one proposal in four leaves the box
DEEPEST = 0.25  # of pixels in [0, 1]


def mala(
    step_size: float | Scalar,
    *,
    project: Project,
    grad_clip: float = jnp.inf,
    temperature: float | Scalar = 1.0,
) -> Kernel:
    """The Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996), with law exp(-U/T) on the support.

        y ~ q(y|x) = N(y; x - s clip(∇U(x)), 2 s T)
        x ← y with probability min(1, exp((U(x) - U(y)) / T) q(x|y) / q(y|x))

    The support is the set that `project` leaves alone. A proposal outside it is rejected, so on the unit box the law is
    exp(-U/T) cut off at the box's faces. Clipping the gradient changes the proposals, not the law.

    Args:
      step_size: s > 0, the factor of the gradient.
      project: moves the start into the support, such as `kernel.unit_box` for pixels or `kernel.unbounded`; afterwards
        it only tells whether a point is inside. A start on a face of the support begins a little inside (`off_faces`).
      grad_clip: c > 0; every element of ∇U is clipped to [-c, c].
      temperature: T > 0.

    Examples:
      >>> import jax
      >>> from ebm_jax.sampling.kernel import run, unbounded
      >>> from ebm_jax.sampling.mala import mala
      >>> start = jax.random.normal(jax.random.key(0), (2_000, 1))
      >>> x, info = run(mala(0.1, project=unbounded), jax.random.key(1), start, lambda x: 2 * (x**2).sum(-1), 100)
      >>> print(f"{x.std():.1f}")  # of exp(-2 x²): 1/2
      0.5
    """
    variance = 2.0 * step_size * temperature
    depth = jnp.minimum(NOISES_DEEP * jnp.sqrt(variance), DEEPEST)

    def drifted(x: Images, grad: Images) -> Images:
        return x - step_size * jnp.clip(grad, -grad_clip, grad_clip)

    def log_proposal(to: Images, mean: Images) -> Energies:
        return -jnp.square(norms(to - mean)) / (2.0 * variance)

    def init(x: Images, energy_fn: EnergyFn) -> Point:
        return point(off_faces(project(x), project, depth), energy_fn)

    def step(key: PRNGKey, state: Point, energy_fn: EnergyFn) -> tuple[Point, Info]:
        key_noise, key_accept = jax.random.split(key)
        mean = drifted(state.x, state.grad)
        std = jnp.sqrt(jnp.asarray(variance, mean.dtype))
        y = point(mean + std * random.normal(key_noise, mean.shape, mean.dtype), energy_fn)
        log_forth, log_back = log_proposal(y.x, mean), log_proposal(state.x, drifted(y.x, y.grad))
        log_ratio = (state.energy - y.energy) / temperature + log_back - log_forth
        return metropolis(key_accept, state, y, log_ratio, project)

    return Kernel(init, step)
