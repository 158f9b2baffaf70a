"""What the values of a config may be together, on a number of devices."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ebm_jax.choices import choice
from ebm_jax.data.sources import SOURCES, factory_of
from ebm_jax.labels import SOFT, sample_labels
from ebm_jax.methods import METHODS, label, losses
from ebm_jax.models.layers import ACTIVATIONS
from ebm_jax.models.networks import NETWORKS
from ebm_jax.registry import named
from ebm_jax.sampling import KERNELS
from ebm_jax.schema import check_values, flat, value_of
from ebm_jax.storage.workdir import describe, read_config
from ebm_jax.types import BadInput, Config, Folder

NAMES = {  # what the names at these keys are looked up in
    "model.name": NETWORKS,
    "model.activation": ACTIVATIONS,
    "method.name": METHODS,
    "chain.kernel": KERNELS,
    "loss.objective": losses.OBJECTIVES,
    "loss.energy_l2_form": losses.PENALTIES,
    "loss.wrong_labels": label.WRONG_LABELS,
}
METROPOLIS = ("mala", "hmc")  # kernels with a test, which has no temperature 0 and needs one energy
SMALLEST_SIDE = 8  # pixels: three halvings; with fewer no pixel would be left, and the energy be constant
SMALLEST_SIDES = {"resnet128": 32}  # of networks that halve more often
RESIDUAL = ("resnet32", "resnet32_large", "resnet32_wider", "resnet128")  # networks with dropout and attention


def check(config: Config, num_devices: int) -> None:
    """Refuse, before anything runs or is written, what cannot work on `num_devices` devices.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """

    check_values(config)
    for key, table in NAMES.items():
        named(key, value_of(config, key), table)
    if config.data.source != "density":
        factory_of(config.data.source)
    for group in ("chain", "sample"):
        steps = value_of(config, f"{group}.num_steps")
        _require(config, f"{group}.quiet_steps", range(steps + 1).__contains__, f"at most {group}.num_steps, {steps}")
        if value_of(config, f"{group}.anneal_from") and not config.chain.temperature:
            raise BadInput(
                f"{group}.anneal_from {value_of(config, f'{group}.anneal_from')} needs a chain.temperature above 0, to "
                f"which it falls geometrically; use {group}.anneal_from=0"
            )
    if config.chain.kernel in METROPOLIS:
        _check_metropolis(config)
    _check_start(config)
    _check_shape(config)
    _check_network(config)
    for key in ("train.batch_size", "buffer.capacity"):
        _require_multiple(config, key, num_devices, "devices")
    _require_multiple(config, "train.num_steps", config.train.steps_per_call, "train.steps_per_call")
    if config.buffer.capacity < config.train.batch_size:
        raise BadInput(
            f"buffer.capacity {config.buffer.capacity} is smaller than train.batch_size {config.train.batch_size}; "
            f"use at least {config.train.batch_size}"
        )


def _require_multiple(config: Config, key: str, divisor: int, of: str) -> None:
    value = value_of(config, key)
    if value % divisor:
        low = value // divisor * divisor
        options = f"{low} or {low + divisor}" if low else f"{divisor}"
        raise BadInput(f"{key} {value} is not divisible by {divisor} {of}; use {options}")


def check_task(config: Config, num_devices: int) -> None:
    """Refuse what `--mode=sample` cannot do with a run, beyond what `check` refuses.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """
    sample, needs_images = config.sample, ("transition", "inpaint", "restore", "super_resolve", "colourise", "classify")
    if len(config.data.shape) != 3 and sample.task not in ("generate", "compose"):
        raise BadInput(f"sample.task {sample.task} needs images; {config.data.name} is a 2-D density, use generate")
    if config.data.source == "density" and sample.task in needs_images:
        raise BadInput(f"sample.task {sample.task} needs images to start from; a density has none")
    if sample.task != "compose":
        sample_labels(config, jnp.zeros(1, jnp.int32))
    if sample.task == "restore":
        side = max(config.data.shape[:2])
        limits = {
            "salt_and_pepper": (0.0, 1.0, "a share from 0 to 1"),
            "blur": (1e-3, side, f"from 0.001 to {side} pixels"),
        }
        low, high, limit = limits.get(sample.restore.corruption, (0.0, math.inf, ""))
        if not low <= sample.restore.amount <= high:
            raise BadInput(
                f"sample.restore.amount {sample.restore.amount} is out of range; for {sample.restore.corruption} it must be {limit}"
            )
    if sample.task == "super_resolve" and any(size % sample.super_resolve.factor for size in config.data.shape[:2]):
        height, width, _ = config.data.shape
        raise BadInput(
            f"sample.super_resolve.factor {sample.super_resolve.factor} does not divide {height}x{width} pixels; use one that does"
        )
    if sample.buffer_capacity and sample.task != "generate":
        raise BadInput(f"sample.buffer_capacity is for sample.task generate, not {sample.task}; use 0")
    _check_sampling_buffer(config, "sample", "num_images", num_devices)


def check_evaluation(config: Config, num_devices: int) -> None:
    """Refuse what `--mode=evaluate` cannot do with a run on this many devices, beyond what `check` refuses.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """
    if config.data.source == "density":
        raise BadInput(
            f"--mode=evaluate needs images, and {config.data.name} is a 2-D density; its exact divergence is in the "
            "run's evaluation.jsonl"
        )
    if choice(config, "eval.samples") and config.sample.buffer_capacity:
        raise BadInput(
            "eval.samples buffer judges the training buffer, and sample.buffer_capacity "
            f"{config.sample.buffer_capacity} asks for a sampling buffer; use sample.buffer_capacity=0, or "
            "eval.samples=fresh"
        )
    _check_sampling_buffer(config, "eval", "num_samples", num_devices)
    chains = config.buffer.capacity * config.train.num_models
    if choice(config, "eval.samples") and config.eval.num_samples > chains:
        raise BadInput(
            f"eval.num_samples {config.eval.num_samples} is more than the {chains} chains of the training buffer; use "
            f"at most {chains}, or eval.samples=fresh"
        )
    sample_labels(config, jnp.zeros(1, jnp.int32))


def check_member(config: Config, folder: Folder) -> None:
    """Refuse a run that cannot be a member of an ensemble with a run of `config`.

    Raises:
      BadInput: its network or images are others.
    """
    mine, other = flat(config), flat(read_config(folder))
    keys = [key for key in mine if key.startswith("model.") or key == "data.shape"]
    if differing := {key: (other.get(key, "absent"), mine[key]) for key in keys if other.get(key) != mine[key]}:
        raise BadInput(f"{folder} cannot be a member of this ensemble: {describe(differing)}; use runs of one network")


def _check_sampling_buffer(config: Config, group: str, number: str, num_devices: int) -> None:
    """Refuse turns without a sampling buffer, and one too small for `group`'s images and batches, or not divisible."""
    sample, images, batch = config.sample, config[group][number], config[group].batch_size
    if sample.ensemble == "turns" and not sample.buffer_capacity:
        raise BadInput("sample.ensemble turns needs a sampling buffer; set sample.buffer_capacity, 1000 for example")
    smallest = max(images, -(-min(images, batch) // num_devices) * num_devices)
    if sample.buffer_capacity and (sample.buffer_capacity < smallest or sample.buffer_capacity % num_devices):
        use = -(-max(sample.buffer_capacity, smallest) // num_devices) * num_devices
        raise BadInput(
            f"sample.buffer_capacity {sample.buffer_capacity} must hold {group}.{number} {images} and be divisible by "
            f"{num_devices} devices; use {use}"
        )


def _check_metropolis(config: Config) -> None:
    kernel = f"chain.kernel {config.chain.kernel}"
    if config.chain.temperature == 0:
        raise BadInput(f"{kernel} needs a chain.temperature above 0, not 0; or use langevin")
    if config.model.resnet.dropout and config.model.resnet.dropout_in_chains:
        raise BadInput(f"{kernel} needs one energy for a whole chain; use model.resnet.dropout_in_chains=False")


def _check_start(config: Config) -> None:
    """Refuse a buffer that cannot hold the values that chains start with."""
    if config.chain.base != "uniform" and config.buffer.dtype == "uint8":
        raise BadInput(
            f"chain.base {config.chain.base} goes beyond [0, 1], which is all that buffer.dtype uint8 can hold; use "
            "float32 or bfloat16"
        )


def _check_shape(config: Config) -> None:
    key = "data.shape"
    if config.data.source == "density":
        _require(config, key, lambda shape: tuple(shape) == (2,), "(2,) for a 2-D density")
        return
    _require(config, key, lambda shape: len(shape) == 3, "(height, width, channels)")
    if config.model.name in NETWORKS:
        side = SMALLEST_SIDES.get(config.model.name, SMALLEST_SIDE)
        limit = f"at least {side} pixels a side for model.name {config.model.name}"
        _require(config, key, lambda shape: min(shape[:2]) >= side, limit)
    _require(config, key, lambda shape: shape[2] in (1, 3), "of 1 or 3 channels")


def _require(config: Config, key: str, holds: Callable[[Any], bool], limit: str) -> None:
    value = value_of(config, key)
    if not holds(value):
        raise BadInput(f"{key} {value} is out of range; it must be {limit}")


def _check_network(config: Config) -> None:
    model, condition = config.model, config.data.condition
    if model.name in NETWORKS and model.name not in RESIDUAL and (model.resnet.attention or model.resnet.dropout):
        key = "attention" if model.resnet.attention else "dropout"
        raise BadInput(
            f"model.resnet.{key} {value_of(config, f'model.resnet.{key}')} does not go with model.name {model.name}; use one of "
            f"{', '.join(RESIDUAL)}"
        )
    halved = model.name == "dsprites" or (model.resnet.attention and model.name != "resnet32_large")
    if model.width == 1 and halved:
        raise BadInput(f"model.width 1 leaves {model.name} a layer of width / 2 = 0 channels; use at least 2")
    if model.name in NETWORKS and (model.name == "mlp") != (config.data.source == "density"):
        raise BadInput(f"model.name {model.name} does not fit data.source {config.data.source}; density needs mlp")
    if model.name == "mlp" and model.num_classes > 1:
        raise BadInput(f"model.num_classes {model.num_classes} is out of range; mlp takes no labels, use 1")
    if config.loss.label_weight and (model.num_classes == 1 or condition in SOFT):
        raise BadInput(
            f"loss.label_weight {config.loss.label_weight} needs classes: model.num_classes is {model.num_classes}, "
            f"data.condition {condition}; use 0"
        )
    length = SOFT.get(condition)
    if length not in (None, model.num_classes):
        raise BadInput(f"model.num_classes {model.num_classes} does not fit data.condition {condition}; use {length}")
    kind = config.data.source.partition(":")[0]
    if kind not in SOURCES and config.data.source != "density":
        return  # of the user's own, which says itself what labels it has
    if condition == "soft" and kind not in ("npz", "noise"):
        raise BadInput(f"data.condition soft is not in data.source {config.data.source}; use class, or an .npz file")
    if condition not in ("class", "soft") and config.data.source not in ("tfds", "shapes", "noise"):
        raise BadInput(f"data.condition '{condition}' is not in data.source {config.data.source}; use class")
