"""From a configuration to the pure parts of a run: the only reader of the config below the verbs."""

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ebm_jax import applications, parallel
from ebm_jax.io import checkpoint, data, tfds
from ebm_jax.io.workdir import read_config
from ebm_jax.models import energy, layers, networks, spectral
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import Kernel
from ebm_jax.sampling.langevin import langevin
from ebm_jax.training import losses
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.training.state import PARTITION, TrainState, init_state, network_params
from ebm_jax.training.step import make_train_step
from ebm_jax.types import BadInput, Config, Energies, Images, Labels, Params, PRNGKey

CHOICES: dict[str, dict[str, Any]] = {
    "data.source": {"tfds": None, "sklearn": None},
    "model.name": {"resnet32": networks.resnet32, "mnist": networks.MnistNet, "small": networks.SmallNet},
    "model.activation": {"leaky_relu": layers.leaky_relu, "swish": nn.swish},
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
POSITIVE = ["chain.step_size", "chain.grad_clip", "optim.learning_rate"]
BELOW_ONE = ["optim.b1", "optim.b2", "optim.ema_decay"]
SMALLEST_SIDE = 8  # pixels: three halvings


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key such as "chain.step_size"."""
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def choice(config: Config, key: str) -> Any:
    """What the name at `key` stands for.

    Raises:
      BadInput: it is none of the names in CHOICES.
    """
    name, options = value_of(config, key), CHOICES[key]
    if name not in options:
        near = difflib.get_close_matches(str(name), options, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(f"{key} '{name}' is unknown; use one of {', '.join(options)}{hint}")
    return options[name]


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
    require(AT_LEAST_ONE, lambda value: value >= 1, "at least 1")
    require(NOT_NEGATIVE, lambda value: value >= 0, "at least 0")
    require(POSITIVE, lambda value: value > 0, "greater than 0")
    require(["chain.step_size", "chain.noise_scale", "optim.learning_rate"], math.isfinite, "finite")
    require(BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1")
    require(["buffer.restart_prob"], lambda value: 0 <= value <= 1, "a probability, 0 to 1")
    steps = config.sample.num_steps
    require(["sample.quiet_steps"], lambda value: value <= steps, f"at most sample.num_steps, {steps}")
    require(["data.shape"], lambda shape: len(shape) == 3, "(height, width, channels)")
    require(["data.shape"], lambda shape: min(shape[:2]) >= SMALLEST_SIDE, f"at least {SMALLEST_SIDE} pixels a side")
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


def make_dataset(config: Config) -> data.Dataset:
    """The images to train on, whose shape and classes are those that the config states.

    An unconditional model sees label 0 everywhere.
    """
    source, name, split = config.data.source, config.data.name, config.data.split
    if source == "sklearn":
        if name != "digits":
            raise BadInput(f"data.name '{name}' is not in scikit-learn's bundle; use digits, or data.source=tfds")
        dataset = data.digits(split)
    else:
        images = tfds.tfds_source(
            name,
            split,
            config.data.shape,
            crop=False,
            condition="class",
            data_dir=config.data.dir,
            manual_dir=config.data.manual_dir,
            verify_checksums=config.data.verify_checksums,
        )
        pixels, labels = zip(*map(images.read, range(images.length)), strict=True)
        dataset = data.Dataset(np.stack(pixels), np.array(labels, np.int32), images.num_classes)
    shape = dataset.images.shape[1:]
    if shape != tuple(config.data.shape):
        raise BadInput(f"data.shape {tuple(config.data.shape)} is not the shape of {name}; use {shape}")
    if config.model.num_classes not in (1, dataset.num_classes):
        raise BadInput(
            f"model.num_classes {config.model.num_classes} does not fit {name}; use 1 (unconditional) or "
            f"{dataset.num_classes}"
        )
    return dataset if config.model.num_classes > 1 else dataset._replace(labels=dataset.labels * 0)


def make_network(config: Config) -> nn.Module:
    """The Flax module of the energy."""
    return choice(config, "model.name")(
        width=config.model.width,
        num_classes=config.model.num_classes,
        spectral_norm=config.model.spectral_norm,
        activation=choice(config, "model.activation"),
    )


def make_kernel(config: Config, temperature: float | None = None) -> Kernel:
    """The chain's kernel, at the config's temperature or another."""
    chain = config.chain
    return langevin(
        chain.step_size,
        None if chain.tied else chain.noise_scale,
        grad_clip=chain.grad_clip,
        temperature=chain.temperature if temperature is None else temperature,
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with the paper's per-element clip."""
    optim = config.optim
    return clipped_adam(optim.learning_rate, optim.b1, optim.b2, optim.clip_scale, optim.clip_offset)


def _raw_params(config: Config, key: PRNGKey) -> tuple[Params, spectral.Vectors]:
    key_params, key_vectors = jax.random.split(key)
    images = jnp.zeros((1, *config.data.shape))
    params = make_network(config).init(key_params, images, jnp.zeros(1, jnp.int32))["params"]
    return params, spectral.init(key_vectors, params) if config.model.spectral_norm else {}


def init_params(config: Config, key: PRNGKey) -> Params:
    """Untrained parameters of the network, spectrally normalised where the config says so."""
    return spectral.normalise(*_raw_params(config, key))


def _init(config: Config) -> TrainState:
    key_run, key_params, key_buffer = jax.random.split(jax.random.key(config.train.seed), 3)
    buffer = replay.init(
        key_buffer,
        config.buffer.capacity,
        tuple(config.data.shape),
        config.model.num_classes,
        choice(config, "buffer.dtype"),
    )
    return init_state(key_run, *_raw_params(config, key_params), make_optimizer(config), buffer)


def _shardings(mesh: Mesh) -> Any:
    return parallel.shardings(mesh, PARTITION)


def make_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out over the mesh; the same for any number of devices."""
    return jax.jit(lambda: _init(config), out_shardings=_shardings(mesh))()


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without making it."""

    def with_sharding(sharding, part):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

    return jax.tree.map(with_sharding, _shardings(mesh), jax.eval_shape(lambda: _init(config)))


def make_step(config: Config, mesh: Mesh) -> Callable:
    """The compiled training step (state, batch) -> (state, metrics) over all devices; it consumes its state."""
    objective = choice(config, "loss.objective")
    step = make_train_step(
        energy.from_module(make_network(config)),
        make_kernel(config),
        losses.regularised(objective, config.loss.energy_l2, choice(config, "loss.energy_l2_form")),
        make_optimizer(config),
        chain_steps=config.chain.num_steps,
        restart_prob=config.buffer.restart_prob,
        ring=config.buffer.ring,
        ema_decay=config.optim.ema_decay,
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
    apply = energy.from_module(make_network(config))

    def energy_fn(params: Params, images: Images, labels: Labels | None = None) -> Energies:
        return apply(params, images, labels)

    return energy_fn


def make_sample_fn(config: Config) -> Callable[..., Images]:
    """`sample_fn(params, key, *, labels=None, init=None) -> images`: float32 [n, h, w, c] in [0, 1].

    Chains of `sample.num_steps` steps from `init` [n, h, w, c], or from U[0, 1]; a pure function, to be jitted, vmapped
    and called again. n is that of `init` or of `labels` [n], else `sample.num_images`. Without labels a conditional
    model goes through its classes in turn.
    """
    apply = energy.from_module(make_network(config))
    kernel, quiet_kernel = make_kernel(config), make_kernel(config, temperature=0.0)
    num_classes, shape = config.model.num_classes, tuple(config.data.shape)
    num_images, num_steps, quiet_steps = config.sample.num_images, config.sample.num_steps, config.sample.quiet_steps

    def sample_fn(params: Params, key: PRNGKey, *, labels: Labels | None = None, init: Images | None = None) -> Images:
        key_init, key_chain = jax.random.split(key)
        if init is None:
            n = num_images if labels is None else len(labels)
            init = jax.random.uniform(key_init, (n, *shape))
        if labels is None:
            labels = jnp.arange(len(init)) % num_classes
        energy_fn = energy.bind(apply, params, labels)
        return applications.generate(key_chain, init, energy_fn, kernel, quiet_kernel, num_steps, quiet_steps)

    return sample_fn


def make_sampler(config: Config, mesh: Mesh) -> Callable:
    """The compiled (params, key, first) -> (images, labels, energies) of one batch of chains over all devices.

    A batch is `sample.batch_size` chains, at most `sample.num_images`, rounded up to a multiple of the devices. Chain i
    of a conditional model has the label (first + i) modulo the number of classes.
    """
    sample_fn, energy_fn = make_sample_fn(config), make_energy_fn(config)
    share = -(-min(config.sample.num_images, config.sample.batch_size) // mesh.size)

    def local(params: Params, key: PRNGKey, first: int | jax.Array) -> tuple[Images, Labels, Energies]:
        params = parallel.varying(params)
        places = first + jax.lax.axis_index(parallel.AXIS) * share + jnp.arange(share)
        labels = places % config.model.num_classes
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
