"""The state of a run: every array that it needs to go on, and how each array lies over the devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ebm_jax.distributed.parallel import REPLICATED
from ebm_jax.methods.method import Memory, Method
from ebm_jax.models import spectral
from ebm_jax.models.energy import Stacked
from ebm_jax.sampling import replay
from ebm_jax.sampling.replay import ReplayBuffer
from ebm_jax.training import monitors
from ebm_jax.types import Params, PRNGKey, Scalar


class TrainState(NamedTuple):
    """All arrays of a run; a checkpoint is this and nothing else. Replicated, but for what the method shares out."""

    step: Int[Array, ""]
    """Training steps done."""
    rescues: Int[Array, ""]
    """How often the run was ill and went back to a healthy state."""
    key: PRNGKey
    """The run's key; only rescues change it. Step t uses fold_in(key, t)."""
    params: Params
    """What the optimiser moves, before spectral normalisation."""
    ema: Params
    """Running mean of the normalised parameters: a mean of kernels of norm 1 has at most norm 1."""
    opt_state: optax.OptState
    spectral: spectral.Vectors
    memory: Memory
    """The method's memory, such as the replay buffer."""


def partition(method: Method, rows: Any) -> TrainState:
    """How each part lies on the mesh, as a prefix of the state's tree; `rows` is the spec of rows over devices."""
    return TrainState(
        step=REPLICATED,
        rescues=REPLICATED,
        key=REPLICATED,
        params=REPLICATED,
        ema=REPLICATED,
        opt_state=REPLICATED,
        spectral=REPLICATED,
        memory=method.partition(rows),
    )


def init_state(
    key: PRNGKey,
    params: Params,
    vectors: spectral.Vectors,
    optimizer: optax.GradientTransformation,
    memory: Memory,
) -> TrainState:
    """The state before the first step; `vectors` are empty without spectral normalisation.

    The running mean begins with a copy: a step that consumes its state cannot consume one array twice.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rescues=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        ema=jax.tree.map(jnp.copy, spectral.normalise(params, vectors)),
        opt_state=optimizer.init(params),
        spectral=vectors,
        memory=memory,
    )


def rescued(state: TrainState, number: int) -> TrainState:
    """The state that rescue `number` >= 1 makes of a healthy state: it has another random stream."""
    fold_in = jax.random.fold_in if state.key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))
    return state._replace(rescues=jnp.full_like(state.rescues, number), key=fold_in(state.key, number))


def non_finite(state: TrainState) -> Scalar:
    """The number of infinite or NaN values in the state, also in replay buffers that store bits."""

    def decoded(part: Any) -> Any:
        return part._replace(images=replay.decode(part.images)) if isinstance(part, ReplayBuffer) else part

    memory = jax.tree.map(decoded, state.memory, is_leaf=lambda part: isinstance(part, ReplayBuffer))
    return monitors.non_finite(state._replace(memory=memory))


def network_params(state: TrainState, ema: bool) -> Params:
    """The parameters to evaluate the network with: the running mean if `ema`, else the last step's, normalised.

    Several models give an ensemble.
    """
    if state.step.ndim == 0:
        return state.ema if ema else spectral.normalise(state.params, state.spectral)
    return Stacked(state.ema if ema else jax.vmap(spectral.normalise)(state.params, state.spectral))
