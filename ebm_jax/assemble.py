"""The pure parts of a run: network, kernel, optimiser, state and step."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from ebm_jax import registry, schema
from ebm_jax.data.sources import member_seeds
from ebm_jax.distributed import parallel
from ebm_jax.labels import example_labels, label_shape
from ebm_jax.methods import METHODS, label, losses
from ebm_jax.methods.contrastive import healthy
from ebm_jax.methods.method import Limits, Method, weighted_sum
from ebm_jax.models import energy, spectral
from ebm_jax.models.layers import ACTIVATIONS
from ebm_jax.models.network import Network, as_network
from ebm_jax.models.network import check as check_network
from ebm_jax.models.networks import NETWORKS
from ebm_jax.sampling import KERNELS, base
from ebm_jax.sampling.hmc import no_walls, unit_box_walls
from ebm_jax.sampling.kernel import Kernel, Project, Stages, scheduled
from ebm_jax.schema import value_of
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.training.state import TrainState, init_state, non_finite, partition, rescued
from ebm_jax.training.step import make_train_step
from ebm_jax.types import BadInput, Batch, Config, MembersKey, Metrics, Params, PRNGKey, Scalar


def make_network(config: Config) -> Network:
    """The network of `model.name`: a row of NETWORKS, or one of the user's own by its import path.

    Its factory gets those keys of the group `model` that its signature names, and all of `model.own`.

    Raises:
      BadInput: there is no such name, the factory refuses the keywords, or what it makes is no network.
    """
    name, model = config.model.name, config.model
    factory = registry.named("model.name", name, NETWORKS)
    offers = {
        "width": lambda: model.width,
        "num_classes": lambda: model.num_classes,
        "activation": lambda: registry.named("model.activation", model.activation, ACTIVATIONS),
        "spectral_norm": lambda: model.spectral_norm,
        "dtype": lambda: jnp.dtype(model.dtype),
    }
    of_some = {"attention": lambda: model.resnet.attention, "dropout": lambda: model.resnet.dropout}
    if callable(factory):
        offers |= {key: of_some[key] for key in inspect.signature(factory).parameters if key in of_some}
    made = registry.called("model.name", name, factory, offers, model.own.to_dict())
    try:
        return as_network(made)
    except BadInput as error:
        raise BadInput(f"model.name {name}: {error}") from error


def make_apply(config: Config) -> energy.ApplyFn:
    """The network as the pure function apply(params, images, labels=None, dropout_key=None) -> energies."""
    return make_network(config).apply


def make_base(config: Config) -> base.Base:
    """The law that chains start from, and in whose set they stay."""
    return base.BASES[config.chain.base](tuple(config.data.shape))


def make_kernel(config: Config, temperature: float | Scalar, name: str = "", project: Project | None = None) -> Kernel:
    """The chain's kernel at a temperature, above 0 where it has a Metropolis test.

    Args:
      name: of another kernel than `chain.kernel`.
      project: another set than that of the law that chains start from.
    """
    chain, name = config.chain, name or config.chain.kernel
    in_box = project is None and chain.base == "uniform"
    keys = schema.group_of(config, "chain", name)
    if name == "langevin":
        keys = {"noise_scale": None if keys["tied"] else keys["noise_scale"]}
    offers = {
        "step_size": lambda: chain.step_size,
        "temperature": lambda: temperature,
        "grad_clip": lambda: chain.grad_clip,
        "project": lambda: make_base(config).project if project is None else project,
        "reflect": lambda: unit_box_walls if in_box else no_walls,
        **{key: lambda value=value: value for key, value in keys.items()},
    }
    own = chain.own.to_dict() if name == chain.kernel else {}
    return registry.called("chain.kernel", name, registry.named("chain.kernel", name, KERNELS), offers, own)


def equivalent_step_size(config: Config) -> float:
    """The s of the Langevin step x - s ∇U that one gradient of the chain's kernel makes: ε²/2 of a leap of HMC."""
    chain = config.chain
    return chain.step_size**2 / 2 if chain.kernel == "hmc" else chain.step_size


def make_refiner(config: Config, project: Project) -> Kernel:
    """The chain's kernel at `eval.robustness.refine_temperature` under another projection, for refined classification.

    Raises:
      BadInput: it has a Metropolis test, through whose decisions no gradient goes.
    """
    if config.chain.kernel != "langevin":
        raise BadInput(
            f"eval.robustness.refine_steps {config.eval.robustness.refine_steps} is for chain.kernel langevin, not "
            f"{config.chain.kernel}; use 0"
        )
    return make_kernel(config, config.eval.robustness.refine_temperature, project=project)


def make_stages(config: Config, group: str = "sample") -> Stages:
    """What a whole chain does: the config's kernel for `num_steps` of the group, the last `quiet_steps` without noise.

    Langevin's chain is one loop whose temperature ends at 0. A Metropolis test has no temperature 0: there the last
    steps are Langevin's noise-free descent. The parameters of the last step are the group's: "chain" trains, "sample"
    samples.
    """
    steps, quiet = value_of(config, f"{group}.num_steps"), value_of(config, f"{group}.quiet_steps")
    last = config.chain.temperature
    first = value_of(config, f"{group}.anneal_from") or last
    temperatures = np.geomspace(first, last, steps - quiet) if first != last else np.full(steps - quiet, last)
    langevin_at = partial(make_kernel, config, name="langevin")
    if config.chain.kernel == "langevin":
        return (_stage(langevin_at, np.concatenate([temperatures, np.zeros(quiet)])),)
    noisy = _stage(partial(make_kernel, config), temperatures)
    descent = _stage(langevin_at, np.zeros(quiet))
    return tuple(stage for stage in (noisy, descent) if stage[1])


def _stage(kernel_at: Callable[[float | Scalar], Kernel], temperatures: np.ndarray) -> tuple[Kernel, int]:
    """One kernel that goes through the temperatures; the plain one where they are all equal."""
    if len(set(temperatures)) == 1:
        return kernel_at(float(temperatures[0])), len(temperatures)
    return scheduled(kernel_at, jnp.asarray(temperatures, jnp.float32)), len(temperatures)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with the paper's per-element clip."""
    optim = config.optim
    return clipped_adam(optim.learning_rate, optim.b1, optim.b2, optim.clip_scale, optim.clip_offset)


def _raw_params(config: Config, key: PRNGKey) -> tuple[Params, spectral.Vectors]:
    """Parameters before spectral normalisation, and its vectors.

    Not to be called under jit: a program with a random draw for each of many kernels compiles for half a minute, where
    draws one by one are compiled once a shape.
    """
    key_params, key_vectors = jax.random.split(key)
    images, labels = _abstract_inputs(config, 1)
    network = make_network(config)
    if config.model.name not in NETWORKS:
        _check_own(config, network)
    params = network.init(key_params, images, labels)
    return params, spectral.init(key_vectors, params, network.spectral_form) if config.model.spectral_norm else {}


def _check_own(config: Config, network: Network) -> None:
    """Refuse a network of the user's own that does not fit the images and labels of the config.

    Raises:
      BadInput: as `models.network.check`.
    """
    images, labels = _abstract_inputs(config, 3)
    conditional = config.model.num_classes > 1 or label_shape(config) is not None
    try:
        check_network(network, images, labels, conditional)
    except BadInput as error:
        raise BadInput(f"model.name {config.model.name}: {error}") from error


def _abstract_inputs(config: Config, number: int) -> tuple[Any, Any]:
    """Shapes and types of so many images and their labels."""
    return jax.eval_shape(
        lambda: (jnp.zeros((number, *config.data.shape)), example_labels(config, jnp.zeros(number, jnp.int32)))
    )


def abstract_raw_params(config: Config) -> tuple[Any, Any]:
    """Shapes and types of the parameters of one model before spectral normalisation, and of its vectors."""
    return jax.eval_shape(partial(_raw_params, config), jax.random.key(0))


def init_params(config: Config, key: PRNGKey) -> Params:
    """Untrained parameters of the network, spectrally normalised where the config says so."""
    return spectral.normalise(*_raw_params(config, key))


def _ingredients(config: Config, seed: int) -> tuple[PRNGKey, PRNGKey, Params, spectral.Vectors]:
    """Keys of the run and of the method's memory, and what `_raw_params` gives."""
    key_run, key_params, key_memory = jax.random.split(jax.random.key(seed), 3)
    return key_run, key_memory, *_raw_params(config, key_params)


def _stacked_ingredients(config: Config) -> tuple[MembersKey, MembersKey, Params, spectral.Vectors]:
    """Those of the run's one model, or of all its models, stacked."""
    members = [_ingredients(config, seed) for seed in member_seeds(config)]
    return members[0] if len(members) == 1 else jax.tree.map(_stacked, *members)


def _stacked(*leaves: Array) -> Array:
    """The leaves along a new first axis; keys by their data, for JAX's key checker takes stacked keys for used ones."""
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
    """The spec of rows over devices: of batches, and of what a method shares out."""
    return parallel.SHARDED if config.train.num_models == 1 else parallel.MEMBERS_SHARDED


def _partition(config: Config) -> TrainState:
    return partition(make_method(config), _rows(config))


def _shardings(config: Config, mesh: Mesh) -> Any:
    return parallel.shardings(mesh, _partition(config))


def place_batch(config: Config, mesh: Mesh, batch: Batch) -> Batch:
    """The rows that this process read, as arrays over all devices of all processes."""
    return parallel.place_batch(mesh, batch, _rows(config))


def place_batches(config: Config, mesh: Mesh, batches: Sequence[Batch]) -> Batch:
    """The batches of one call of `make_steps`."""
    if len(batches) == 1:
        return place_batch(config, mesh, batches[0])
    stacked = Batch(*(np.stack(column) for column in zip(*batches, strict=True)))  # pyright: ignore[reportArgumentType]
    return parallel.place_batch(mesh, stacked, _of_several(_rows(config)))


def _of_several(spec: Any) -> Any:
    """The partition of arrays with a leading axis of steps."""
    return PartitionSpec(None, *spec)


def make_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out over the mesh; the same for any number of devices."""
    assemble = jax.jit(partial(_assemble, config), out_shardings=_shardings(config, mesh))
    return assemble(*_stacked_ingredients(config))


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without making it."""
    state = jax.eval_shape(lambda: _assemble(config, *_stacked_ingredients(config)))
    return parallel.abstract(state, mesh, _partition(config))


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shapes, types and shardings of one batch over all devices, of any data."""
    shape, soft = tuple(config.data.shape), label_shape(config)
    members = (config.train.num_models,) if config.train.num_models > 1 else ()
    rows = (*members, config.train.batch_size)
    images = jax.ShapeDtypeStruct((*rows, *shape), jnp.float32 if len(shape) == 1 else jnp.uint8)
    labels = jax.ShapeDtypeStruct((*rows, *(soft or ())), jnp.int32 if soft is None else jnp.float32)
    return parallel.abstract(Batch(images, labels), mesh, _rows(config))  # pyright: ignore


def make_keeper(config: Config, mesh: Mesh) -> Callable:
    """The compiled state -> (a copy that no step consumes, the number of its values that are not finite)."""

    def keep(state: TrainState) -> tuple[TrainState, Scalar]:
        return jax.tree.map(jnp.copy, state), non_finite(state)

    return jax.jit(keep, out_shardings=(_shardings(config, mesh), parallel.shardings(mesh, parallel.REPLICATED)))


def make_rescued(config: Config, mesh: Mesh, number: int) -> Callable:
    """The compiled state -> state with which rescue `number` goes on; it consumes its state."""
    return jax.jit(partial(rescued, number=number), out_shardings=_shardings(config, mesh), donate_argnums=(0,))


def make_method(config: Config) -> Method:
    """The way to learn that `method.name` names, with the label contrast where `loss.label_weight` is above 0.

    A method's factory gets the parameters that its signature names, out of `_offers` and of its own group of the
    config, and all of `method.own`.

    Raises:
      BadInput: there is no such method, or its factory asks for what is not there.
    """
    name, offers, weight = config.method.name, _offers(config), config.loss.label_weight
    keys = {key: lambda value=value: value for key, value in schema.group_of(config, "method", name).items()}
    factory = registry.named("method.name", name, METHODS)
    method = registry.called("method.name", name, factory, offers | keys, config.method.own.to_dict())
    if not weight:
        return method
    contrast = registry.called("method.name", "label", label.label_contrast, offers, {})
    return weighted_sum([(1.0, method), (weight, contrast)])


def _offers(config: Config) -> dict[str, Callable[[], Any]]:
    """What a method's factory can ask for by the name of a parameter."""
    model, buffer, loss = config.model, config.buffer, config.loss
    return {
        "base": lambda: make_base(config),
        "stages": lambda: make_stages(config, "chain"),
        "objective": lambda: losses.regularised(
            registry.named("loss.objective", loss.objective, losses.OBJECTIVES),
            loss.energy_l2,
            registry.named("loss.energy_l2_form", loss.energy_l2_form, losses.PENALTIES),
        ),
        "limits": lambda: make_limits(config),
        "patience": lambda: config.guard.patience,
        "capacity": lambda: buffer.capacity,
        "dtype": lambda: jnp.dtype(buffer.dtype),
        "restart_prob": lambda: buffer.restart_prob,
        "relabel_prob": lambda: buffer.relabel_prob,
        "ring": lambda: buffer.ring,
        "dropout_in_chains": lambda: model.resnet.dropout > 0 and model.resnet.dropout_in_chains,
        "num_classes": lambda: model.num_classes,
        "label_shape": lambda: label_shape(config),
        "label_margin": lambda: loss.label_margin,
        "wrong_labels": lambda: registry.named("loss.wrong_labels", loss.wrong_labels, label.WRONG_LABELS),
    }


def make_limits(config: Config) -> Limits:
    """The healthy region of contrastive divergence. Without the guard only values that are not finite are ill."""
    limits = config.guard
    if not limits.enabled:
        return healthy(energy=math.inf, separation=math.inf, chain_grad=(0.0, math.inf), patience=limits.patience)
    energy_l2 = max(config.loss.energy_l2, limits.least_energy_l2)
    grad_unit = math.sqrt(math.prod(config.data.shape)) / equivalent_step_size(config)
    return healthy(
        energy=limits.max_energy / (2 * energy_l2),
        separation=limits.max_separation / energy_l2,
        chain_grad=(limits.min_chain_grad * grad_unit, limits.max_chain_grad * grad_unit),
        patience=limits.patience,
    )


def rescued_chain(config: Config, rescues: int) -> int:
    """The steps of a training chain after so many rescues."""
    return math.ceil(config.chain.num_steps * config.guard.rescue_chain**rescues)


def make_step(config: Config, mesh: Mesh, rescues: int = 0) -> Callable:
    """The compiled training step (state, batch) -> (state, metrics) over all devices; it consumes its state.

    With several models all leaves, and the metrics, have a leading axis of members.

    Args:
      rescues: those of the state; each makes the chains longer by the factor `guard.rescue_chain`.
    """
    return _over_devices(config, mesh, _local_step(config, rescues), _rows(config))


def make_steps(config: Config, mesh: Mesh, rescues: int = 0) -> Callable:
    """`make_step` for the `train.steps_per_call` steps of one call: the host waits for none of them but the last.

    Where they are more than one, batches and metrics have a leading axis of steps.
    """
    number, step = config.train.steps_per_call, _local_step(config, rescues)
    if number == 1:
        return make_step(config, mesh, rescues)
    # In loops XLA's CPU backend takes slow convolutions for the gradients of kernels (models/convolution.py)
    unroll = mesh.devices.flat[0].platform == "cpu"

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, batch: step(state, batch), state, batches, unroll=unroll)

    return _over_devices(config, mesh, steps, _of_several(_rows(config)))


def _over_devices(config: Config, mesh: Mesh, fn: Callable, batch_spec: Any) -> Callable:
    """A program (state, batch) -> (state, metrics) of one device on all of them."""
    specs = _partition(config)
    return parallel.over_devices(
        fn,
        mesh,
        in_specs=(specs, batch_spec),
        out_specs=(specs, parallel.REPLICATED),
        donate_argnums=(0,),
    )


def _local_step(config: Config, rescues: int) -> Callable:
    """The training step of one device, of all its models."""
    config = schema.with_values(config, {"chain.num_steps": rescued_chain(config, rescues)})
    step = make_train_step(
        make_apply(config),
        make_method(config),
        make_optimizer(config),
        ema_decay=config.optim.ema_decay,
        rescue_learning_rate=config.guard.rescue_learning_rate,
    )

    def step_of_members(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return parallel.over_members(lambda member: step(*member), (state, batch))

    return step if config.train.num_models == 1 else step_of_members
