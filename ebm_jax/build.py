"""From a configuration to the pure parts of a run: the only reader of the config below the verbs."""

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ebm_jax import applications, draws, parallel
from ebm_jax.evaluation import density
from ebm_jax.io import checkpoint, data, densities, files, shapes, source, stream, tfds
from ebm_jax.io.workdir import read_config
from ebm_jax.models import conditions, energy, layers, networks, spectral
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import Kernel
from ebm_jax.sampling.langevin import langevin
from ebm_jax.sampling.mala import mala
from ebm_jax.training import losses
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.training.state import PARTITION, TrainState, init_state, network_params
from ebm_jax.training.step import make_train_step
from ebm_jax.types import BadInput, Batch, Config, Energies, Images, Labels, Params, Places, PRNGKey

CHOICES: dict[str, dict[str, Any]] = {
    "model.name": {
        "resnet32": networks.resnet32,
        "resnet32_large": networks.resnet32_large,
        "resnet32_wider": networks.resnet32_wider,
        "resnet128": networks.resnet128,
        "mnist": networks.mnist,
        "dsprites": networks.dsprites,
        "small": networks.SmallNet,
        "mlp": networks.Mlp,
    },
    "chain.kernel": {"langevin": None, "mala": None},
    "model.activation": {"leaky_relu": layers.leaky_relu, "swish": nn.swish},
    "model.dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16},
    "buffer.dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "uint8": jnp.uint8},
    "loss.objective": {
        "cd": losses.contrastive_divergence,
        "softplus": losses.softplus,
        "logsumexp": losses.logsumexp(parallel.gather),
    },
    "loss.energy_l2_form": {"sum": losses.energy_l2_sum, "difference": losses.energy_l2_difference},
    "sample.weights": {"ema": True, "raw": False},
}
AT_LEAST_ONE = ["model.width", "model.num_classes", "chain.num_steps", "buffer.capacity", "train.batch_size"]
AT_LEAST_ONE += ["train.num_steps", "sample.num_images", "sample.batch_size", "sample.num_steps", "log.every"]
AT_LEAST_ONE += ["checkpoint.every", "checkpoint.keep"]
NOT_NEGATIVE = ["chain.noise_scale", "chain.temperature", "loss.energy_l2", "optim.clip_scale", "optim.clip_offset"]
NOT_NEGATIVE += ["train.seed", "train.cpu_devices", "sample.seed", "sample.quiet_steps", "log.images_every"]
NOT_NEGATIVE += ["data.max_unreadable", "data.memory_gib", "data.workers"]
POSITIVE = ["chain.step_size", "chain.grad_clip", "optim.learning_rate"]
BELOW_ONE = ["optim.b1", "optim.b2", "optim.ema_decay", "model.dropout"]
SMALLEST_SIDE = 8  # pixels: three halvings
SOFT = {"soft": None, "size": 1, "position": 2, "rotation": 2}  # conditions whose labels are vectors, of what length
DENSITY_GRID = 400  # cells a side: 8 in the narrowest feature's standard deviation; the checkerboard needs tens
EXAMPLES = {  # labels to sample under, of conditions that are not classes
    "soft": conditions.one_hot,
    "size": conditions.size,
    "position": conditions.position,
    "rotation": conditions.rotation,
}
RESIDUAL = ("resnet32", "resnet32_large", "resnet32_wider", "resnet128")  # networks with dropout and attention
NOISE_IMAGES = 256  # of data.source=noise
DRY_RUN = {  # what train.dry_run=True puts over a config
    "model.width": 8,
    "chain.num_steps": 2,
    "buffer.capacity": 32,
    "train.batch_size": 16,
    "train.num_steps": 3,
    "sample.num_images": 16,
    "sample.batch_size": 16,
    "sample.num_steps": 4,
    "sample.quiet_steps": 2,
    "log.every": 1,
    "log.images_every": 0,
    "checkpoint.every": 3,
}


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key such as "chain.step_size"."""
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def choice(config: Config, key: str) -> Any:
    """What the name at `key` stands for.

    Raises:
      BadInput: it is none of the names in CHOICES.
    """
    return _among(key, value_of(config, key), CHOICES[key])


def _among(key: str, name: str, options: dict[str, Any]) -> Any:
    if name not in options:
        near = difflib.get_close_matches(str(name), options, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(f"{key} '{name}' is unknown; use one of {', '.join(options)}{hint}")
    return options[name]


def dry_run(config: Config) -> Config:
    """The config made so small that it runs in seconds, on noise where its data would have to be fetched."""
    small = config.copy_and_resolve_references().unlock()
    for key, value in DRY_RUN.items():
        group, name = key.split(".")
        setattr(getattr(small, group), name, value)
    if config.data.source not in ("sklearn", "density", "shapes"):
        small.data.source = "noise"
    return small.lock()


def check(config: Config, num_devices: int) -> None:
    """Refuse, before anything runs or is written, what cannot work on `num_devices` devices.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """

    def require(keys: list[str], holds: Callable[[Any], bool], limit: str) -> None:
        for key in keys:
            value = value_of(config, key)
            if not holds(value):  # written so that NaN fails too
                raise BadInput(f"{key} {value} is out of range; it must be {limit}")

    for key in CHOICES:
        choice(config, key)
    _among("data.source", config.data.source.partition(":")[0], SOURCES | {"density": None})
    require(AT_LEAST_ONE, lambda value: value >= 1, "at least 1")
    require(NOT_NEGATIVE, lambda value: value >= 0, "at least 0")
    require(POSITIVE, lambda value: value > 0, "greater than 0")
    require(["chain.step_size", "chain.noise_scale", "optim.learning_rate"], math.isfinite, "finite")
    require(BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1")
    require(["buffer.restart_prob"], lambda value: 0 <= value <= 1, "a probability, 0 to 1")
    steps = config.sample.num_steps
    require(["sample.quiet_steps"], lambda value: value <= steps, f"at most sample.num_steps, {steps}")
    if config.chain.kernel == "mala":
        _check_mala(config)
    _check_shape(config, require)
    _check_network(config)
    for key in ("train.batch_size", "buffer.capacity"):
        value = value_of(config, key)
        if value % num_devices:
            low = value // num_devices * num_devices
            options = f"{low} or {low + num_devices}" if low else f"{num_devices}"
            raise BadInput(f"{key} {value} is not divisible by {num_devices} devices; use {options}")
    if config.buffer.capacity < config.train.batch_size:
        raise BadInput(
            f"buffer.capacity {config.buffer.capacity} is smaller than train.batch_size {config.train.batch_size}; "
            f"use at least {config.train.batch_size}"
        )


def _check_mala(config: Config) -> None:
    if not config.chain.tied or config.chain.temperature == 0:
        raise BadInput("chain.kernel mala needs chain.tied=True and a chain.temperature above 0; or use langevin")
    if config.model.dropout and config.model.dropout_in_chains:
        raise BadInput("chain.kernel mala needs one energy for a whole chain; use model.dropout_in_chains=False")


def _check_shape(config: Config, require: Callable) -> None:
    if config.data.source == "density":
        require(["data.shape"], lambda shape: tuple(shape) == (2,), "(2,) for a 2-D density")
        return
    require(["data.shape"], lambda shape: len(shape) == 3, "(height, width, channels)")
    require(["data.shape"], lambda shape: min(shape[:2]) >= SMALLEST_SIDE, f"at least {SMALLEST_SIDE} pixels a side")
    require(["data.shape"], lambda shape: shape[2] in (1, 3), "of 1 or 3 channels")


def _check_network(config: Config) -> None:
    model, condition = config.model, config.data.condition
    if model.name not in RESIDUAL and (model.attention or model.dropout):
        key = "attention" if model.attention else "dropout"
        raise BadInput(
            f"model.{key} {getattr(model, key)} does not go with model.name {model.name}; use one of "
            f"{', '.join(RESIDUAL)}"
        )
    if (model.name == "mlp") != (config.data.source == "density"):
        raise BadInput(f"model.name {model.name} does not fit data.source {config.data.source}; density needs mlp")
    if model.name == "mlp" and model.num_classes > 1:
        raise BadInput(f"model.num_classes {model.num_classes} is out of range; mlp takes no labels, use 1")
    length = SOFT.get(condition)
    if length not in (None, model.num_classes):
        raise BadInput(f"model.num_classes {model.num_classes} does not fit data.condition {condition}; use {length}")
    if condition not in ("class", "soft") and config.data.source not in ("tfds", "shapes", "noise"):
        raise BadInput(f"data.condition '{condition}' is not in data.source {config.data.source}; use class or soft")


def label_shape(config: Config) -> tuple[int, ...] | None:
    """The shape of one label: None for an integer, (k,) for a soft one."""
    return (config.model.num_classes,) if config.data.condition in SOFT else None


def example_labels(config: Config, places: Places) -> Labels:
    """Labels to sample under at these places of a picture; all 0 for an unconditional model."""
    return EXAMPLES.get(config.data.condition, conditions.classes)(places, config.model.num_classes)


@contextmanager
def open_batches(config: Config, warn: Callable[[str], None]) -> Iterator[Callable[[int], Batch]]:
    """The function step -> this process's rows of a batch of the config's data, in the shape that the config states.

    A 2-D density is drawn from. Images live in memory where `data.memory_gib` has room for all, and stream from their
    source elsewhere; the batches are the same. The reading ends with the context.

    Args:
      warn: takes one line for each image that cannot be used.

    Raises:
      BadInput: the data cannot be had, does not fit the config, or is smaller than one batch.
    """
    seed, batch_size = config.train.seed, config.train.batch_size
    workers = config.data.workers or parallel.cores()
    share = {"process": jax.process_index(), "num_processes": jax.process_count()}
    if config.data.source == "density":
        yield data.sampled_batches(make_density(config).sample, seed, batch_size, **share)
        return
    images = source.tolerant(make_source(config), config.data.max_unreadable, warn)
    data.check_length(images.length, batch_size)
    if images.length * math.prod(config.data.shape) <= config.data.memory_gib * 2**30:
        yield data.make_batches(data.load(images, workers), seed, batch_size, **share)
        return
    with stream.open_batches(images, seed, batch_size, workers, **share) as batches:
        yield batches


def make_source(config: Config) -> source.Source:
    """The images that `data.source` and `data.name` mean; an unconditional model sees label 0 everywhere.

    Raises:
      BadInput: there are none, or their shape or number of classes is not the config's.
    """
    kind, _, path = config.data.source.partition(":")
    images = _among("data.source", kind, SOURCES)(config, path)
    num_classes, name = config.model.num_classes, path or config.data.name
    soft = label_shape(config) is not None
    if num_classes != images.num_classes and (soft or num_classes > 1):
        use = f"{images.num_classes}" if soft else f"1 (unconditional) or {images.num_classes}"
        raise BadInput(f"model.num_classes {num_classes} does not fit {name}; use {use}")
    if soft or num_classes > 1:
        return images
    return images._replace(read=lambda row: (images.read(row)[0], 0))


def _tfds_source(config: Config, path: str) -> source.Source:
    del path
    return tfds.tfds_source(
        config.data.name,
        config.data.split,
        tuple(config.data.shape),
        crop=config.data.crop,
        condition=config.data.condition,
        data_dir=config.data.dir,
        manual_dir=config.data.manual_dir,
        verify_checksums=config.data.verify_checksums,
    )


def _sklearn_source(config: Config, path: str) -> source.Source:
    del path
    if config.data.name != "digits":
        raise BadInput(f"data.name '{config.data.name}' is not in scikit-learn's bundle; use digits")
    digits = data.digits(config.data.split)
    if tuple(config.data.shape) != digits.images.shape[1:]:
        raise BadInput(
            f"data.shape {tuple(config.data.shape)} is not the shape of digits; use {digits.images.shape[1:]}"
        )
    return data.as_source(digits, "digits")


def _file_source(make: Callable[..., source.Source]) -> Callable[[Config, str], source.Source]:
    def from_path(config: Config, path: str) -> source.Source:
        if not path:
            raise BadInput(f"data.source {config.data.source} names no file or folder; use {config.data.source}:PATH")
        return make(path, config.data.split, tuple(config.data.shape), crop=config.data.crop)

    return from_path


def _noise_source(config: Config, path: str) -> source.Source:
    del path
    shape = (NOISE_IMAGES, *config.data.shape)
    noise = data.noise(shape, config.model.num_classes, soft=label_shape(config) is not None)
    return data.as_source(noise, "noise")


def _shapes_source(config: Config, path: str) -> source.Source:
    del path
    generated = shapes.shapes(config.data.split, tuple(config.data.shape), config.data.condition)
    return data.as_source(generated, "shapes")


SOURCES: dict[str, Callable[[Config, str], source.Source]] = {
    "tfds": _tfds_source,
    "sklearn": _sklearn_source,
    "folder": _file_source(files.folder_source),
    "npz": _file_source(files.npz_source),
    "shapes": _shapes_source,
    "noise": _noise_source,
}


def make_density(config: Config) -> densities.Density:
    """The 2-D law that `data.name` names.

    Raises:
      BadInput: none has this name.
    """
    return _among("data.name", config.data.name, densities.DENSITIES)


def make_density_report(config: Config) -> Callable[[Params], tuple[density.GridReport, np.ndarray]]:
    """The function params -> (how far the model is from its 2-D law, its log-density on a grid).

    The log-density is float64 [side · side], in nats.
    """
    energy_fn, points = make_energy_fn(config), density.grid(DENSITY_GRID)
    log_density = make_density(config).log_density(points)

    def report_of(params: Params) -> tuple[density.GridReport, np.ndarray]:
        energies = density.grid_energies(lambda x: energy_fn(params, x), points)
        report = density.report_of_energies(energies, log_density)
        return report, -energies - report.log_z

    return report_of


def make_network(config: Config) -> nn.Module:
    """The Flax module of the energy."""
    model = config.model
    only_residual = {"attention": model.attention, "dropout": model.dropout} if model.name in RESIDUAL else {}
    return choice(config, "model.name")(
        width=model.width,
        num_classes=model.num_classes,
        spectral_norm=model.spectral_norm,
        activation=choice(config, "model.activation"),
        **only_residual,
    )


def make_apply(config: Config) -> energy.ApplyFn:
    """The network as the pure function apply(params, images, labels=None, dropout_key=None) -> energies."""
    return energy.from_module(make_network(config), choice(config, "model.dtype"))


def make_kernel(config: Config, temperature: float | None = None) -> Kernel:
    """The chain's kernel, at the config's temperature or another; at 0 all are Langevin's noise-free descent."""
    chain = config.chain
    heat: float = chain.temperature if temperature is None else temperature
    if chain.kernel == "mala" and heat > 0:
        return mala(chain.step_size, grad_clip=chain.grad_clip, temperature=heat)
    noise_scale = None if chain.tied else chain.noise_scale
    return langevin(chain.step_size, noise_scale, grad_clip=chain.grad_clip, temperature=heat)


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
    images, labels = jax.eval_shape(
        lambda: (jnp.zeros((1, *config.data.shape)), example_labels(config, jnp.zeros(1, jnp.int32)))
    )
    params = make_network(config).lazy_init(key_params, images, labels)["params"]
    return params, spectral.init(key_vectors, params) if config.model.spectral_norm else {}


def init_params(config: Config, key: PRNGKey) -> Params:
    """Untrained parameters of the network, spectrally normalised where the config says so."""
    return spectral.normalise(*_raw_params(config, key))


def _keys(config: Config) -> jax.Array:
    """Keys of the run, the parameters and the replay buffer."""
    return jax.random.split(jax.random.key(config.train.seed), 3)


def _assemble(
    config: Config, key_run: PRNGKey, key_buffer: PRNGKey, params: Params, vectors: spectral.Vectors
) -> TrainState:
    dtype, shape = choice(config, "buffer.dtype"), tuple(config.data.shape)
    buffer = replay.init(key_buffer, config.buffer.capacity, shape, dtype, label_shape(config))
    return init_state(key_run, params, vectors, make_optimizer(config), buffer)


def _shardings(mesh: Mesh) -> Any:
    return parallel.shardings(mesh, PARTITION)


def make_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out over the mesh; the same for any number of devices."""
    key_run, key_params, key_buffer = _keys(config)
    assemble = jax.jit(partial(_assemble, config), out_shardings=_shardings(mesh))
    return assemble(key_run, key_buffer, *_raw_params(config, key_params))


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without making it."""

    def with_sharding(sharding, part):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

    def init() -> TrainState:
        key_run, key_params, key_buffer = _keys(config)
        return _assemble(config, key_run, key_buffer, *_raw_params(config, key_params))

    return jax.tree.map(with_sharding, _shardings(mesh), jax.eval_shape(init))


def make_step(config: Config, mesh: Mesh) -> Callable:
    """The compiled training step (state, batch) -> (state, metrics) over all devices; it consumes its state."""
    objective = choice(config, "loss.objective")
    step = make_train_step(
        make_apply(config),
        make_kernel(config),
        losses.regularised(objective, config.loss.energy_l2, choice(config, "loss.energy_l2_form")),
        make_optimizer(config),
        chain_steps=config.chain.num_steps,
        restart_prob=config.buffer.restart_prob,
        ring=config.buffer.ring,
        ema_decay=config.optim.ema_decay,
        dropout_in_chains=config.model.dropout > 0 and config.model.dropout_in_chains,
    )
    return parallel.over_devices(
        step,
        mesh,
        in_specs=(PARTITION, parallel.SHARDED),
        out_specs=(PARTITION, parallel.REPLICATED),
        donate_argnums=(0,),
    )


def make_energy_fn(config: Config) -> Callable[..., Energies]:
    """`energy_fn(params, images, labels=None) -> energies`: images [b, h, w, c] in [0, 1], labels [b], energies [b]."""
    apply = make_apply(config)

    def energy_fn(params: Params, images: Images, labels: Labels | None = None) -> Energies:
        return apply(params, images, labels)

    return energy_fn


def make_sample_fn(config: Config) -> Callable[..., Images]:
    """`sample_fn(params, key, *, labels=None, init=None) -> images`: float32 [n, h, w, c] in [0, 1].

    Chains of `sample.num_steps` steps from `init` [n, h, w, c], or from U[0, 1]; a pure function, to be jitted, vmapped
    and called again. n is that of `init` or of `labels` ([n] or [n, k]), else `sample.num_images`. Without labels a
    conditional model goes through its classes in turn, or through the values of its condition.
    """
    apply = make_apply(config)
    kernel, quiet_kernel = make_kernel(config), make_kernel(config, temperature=0.0)
    shape = tuple(config.data.shape)
    num_images, num_steps, quiet_steps = config.sample.num_images, config.sample.num_steps, config.sample.quiet_steps

    def sample_fn(params: Params, key: PRNGKey, *, labels: Labels | None = None, init: Images | None = None) -> Images:
        key_init, key_chain = jax.random.split(key)
        if init is None:
            n = num_images if labels is None else len(labels)
            init = draws.uniform(key_init, (n, *shape))
        if labels is None:
            labels = example_labels(config, jnp.arange(len(init)))
        energy_fn = energy.bind(apply, params, labels)
        return applications.generate(key_chain, init, energy_fn, kernel, quiet_kernel, num_steps, quiet_steps)

    return sample_fn


def make_sampler(config: Config, mesh: Mesh) -> Callable:
    """The compiled (params, key, first) -> (images, labels, energies) of one batch of chains over all devices.

    A batch is `sample.batch_size` chains, at most `sample.num_images`, rounded up to a multiple of the devices. Chain i
    has the example label of place first + i.
    """
    sample_fn, energy_fn = make_sample_fn(config), make_energy_fn(config)
    share = -(-min(config.sample.num_images, config.sample.batch_size) // mesh.size)

    def local(params: Params, key: PRNGKey, first: int | jax.Array) -> tuple[Images, Labels, Energies]:
        params = parallel.varying(params)
        places = first + jax.lax.axis_index(parallel.AXIS) * share + jnp.arange(share)
        labels = example_labels(config, places)
        images = sample_fn(params, parallel.device_key(key), labels=labels)
        return images, labels, energy_fn(params, images, labels)

    return parallel.over_devices(local, mesh, (parallel.REPLICATED,) * 3, parallel.SHARDED)


def load(workdir: str | Path) -> tuple[Config, Params]:
    """The config of the run in `workdir` and the network's parameters from its newest valid checkpoint.

    The parameters are those that `sample.weights` names, "ema" or "raw", and fit `make_energy_fn(config)` and
    `make_sample_fn(config)`. They lie on the first device.

    Raises:
      BadInput: no run, no checkpoint, or only damaged ones.
    """
    config = read_config(Path(workdir))
    mesh = parallel.device_mesh(jax.local_devices()[:1])
    restored = restore(Path(workdir), abstract_state(config, mesh))
    return config, network_params(restored.state, choice(config, "sample.weights"))


def restore(workdir: Path, abstract: TrainState) -> checkpoint.Restored:
    """The newest valid checkpoint of a run that has one.

    Raises:
      BadInput: it has none, or only damaged ones.
    """
    if not checkpoint.exists(workdir):
        raise BadInput(f"{workdir} has no checkpoint to sample from; train first, or give another --workdir")
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        restored = checkpoint.restore_newest(manager, abstract)
    if restored.step is None:
        raise BadInput(checkpoint.all_damaged(workdir, restored))
    return restored
