"""The training program: a run's state, and its step over all devices and all models."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from ebm_jax import schema
from ebm_jax.assemble import make_apply, make_method, make_network, make_optimizer, raw_params
from ebm_jax.distributed import parallel
from ebm_jax.labels import example_labels, label_shape
from ebm_jax.models import spectral
from ebm_jax.schema import member_seeds
from ebm_jax.training.state import TrainState, init_state, non_finite, partition, rescued
from ebm_jax.training.step import make_train_step
from ebm_jax.types import Batch, Config, MembersKey, Metrics, Params, PRNGKey, Scalar

UNTRAINED_IMAGES = 8
"""How many images of each kind `untrained_energy` looks at."""


def _ingredients(config: Config, seed: int) -> tuple[PRNGKey, PRNGKey, Params, spectral.Vectors]:
    """Keys of the run and of the method's memory, and what `raw_params` gives."""
    key_run, key_params, key_memory = jax.random.split(jax.random.key(seed), 3)
    return key_run, key_memory, *raw_params(config, key_params)


def _stacked_ingredients(config: Config) -> tuple[MembersKey, MembersKey, Params, spectral.Vectors]:
    """The ingredients of the run's one model, or of all its models, stacked."""
    members = [_ingredients(config, seed) for seed in member_seeds(config)]
    return members[0] if len(members) == 1 else jax.tree.map(_stacked, *members)


def _stacked(*leaves: Array) -> Array:
    """Stack leaves along a new first axis; keys by their data: JAX's key checker takes stacked keys for used ones."""
    if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.stack([jax.random.key_data(key) for key in leaves]))
    return jnp.stack(leaves)


def _assemble(
    config: Config, key_run: MembersKey, key_memory: MembersKey, params: Params, vectors: spectral.Vectors
) -> TrainState:
    if config.train.num_models > 1:
        return jax.vmap(partial(_assemble_one, config))(key_run, key_memory, params, vectors)
    return _assemble_one(config, key_run, key_memory, params, vectors)


def _assemble_one(
    config: Config, key_run: PRNGKey, key_memory: PRNGKey, params: Params, vectors: spectral.Vectors
) -> TrainState:
    memory = make_method(config).init(key_memory)
    return init_state(key_run, params, vectors, make_optimizer(config), memory)


def _rows(config: Config) -> Any:
    """How rows lie over devices: the rows of batches, and the memory that a method shards."""
    return parallel.SHARDED if config.train.num_models == 1 else parallel.MEMBERS_SHARDED


def _partition(config: Config) -> TrainState:
    return partition(make_method(config), _rows(config))


def _shardings(config: Config, mesh: Mesh) -> Any:
    return parallel.shardings(mesh, _partition(config))


def place_batch(config: Config, mesh: Mesh, batch: Batch) -> Batch:
    """The rows that this process read, as arrays over all devices of all processes."""
    return parallel.place_batch(mesh, batch, _rows(config))


def place_batches(config: Config, mesh: Mesh, batches: Sequence[Batch]) -> Batch:
    """The batches of one call of `make_steps`, as arrays over all devices."""
    if len(batches) == 1:
        return place_batch(config, mesh, batches[0])
    stacked = Batch(*(np.stack(column) for column in zip(*batches, strict=True)))  # pyright: ignore[reportArgumentType]
    return parallel.place_batch(mesh, stacked, _of_several(_rows(config)))


def _of_several(spec: Any) -> Any:
    """The partition `spec` behind a leading axis of steps."""
    return PartitionSpec(None, *spec)


def make_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out over the mesh; the same for any number of devices."""
    assemble = jax.jit(partial(_assemble, config), out_shardings=_shardings(config, mesh))
    return assemble(*_stacked_ingredients(config))


def untrained_energy(config: Config) -> float:
    """The largest |mean U| of the run's untrained networks, of noise, of black and of white images: limits know it by.

    Energies of a network without normalisation layers are about linear in brightness, so white images are far out.
    """
    n, apply = UNTRAINED_IMAGES, make_apply(config)
    noise = make_method(config).base.sample(jax.random.key(0), n)
    images = jnp.concatenate([noise, jnp.zeros_like(noise), jnp.ones_like(noise)])
    labels = example_labels(config, jnp.arange(3 * n) % n)

    @jax.jit
    def largest(params: Params) -> Scalar:
        return jnp.abs(apply(params, images, labels).reshape(3, n).mean(1)).max()

    each = [_ingredients(config, seed)[2:] for seed in member_seeds(config)]
    return float(np.max([largest(spectral.normalise(*one)) for one in each]))


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without making it."""
    state = jax.eval_shape(lambda: _assemble(config, *_stacked_ingredients(config)))
    return parallel.abstract(state, mesh, _partition(config))


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shapes, types and shardings of one batch over all devices, whatever the data."""
    shape, soft = tuple(config.data.shape), label_shape(config)
    members = (config.train.num_models,) if config.train.num_models > 1 else ()
    rows = (*members, config.train.batch_size)
    images = jax.ShapeDtypeStruct((*rows, *shape), jnp.float32 if len(shape) == 1 else jnp.uint8)
    labels = jax.ShapeDtypeStruct((*rows, *(soft or ())), jnp.int32 if soft is None else jnp.float32)
    return parallel.abstract(Batch(images, labels), mesh, _rows(config))  # pyright: ignore


def make_keeper(config: Config, mesh: Mesh) -> Callable:
    """The compiled function state -> (a copy that no step consumes, the number of non-finite values in it)."""

    def keep(state: TrainState) -> tuple[TrainState, Scalar]:
        return jax.tree.map(jnp.copy, state), non_finite(state)

    return jax.jit(keep, out_shardings=(_shardings(config, mesh), parallel.shardings(mesh, parallel.REPLICATED)))


def make_rescued(config: Config, mesh: Mesh, number: int) -> Callable:
    """The compiled function from a state to the one after rescue `number`; it consumes its argument."""
    return jax.jit(partial(rescued, number=number), out_shardings=_shardings(config, mesh), donate_argnums=(0,))


def rescued_chain(config: Config, rescues: int) -> int:
    """The steps of a training chain after so many rescues."""
    return math.ceil(config.chain.num_steps * config.guard.rescue_chain**rescues)


def stage_of(config: Config, step: int) -> int | None:
    """Whether the `train.steps_per_call` steps from `step` on are before `method.then.after`, 0, or after it, 1.

    None: a call has steps of both, or the method is the same in all steps. A program of one stage alone is faster, and
    compiles in less time.
    """
    after = config.method.then.after
    if not after or step < after < step + config.train.steps_per_call:
        return None
    return int(step >= after)


def make_step(config: Config, mesh: Mesh, rescues: int = 0, stage: int | None = None) -> Callable:
    """The compiled training step (state, batch) -> (state, metrics) over all devices; it consumes its state.

    With several models, all leaves and metrics have a leading axis of members.

    Args:
      rescues: how many the state went through; each multiplies the length of chains by `guard.rescue_chain`.
      stage: of the steps that it is for, from `stage_of`; None: any.
    """
    return _over_devices(config, mesh, _local_step(config, rescues, stage), _rows(config))


def make_steps(config: Config, mesh: Mesh, rescues: int = 0, stage: int | None = None) -> Callable:
    """`make_step` for the `train.steps_per_call` steps of one call: the host waits only for the last of them.

    With more than one step, batches and metrics have a leading axis of steps.
    """
    number, step = config.train.steps_per_call, _local_step(config, rescues, stage)
    if number == 1:
        return make_step(config, mesh, rescues, stage)
    # Inside a loop XLA's CPU backend picks slow convolutions for the gradients of kernels (models/convolution.py)
    unroll = mesh.devices.flat[0].platform == "cpu" and not make_network(config).loops_well

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch), state, batches, unroll=unroll)

    return _over_devices(config, mesh, steps, _of_several(_rows(config)))


def _over_devices(config: Config, mesh: Mesh, fn: Callable, batch_spec: Any) -> Callable:
    """Compile `fn`, the program (state, batch) -> (state, metrics) of one device, for all devices."""
    specs = _partition(config)
    return parallel.over_devices(
        fn,
        mesh,
        in_specs=(specs, batch_spec),
        out_specs=(specs, parallel.REPLICATED),
        donate_argnums=(0,),
    )


def _local_step(config: Config, rescues: int, stage: int | None) -> Callable:
    """The training step of all models on one device."""
    config = schema.with_values(config, {"chain.num_steps": rescued_chain(config, rescues)})
    step = make_train_step(
        make_apply(config),
        make_method(config, stage),
        make_optimizer(config),
        ema_decay=config.optim.ema_decay,
        ema_ramp=config.optim.ema_ramp,
        rescue_learning_rate=config.guard.rescue_learning_rate,
        sharpness=config.optim.sharpness,
    )

    def step_of_members(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return parallel.over_members(lambda member: step(*member), (state, batch))

    return step if config.train.num_models == 1 else step_of_members
