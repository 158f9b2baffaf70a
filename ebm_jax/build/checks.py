"""What a config may say: the limits of its values, and the dry run, which makes any config tiny."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ebm_jax.build.choices import CHOICES, SOFT, among, choice, sample_labels, value_of
from ebm_jax.build.datasets import SOURCES
from ebm_jax.io.workdir import describe, flat, read_config
from ebm_jax.types import BadInput, Config

AT_LEAST_ONE = ["model.width", "model.num_classes", "chain.num_steps", "chain.num_leaps", "buffer.capacity"]
AT_LEAST_ONE += ["train.batch_size", "train.num_steps", "train.num_models", "sample.num_images", "sample.batch_size"]
AT_LEAST_ONE += ["sample.snapshots", "sample.rounds", "sample.film_every", "sample.factor", "sample.neighbours"]
AT_LEAST_ONE += ["sample.num_steps", "log.every", "checkpoint.every", "checkpoint.keep"]
NOT_NEGATIVE = ["chain.noise_scale", "chain.temperature", "chain.anneal_from", "chain.quiet_steps", "loss.energy_l2"]
NOT_NEGATIVE += ["loss.label_weight", "optim.clip_scale", "optim.clip_offset", "train.seed", "train.cpu_devices"]
NOT_NEGATIVE += ["sample.seed", "sample.quiet_steps", "sample.anneal_from", "log.images_every"]
NOT_NEGATIVE += ["sample.buffer_capacity", "sample.amount", "guard.max_rescues", "guard.min_chain_grad"]
NOT_NEGATIVE += ["data.max_unreadable", "data.memory_gib", "data.workers"]
AT_LEAST_ONE += ["guard.patience", "guard.rescue_chain"]
POSITIVE = ["guard.max_energy", "guard.max_separation", "guard.max_chain_grad", "guard.least_energy_l2"]
POSITIVE += ["loss.label_margin", "chain.step_size", "chain.grad_clip", "optim.learning_rate"]
PROBABILITIES = ["buffer.restart_prob", "buffer.relabel_prob", "sample.restart_prob", "sample.relabel_prob"]
PROBABILITIES += ["sample.strength"]
BELOW_ONE = ["optim.b1", "optim.b2", "optim.ema_decay", "model.dropout"]
SMALLEST_SIDE = 8  # pixels: three halvings
RESIDUAL = ("resnet32", "resnet32_large", "resnet32_wider", "resnet128")  # networks with dropout and attention
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
    among("data.source", config.data.source.partition(":")[0], SOURCES | {"density": None})
    require(AT_LEAST_ONE, lambda value: value >= 1, "at least 1")
    require(NOT_NEGATIVE, lambda value: value >= 0, "at least 0")
    require(POSITIVE, lambda value: value > 0, "greater than 0")
    finite = ["chain.step_size", "chain.noise_scale", "optim.learning_rate", "guard.least_energy_l2"]
    require([*finite, "guard.rescue_chain"], math.isfinite, "finite")
    require(["guard.rescue_learning_rate"], lambda value: 0 < value <= 1, "greater than 0 and at most 1")
    require(BELOW_ONE, lambda value: 0 <= value < 1, "at least 0 and below 1")
    require(PROBABILITIES, lambda value: 0 <= value <= 1, "a probability, 0 to 1")
    for group in ("chain", "sample"):
        steps = getattr(config, group).num_steps
        require([f"{group}.quiet_steps"], lambda value: value <= steps, f"at most {group}.num_steps, {steps}")  # noqa: B023
    if config.chain.kernel != "langevin":
        _check_metropolis(config)
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
    if sample.ensemble == "turns" and not sample.buffer_capacity:
        raise BadInput("sample.ensemble turns needs a sampling buffer; set sample.buffer_capacity, 1000 for example")
    if sample.buffer_capacity and sample.task != "generate":
        raise BadInput(f"sample.buffer_capacity is for sample.task generate, not {sample.task}; use 0")
    smallest = max(sample.num_images, -(-min(sample.num_images, sample.batch_size) // num_devices) * num_devices)
    if sample.buffer_capacity and (sample.buffer_capacity < smallest or sample.buffer_capacity % num_devices):
        use = -(-max(sample.buffer_capacity, smallest) // num_devices) * num_devices
        raise BadInput(
            f"sample.buffer_capacity {sample.buffer_capacity} must hold sample.num_images {sample.num_images} and be "
            f"divisible by {num_devices} devices; use {use}"
        )


def check_member(config: Config, folder: Path) -> None:
    """Refuse a run that cannot be a member of an ensemble with a run of `config`.

    Raises:
      BadInput: its network or images are others.
    """
    mine, other = flat(config), flat(read_config(folder))
    keys = [key for key in mine if key.startswith("model.") or key == "data.shape"]
    if differing := {key: (other.get(key, "absent"), mine[key]) for key in keys if other.get(key) != mine[key]}:
        raise BadInput(f"{folder} cannot be a member of this ensemble: {describe(differing)}; use runs of one network")


def _check_metropolis(config: Config) -> None:
    kernel = f"chain.kernel {config.chain.kernel}"
    if not config.chain.tied or config.chain.temperature == 0:
        raise BadInput(f"{kernel} needs chain.tied=True and a chain.temperature above 0; or use langevin")
    if config.model.dropout and config.model.dropout_in_chains:
        raise BadInput(f"{kernel} needs one energy for a whole chain; use model.dropout_in_chains=False")


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
    if config.loss.label_weight and (model.num_classes == 1 or condition in SOFT):
        raise BadInput(
            f"loss.label_weight {config.loss.label_weight} needs classes: model.num_classes is {model.num_classes}, "
            f"data.condition {condition}; use 0"
        )
    length = SOFT.get(condition)
    if length not in (None, model.num_classes):
        raise BadInput(f"model.num_classes {model.num_classes} does not fit data.condition {condition}; use {length}")
    if condition not in ("class", "soft") and config.data.source not in ("tfds", "shapes", "noise"):
        raise BadInput(f"data.condition '{condition}' is not in data.source {config.data.source}; use class or soft")
