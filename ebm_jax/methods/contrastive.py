"""Contrastive divergence with a replay buffer: Du & Mordatch (2019), algorithm 1."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from ebm_jax import random
from ebm_jax.methods.losses import Objective
from ebm_jax.methods.method import Asked, Comparison, Keys, Limits, Method, Model, Range, answered, keep_memory
from ebm_jax.sampling import kernel as kernels
from ebm_jax.sampling import replay
from ebm_jax.sampling.augment import Augment
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import Stages
from ebm_jax.sampling.replay import Draw, ReplayBuffer
from ebm_jax.types import Batch, Energies, Images, Labels, Metrics, PRNGKey, Scalar

AHEAD = 10
"""The gap's trend is a mean over about this many steps; the guard follows it this many steps into the future."""
SEPARATION = (-math.inf, 0.0)
"""The gaps that mean a separation. A healthy gap is positive at first and relaxes to 0: its fall to 0 leads nowhere."""


def contrastive(
    stages: Stages,
    objective: Objective,
    base: Base,
    limits: Limits,
    *,
    capacity: int,
    dtype: DTypeLike,
    label_shape: tuple[int, ...] | None,
    restart_prob: float,
    relabel_prob: float,
    ring: bool,
    dropout_in_chains: bool,
    start_stages: Stages,
    data_noise: float,
    augment: Augment | None = None,
) -> Method:
    """The method that minimises the objective of data's and chains' energies; its memory is the replay buffer.

    Metrics: both energies and their gap, the chains' gradient norm (mean over chains and steps), their age in visits,
    and the metrics of `of_chains`.

    Args:
      stages: what a chain does in one training step.
      limits: from `healthy`.
      capacity: number of chains in the buffer, over all devices.
      dtype, label_shape: the buffer's (`replay.init`).
      restart_prob, relabel_prob: probabilities in [0, 1] (`replay.draw`).
      ring: whether results overwrite the oldest chains (`replay.store`).
      dropout_in_chains: whether chains move under dropout too, with a new mask at every step. The release does so: its
        ResNet32Large has dropout on in all of training (train.py:544). The loss always has it.
      start_stages: what new chains do first, such as a descent from noise; empty: they join as noise. With it a step
        restarts a fixed number of chains, ceil(restart_prob · batch), and `begin` fills the buffer with such chains.
      data_noise: standard deviation of normal noise on the data, in pixel values.
      augment: what chains undergo when they are drawn, unless they are new; None: nothing.
    """
    new = partial(_new_chains, base=base, start_stages=start_stages)

    def init(key: PRNGKey) -> ReplayBuffer:
        return replay.init(key, capacity, base, dtype, label_shape)

    def ask(keys: Keys, model: Model, batch: Batch, buffer: ReplayBuffer) -> Asked:
        images = batch.images
        if data_noise:
            key_noise, key_draw = jax.random.split(keys.draw)
            images = images + data_noise * random.normal(key_noise, images.shape)
            keys = keys._replace(draw=key_draw)
        if start_stages:
            key_draw, key_new = jax.random.split(keys.draw)
            drawn = replay.draw(key_draw, buffer, batch.labels, base, 0.0, relabel_prob)
            drawn = _restarted(key_new, drawn, batch.labels, restart_prob, partial(new, model=model))
        else:
            drawn = replay.draw(keys.draw, buffer, batch.labels, base, restart_prob, relabel_prob)
        if augment is not None:
            key_augment, key_chain = jax.random.split(keys.chain)
            keys = keys._replace(chain=key_chain)
            old = (drawn.visits > 0).reshape(-1, *(1,) * (images.ndim - 1))
            drawn = drawn._replace(x=jnp.where(old, augment(key_augment, drawn.x), drawn.x))
        chain_energy = partial(model.energy, drawn.labels)
        chain = [(kernels.resampled(kernel, chain_energy), n) for kernel, n in stages] if dropout_in_chains else stages
        x, info = kernels.run_stages(chain, keys.chain, drawn.x, chain_energy())
        metrics = {"chain_grad_norm": info.grad_norm.mean(), "chain_visits": drawn.visits.mean(dtype=jnp.float32)}

        def loss(data: Energies, samples: Energies) -> tuple[Scalar, Metrics]:
            return objective(data, samples), {"energy_data": data.mean(), "energy_samples": samples.mean()}

        return Asked(
            ((images, batch.labels), (x, drawn.labels)),
            loss,
            replay.store(keys.store, buffer, drawn, x, ring=ring),
            metrics | of_chains(drawn.x, x),
        )

    def begin(key: PRNGKey, model: Model, batch: Batch, buffer: ReplayBuffer) -> ReplayBuffer:
        key_chains, key_encode = jax.random.split(key)
        n, size = len(batch.labels), buffer.images.shape[0]
        each = jax.random.split(key_chains, -(-size // n))
        x = jax.lax.map(lambda key: new(key, batch.labels, model=model), each).reshape(-1, *batch.images.shape[1:])
        labels = jnp.concatenate([batch.labels] * len(each))
        return replay.filled(key_encode, buffer, x[:size], labels[:size])

    comparison = Comparison(ask, ("draw", "chain", "store"))
    return Method(
        init,
        answered(comparison),
        base,
        limits,
        replay.partition,
        _itself,
        gap,
        comparison,
        begin if start_stages else keep_memory,
    )


def _new_chains(key: PRNGKey, labels: Labels, *, base: Base, start_stages: Stages, model: Model) -> Images:
    """One chain for each label: noise that went through the stages."""
    key_noise, key_chain = jax.random.split(key)
    x = base.sample(key_noise, len(labels))
    return kernels.run_stages(start_stages, key_chain, x, model.energy(labels))[0]


def _restarted(
    key: PRNGKey, drawn: Draw, labels: Labels, restart_prob: float, new: Callable[[PRNGKey, Labels], Images]
) -> Draw:
    """The drawn chains with ceil(restart_prob · n) of them, chosen at random, replaced by new ones of fresh labels."""
    key_rows, key_new = jax.random.split(key)
    n = len(labels)
    if not (number := math.ceil(restart_prob * n)):
        return drawn
    rows = replay.distinct_slots(key_rows, n, number)
    x = drawn.x.at[rows].set(new(key_new, labels[rows]))
    return drawn._replace(x=x, labels=drawn.labels.at[rows].set(labels[rows]), visits=drawn.visits.at[rows].set(0))


def healthy(
    *, energy: float, of_untrained: float, separation: float, chain_grad: tuple[float, float]
) -> tuple[Range, ...]:
    """The healthy region; inf means no limit.

    Args:
      energy: largest |mean U|, of data and of samples.
      of_untrained: the same, in units of the untrained network's largest |mean U|; the larger limit counts.
      separation: largest mean U(x-) - mean U(x+): how far samples may lie above the data.
      chain_grad: least and largest mean |∇U| of the chains.
    """
    return (
        Range("energy_data", -energy, energy, of_untrained=of_untrained),
        Range("energy_samples", -energy, energy, of_untrained=of_untrained),
        Range("energy_gap", -separation, math.inf, ahead=AHEAD, followed=SEPARATION),
        Range("chain_grad_norm", *chain_grad),
    )


def of_chains(start: Images, end: Images) -> Metrics:
    """How far the chains of a batch moved, and where they ended.

    `chain_movement`: mean |x_K - x_0| over the pixels; not finite if one pixel is not. `saturated`: share of the pixels
    of x_K that are exactly 0 or 1.
    """
    return {
        "chain_movement": jnp.abs(end - start).mean(),
        "saturated": ((end == 0.0) | (end == 1.0)).mean(dtype=jnp.float32),
    }


def _itself(buffer: ReplayBuffer) -> ReplayBuffer:
    return buffer


def gap(metrics: Metrics) -> Metrics:
    """mean U(x+) - mean U(x-) over all devices."""
    return {"energy_gap": metrics["energy_data"] - metrics["energy_samples"]}
