"""One training step: Du & Mordatch (2019), algorithm 1, as one device runs it on its share of the batch."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, UInt8

from ebm_jax import random
from ebm_jax.distributed import parallel
from ebm_jax.methods import losses
from ebm_jax.methods.losses import Objective
from ebm_jax.models import energy, spectral
from ebm_jax.sampling import kernel as kernels
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import Stages
from ebm_jax.training import monitors
from ebm_jax.training.state import TrainState
from ebm_jax.types import Batch, Images, Labels, Metrics, PRNGKey

WrongLabels = Callable[[PRNGKey, Labels, int], Labels]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    apply: energy.ApplyFn,
    stages: Stages,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    restart_prob: float,
    relabel_prob: float,
    label_weight: float,
    label_margin: float,
    num_classes: int,
    wrong_labels: WrongLabels,
    ring: bool,
    ema_decay: float,
    rescue_learning_rate: float,
    dropout_in_chains: bool = False,
) -> TrainStep:
    """The step (state, batch) -> (state, metrics) of one device, to be mapped by `parallel.over_devices`.

    Batch and replay buffer are this device's shards. The gradient's mean is the only communication, but for what the
    objective itself gathers. Metrics are scalars: the loss, both energies and their gap, gradient norms of the
    parameters and of the chains (mean over chains and steps), the chains' age in visits, and the `monitors`.

    Args:
      stages: what a chain does in one step.
      relabel_prob: share of chains from the buffer that take another label (`replay.draw`).
      label_weight: γ >= 0 of a term that the paper does not have, γ `losses.label_contrast` of the data and a random
        wrong class each: contrastive divergence never compares the classes of one image, so that without it the
        energies of a conditional model hardly classify (docs/results.md).
      label_margin: of that term, in units of energy.
      num_classes: of the labels, where `label_weight` > 0.
      wrong_labels: where that term takes them from, `of_any_class` or `of_the_batch`.
      rescue_learning_rate: factor of the learning rate for every rescue of the run (training/guard.py).
      dropout_in_chains: the chains move under dropout too, a new mask at every step of theirs, as in the release, whose
        ResNet32Large has it on in all of training (train.py:544). The loss always has it.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = parallel.device_key(jax.random.fold_in(state.key, state.step))
        key_data, key_draw, key_chain, key_dropout, key_store, key_wrong = jax.random.split(key, 6)
        vectors = spectral.power_iteration(state.params, state.spectral)
        params = parallel.varying(state.params)

        x_data = dequantise(key_data, batch.images)
        drawn = replay.draw(key_draw, state.buffer, batch.labels, x_data.shape[1:], restart_prob, relabel_prob)
        chain_energy = partial(energy.bind, apply, spectral.normalise(params, vectors), drawn.labels)
        chain = [(kernels.resampled(kernel, chain_energy), n) for kernel, n in stages] if dropout_in_chains else stages
        x_samples, info = kernels.run_stages(chain, key_chain, drawn.x, chain_energy())
        x_samples = jax.lax.stop_gradient(x_samples)

        def loss_fn(params):
            images, labels = [x_data, x_samples], [batch.labels, drawn.labels]
            if label_weight:
                images, labels = [*images, x_data], [*labels, wrong_labels(key_wrong, batch.labels, num_classes)]
            energies = apply(
                spectral.normalise(params, vectors),
                jnp.concatenate(images),
                jnp.concatenate(labels),
                dropout_key=key_dropout,
            )
            data, samples, *wrong = jnp.split(energies, len(images))
            metrics = {"energy_data": data.mean(), "energy_samples": samples.mean()}
            loss = objective(data, samples)
            if wrong:
                metrics["energy_wrong_label"] = wrong[0].mean()
                loss += label_weight * losses.label_contrast(data, wrong[0], label_margin)
            return loss, metrics

        (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        metrics |= {"loss": loss, "chain_grad_norm": info.grad_norm.mean(), "chain_visits": drawn.visits.mean()}
        metrics |= monitors.of_chains(drawn.x, x_samples) | monitors.of_values((metrics, x_samples, gradient))
        gradient, metrics = parallel.mean_over_devices((gradient, metrics))
        metrics["energy_gap"] = metrics["energy_data"] - metrics["energy_samples"]
        metrics["grad_norm"] = optax.tree.norm(gradient)
        metrics |= monitors.of_kernels(state.params, vectors)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = optax.tree.scale(rescue_learning_rate**state.rescues, updates)
        new_params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(spectral.normalise(new_params, vectors), state.ema, 1.0 - ema_decay)
        buffer = replay.store(key_store, state.buffer, drawn, x_samples, ring=ring)
        return TrainState(
            state.step + 1, state.rescues, state.key, new_params, ema, opt_state, vectors, buffer
        ), metrics

    return train_step


def of_any_class(key: PRNGKey, labels: Int[Array, " b"], num_classes: int) -> Int[Array, " b"]:
    """For each label another one, uniform among the other num_classes - 1."""
    return (labels + jax.random.randint(key, labels.shape, 1, num_classes)) % num_classes


def of_the_batch(key: PRNGKey, labels: Int[Array, " b"], num_classes: int) -> Int[Array, " b"]:
    """For each label that of another image of the batch: classes that are not in the batch are left alone.

    That may be the same one, which then contrasts nothing: both energies are one, and so are their gradients.
    """
    del num_classes
    return jnp.roll(labels, jax.random.randint(key, (), 1, max(labels.shape[0], 2)))


def dequantise(key: PRNGKey, images: UInt8[Array, "b *event"] | Images) -> Images:
    """uint8 pixels v as v/256 + U(0, 1/256) in [0, 1] (release data.py); float images as they are."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) + random.uniform(key, images.shape)) / 256.0
