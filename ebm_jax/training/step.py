"""One training step: Du & Mordatch (2019), algorithm 1, as one device runs it on its share of the batch."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, UInt8

from ebm_jax import draws, parallel
from ebm_jax.models import energy, spectral
from ebm_jax.sampling import kernel as kernels
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import Kernel
from ebm_jax.training.losses import Objective
from ebm_jax.training.state import TrainState
from ebm_jax.types import Batch, Images, Metrics, PRNGKey

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    apply: energy.ApplyFn,
    kernel: Kernel,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    chain_steps: int,
    restart_prob: float,
    ring: bool,
    ema_decay: float,
    dropout_in_chains: bool = False,
) -> TrainStep:
    """The step (state, batch) -> (state, metrics) of one device, to be mapped by `parallel.over_devices`.

    Batch and replay buffer are this device's shards. The gradient's mean is the only communication, but for what the
    objective itself gathers. Metrics are scalars: the loss, both energies and their gap, gradient norms of the
    parameters and of the chains (mean over chains and steps), and the chains' age in visits.

    Args:
      dropout_in_chains: the chains move under dropout too, a new mask at every step of theirs, as in the release, whose
        ResNet32Large has it on in all of training (train.py:544). The loss always has it.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = parallel.device_key(jax.random.fold_in(state.key, state.step))
        key_data, key_draw, key_chain, key_dropout, key_store = jax.random.split(key, 5)
        vectors = spectral.power_iteration(state.params, state.spectral)
        params = parallel.varying(state.params)

        x_data = dequantise(key_data, batch.images)
        drawn = replay.draw(key_draw, state.buffer, batch.labels, restart_prob)
        chain_energy = partial(energy.bind, apply, spectral.normalise(params, vectors), drawn.labels)
        chain_kernel = kernels.resampled(kernel, chain_energy) if dropout_in_chains else kernel
        start = drawn.x.reshape(x_data.shape)
        x_samples, info = kernels.run(chain_kernel, key_chain, start, chain_energy(), chain_steps)
        x_samples = jax.lax.stop_gradient(x_samples)

        def loss_fn(params):
            images = jnp.concatenate([x_data, x_samples])
            labels = jnp.concatenate([batch.labels, drawn.labels])
            energies = apply(spectral.normalise(params, vectors), images, labels, dropout_key=key_dropout)
            data, samples = jnp.split(energies, 2)
            metrics = {"energy_data": data.mean(), "energy_samples": samples.mean()}
            return objective(data, samples), metrics

        (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        metrics |= {"loss": loss, "chain_grad_norm": info.grad_norm.mean(), "chain_visits": drawn.visits.mean()}
        gradient, metrics = parallel.mean_over_devices((gradient, metrics))
        metrics["energy_gap"] = metrics["energy_data"] - metrics["energy_samples"]
        metrics["grad_norm"] = optax.tree.norm(gradient)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(spectral.normalise(new_params, vectors), state.ema, 1.0 - ema_decay)
        buffer = replay.store(key_store, state.buffer, drawn, x_samples.reshape(drawn.x.shape), ring=ring)
        return TrainState(state.step + 1, state.key, new_params, ema, opt_state, vectors, buffer), metrics

    return train_step


def dequantise(key: PRNGKey, images: UInt8[Array, "b *event"] | Images) -> Images:
    """uint8 pixels v as v/256 + U(0, 1/256) in [0, 1] (release data.py); float images as they are."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) + draws.uniform(key, images.shape)) / 256.0
