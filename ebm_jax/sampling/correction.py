"""Langevin corrections at the noise that images hold on the way of a matching's descent."""

import jax

from ebm_jax import random
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import Info, Kernel, Positions, Project, energy_and_grad
from ebm_jax.types import EnergyFn, Images, PRNGKey, Scalar

# Share of data. Nearer to the data a learnt gradient says too little of the noise, and corrections add grain.
LAST = 0.8


def corrected(
    descent: Kernel, base: Base, share: float | Scalar, way: float | Scalar, size: float, project: Project
) -> Kernel:
    """A step of descent, then one of Langevin dynamics at the noise of the share γ of data that the images hold now.

    A matching's gradient there, σ ∇U = c(γ) E[ε - x | x_γ], says the mean of the noise, ε̂ = x_γ + γ σ ∇U / c(γ) in
    units of the base, and with it the score of the law of all such images, -ε̂ / (1 - γ). The step

        x_γ ← x_γ - r (1 - γ) ε̂ + sqrt(2 r) (1 - γ) α          α ~ N(0, I)

    keeps that law. Without a measurement and under one energy the descent alone keeps it. Under a product of energies
    it does not, because the product of noisy laws is not the noisy law of the product (Du et al. 2023, arXiv
    2302.11552); nor where a measurement has moved the images.

    Args:
      descent: the kernel of a step of descent; each step begins it anew.
      base: the law of ε, with its centre and its scale σ.
      share: γ in [0, 1) after the step of descent.
      way: c(γ) > 0, of `methods.matching.decay`.
      size: r > 0; the noise keeps its variance to first order in r.
      project: applied after the correction.
    """

    def init(x: Images, energy_fn: EnergyFn) -> Positions:
        return Positions(descent.init(x, energy_fn).x)

    def step(key: PRNGKey, state: Positions, energy_fn: EnergyFn) -> tuple[Positions, Info]:
        key_descent, key_noise = jax.random.split(key)
        moved, info = descent.step(key_descent, descent.init(state.x, energy_fn), energy_fn)
        grad = energy_and_grad(energy_fn, moved.x)[1]
        noise = (moved.x - base.centre) / base.scale + share * base.scale * grad / way
        fresh = random.normal(key_noise, moved.x.shape, moved.x.dtype)
        move = (1.0 - share) * ((2.0 * size) ** 0.5 * fresh - size * noise)
        return Positions(project(moved.x + base.scale * move)), info

    return Kernel(init, step)
