"""Noise contrastive estimation (Gutmann & Hyvärinen 2010): telling data from noise teaches a normalised density."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_jax.methods.method import Asked, Comparison, Keys, Limits, Memory, Method, Model, answered, no_memory
from ebm_jax.sampling.base import Base
from ebm_jax.types import Batch, Energies, Metrics, Scalar


def noise_contrastive(base: Base, *, ratio: int, patience: int) -> Method:
    """Logistic regression between data x and `ratio` times as many points z of the base, of density exp(-U₀); no chain.

        r(x) = U₀(x) - U(x) - log ν;   loss = mean softplus(-r(x)) + ν mean softplus(r(z)),   ν = ratio

    Its minimum is U = -log q of the data's law q, with the normaliser included: log Z = 0. The estimate's variance is
    that of maximum likelihood for many points of noise (JMLR 13, 2012, theorem 3 and its corollaries), but only as far
    as noise comes near the data: for few dimensions, not for images of many pixels.

    Metrics: `noise_accuracy`, the mean of the shares of data and of noise that are told rightly, at equal odds; and
    `log_normaliser`, an estimate of log Z from the step's noise. Only values that are not finite make a run ill.

    Args:
      base: the noise; its set holds the data.
      ratio: ν, 1 or more.
      patience: the guard's (`Limits`).
    """

    def ask(keys: Keys, model: Model, batch: Batch, memory: Memory) -> Asked:
        del model
        noise = base.sample(keys.draw, ratio * len(batch.images))
        labels = jnp.concatenate([batch.labels] * ratio)

        def loss(data: Energies, of_noise: Float[Array, " points"]) -> tuple[Scalar, Metrics]:
            from_data, from_noise = base.energy_fn(batch.images) - data, base.energy_fn(noise) - of_noise
            missed = jax.nn.softplus(jnp.log(ratio) - from_data).mean()
            taken = jax.nn.softplus(from_noise - jnp.log(ratio)).mean()
            right = 0.5 * ((from_data > 0).mean(dtype=jnp.float32) + (from_noise <= 0).mean(dtype=jnp.float32))
            log_normaliser = jax.nn.logsumexp(from_noise) - jnp.log(len(noise))
            return missed + ratio * taken, {"noise_accuracy": right, "log_normaliser": log_normaliser}

        return Asked(((batch.images, batch.labels), (noise, labels)), loss, memory, {})

    comparison = Comparison(ask, ("draw",))
    return Method(no_memory, answered(comparison), base, Limits((), patience), comparison=comparison)
