"""Denoising score matching at one noise level: Vincent 2011, "A connection between score matching and denoising"."""

import jax
import jax.numpy as jnp

from ebm_jax import random
from ebm_jax.methods.method import Limits, Memory, Method, Model, no_memory
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import energy_and_grad
from ebm_jax.types import Batch, Metrics, PRNGKey, Scalar


def denoising(base: Base, *, sigma: float, patience: int) -> Method:
    """½ σ² |∇U(x + σε) - ε/σ|², ε ~ N(0, I), summed over pixels and averaged over the batch; it needs no chain.

    -∇U learns the score of the data's law smoothed by N(0, σ² I). So U becomes minus the log of the smoothed density q,
    up to a constant. The loss cannot reach 0: its minimum for d pixels is ½ (d - σ² E |∇log q|²). A constant energy has
    the loss ½ d.

    Metrics: `denoising_error`, the mean square error of σ∇U a pixel, 1 for a constant energy; and `scaled_score`, the
    root mean square of σ∇U a pixel. Only values that are not finite make a run ill.

    Args:
      sigma: σ > 0; pixels are in [0, 1].
      patience: the guard's (`Limits`).
    """

    def loss(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> tuple[Scalar, tuple[Memory, Metrics]]:
        key_data, key_noise, key_dropout = jax.random.split(key, 3)
        x = random.dequantise(key_data, batch.images)
        noise = random.normal(key_noise, x.shape)
        score = sigma * energy_and_grad(model.energy(batch.labels, key_dropout), x + sigma * noise)[1]
        error = jnp.square(score - noise)
        metrics = {"denoising_error": error.mean(), "scaled_score": jnp.sqrt(jnp.square(score).mean())}
        return 0.5 * error.sum(tuple(range(1, x.ndim))).mean(), (memory, metrics)

    return Method(no_memory, loss, base, Limits((), patience))
