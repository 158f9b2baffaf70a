"""The value that is a run: every array that going on needs, and how each is laid out over the devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ebm_jax.distributed.parallel import REPLICATED, SHARDED
from ebm_jax.models import spectral
from ebm_jax.models.energy import Stacked
from ebm_jax.sampling import replay
from ebm_jax.sampling.replay import ReplayBuffer
from ebm_jax.training import monitors
from ebm_jax.types import Params, PRNGKey, Scalar


class TrainState(NamedTuple):
    """Everything; a checkpoint is this and nothing else. Replicated, but for the replay buffer's rows."""

    step: Int[Array, ""]
    """Training steps done."""
    rescues: Int[Array, ""]
    """How often the run was ill and went back to a healthy state."""
    key: PRNGKey
    """The run's key, constant but for rescues: step t uses fold_in(key, t)."""
    params: Params
    """What the optimiser moves, before spectral normalisation."""
    ema: Params
    """Running mean of the normalised parameters: a mean of kernels of norm 1 has at most norm 1."""
    opt_state: optax.OptState
    spectral: spectral.Vectors
    buffer: ReplayBuffer


def partition(rows: Any) -> TrainState:
    """How each part lies on the mesh, as a prefix of the state's tree; `rows` is the spec of the buffer's rows."""
    return TrainState(
        step=REPLICATED,
        rescues=REPLICATED,
        key=REPLICATED,
        params=REPLICATED,
        ema=REPLICATED,
        opt_state=REPLICATED,
        spectral=REPLICATED,
        buffer=replay.partition(rows),
    )


PARTITION = partition(SHARDED)
"""That of a single model."""


def init_state(
    key: PRNGKey,
    params: Params,
    vectors: spectral.Vectors,
    optimizer: optax.GradientTransformation,
    buffer: ReplayBuffer,
) -> TrainState:
    """The state before the first step; `vectors` are empty without spectral normalisation."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rescues=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        ema=spectral.normalise(params, vectors),
        opt_state=optimizer.init(params),
        spectral=vectors,
        buffer=buffer,
    )


def rescued(state: TrainState, number: int) -> TrainState:
    """A healthy state as the run's rescue `number` >= 1 goes on from it: with another random stream."""
    fold_in = jax.random.fold_in if state.key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))
    return state._replace(rescues=jnp.full_like(state.rescues, number), key=fold_in(state.key, number))


def non_finite(state: TrainState) -> Scalar:
    """How many real numbers of the state, buffer included, are infinite or NaN."""
    pixels = replay.decode(state.buffer.images)
    return monitors.non_finite(state._replace(buffer=state.buffer._replace(images=pixels)))


def network_params(state: TrainState, ema: bool) -> Params:
    """The parameters to evaluate the network with: the running mean, or those of the last step.

    Those of several models are an ensemble.
    """
    if state.step.ndim == 0:
        return state.ema if ema else spectral.normalise(state.params, state.spectral)
    return Stacked(state.ema if ema else jax.vmap(spectral.normalise)(state.params, state.spectral))
