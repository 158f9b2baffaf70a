"""Denoising score matching, at one noise level (Vincent 2011) or over several (Li, Chen & Sommer 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_jax import random
from ebm_jax.methods.method import Limits, Memory, Method, Model, no_memory
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import energy_and_grad
from ebm_jax.types import Batch, Metrics, PRNGKey, Scalar


def denoising(base: Base, *, sigma: float, least: float, most: float, patience: int) -> Method:
    """½ |(σ₀² / σ) ∇U(x + σε) - ε|², ε ~ N(0, I), summed over pixels and averaged over the batch; it needs no chain.

    σ₀ is `sigma`. The noise σ of a batch's images grows geometrically from `least` to `most`, an image a level; the
    energy does not see it (arXiv 1910.07762, with the weights 1/σ² of its release, train.py).

    Where both are σ₀, -∇U learns the score of the data's law smoothed by N(0, σ₀² I): U becomes minus the log of the
    smoothed density q, up to a constant. The loss cannot reach 0: its minimum for d pixels is ½ (d - σ₀² E |∇log q|²).
    Over several levels, where the noise's size shows in an image of many pixels, U(x) grows as |x - x'|² / (2 σ₀²) away
    from the nearest data x', far beyond the reach of one level: chains find their way from noise, at falling
    temperatures. Near the data U is a log-density only as far as the levels near σ₀ weigh most. A constant energy has
    the loss ½ d.

    Metrics: `denoising_error`, the mean square error of (σ₀² / σ) ∇U a pixel, 1 for a constant energy; and
    `scaled_score`, the root mean square of that a pixel. Only values that are not finite make a run ill.

    Args:
      sigma: σ₀ > 0; pixels are in [0, 1].
      least, most: of the noise, 0 < least <= most; 0: σ₀.
      patience: the guard's (`Limits`).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax.methods.denoising import denoising
      >>> from ebm_jax.methods.method import Model
      >>> from ebm_jax.sampling.base import uniform
      >>> from ebm_jax.types import Batch
      >>> method = denoising(uniform((2,)), sigma=0.1, least=0.0, most=0.0, patience=5)
      >>> points = 0.5 + 0.1 * jax.random.normal(jax.random.key(0), (20_000, 2))
      >>> batch = Batch(points, jnp.zeros(len(points), jnp.int32))
      >>> def loss(variance):
      ...     apply = lambda params, x, labels, dropout_key: jnp.square(x - 0.5).sum(1) / (2 * params)
      ...     return round(float(method.loss(jax.random.key(1), Model(apply, jnp.float32(variance)), batch, ())[0]), 1)
      >>> loss(0.1**2 + 0.1**2), loss(jnp.inf)  # of the data's law and the noise: the minimum; of a constant energy
      (0.5, 1.0)
    """

    def loss(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> tuple[Scalar, tuple[Memory, Metrics]]:
        key_data, key_noise, key_dropout = jax.random.split(key, 3)
        x = random.dequantise(key_data, batch.images)
        noise = random.normal(key_noise, x.shape)
        level = levels(len(x), least or sigma, most or sigma).reshape(-1, *(1,) * (x.ndim - 1))
        grad = energy_and_grad(model.energy(batch.labels, key_dropout), x + level * noise)[1]
        score = sigma * (sigma / level) * grad
        error = jnp.square(score - noise)
        metrics = {"denoising_error": error.mean(), "scaled_score": jnp.sqrt(jnp.square(score).mean())}
        return 0.5 * error.sum(tuple(range(1, x.ndim))).mean(), (memory, metrics)

    return Method(no_memory, loss, base, Limits((), patience))


def levels(n: int, least: float, most: float) -> Float[Array, " n"]:
    """n noise levels from `least` to `most`, each the same factor above the one before; of one image their mean."""
    if n == 1 or least == most:
        return jnp.full(n, (least * most) ** 0.5, jnp.float32)
    return jnp.geomspace(least, most, n, dtype=jnp.float32)
