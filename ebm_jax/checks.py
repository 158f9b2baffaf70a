"""Checks that the values of a config go together, on a given number of devices."""

from collections.abc import Callable
from typing import Any

from ebm_jax.data.sources import SOURCES, factory_of
from ebm_jax.kinds import SOFT
from ebm_jax.methods import METHODS, ORDERINGS, label, losses
from ebm_jax.models.layers import ACTIVATIONS
from ebm_jax.models.networks import NETWORKS, UNETS
from ebm_jax.registry import named
from ebm_jax.sampling import KERNELS
from ebm_jax.schema import as_config, check_values, value_of
from ebm_jax.types import BadInput, Config

NAMES = {  # the table of the names at each key
    "model.name": NETWORKS,
    "model.activation": ACTIVATIONS,
    "method.name": METHODS,
    "method.then.name": METHODS,
    "chain.kernel": KERNELS,
    "loss.objective": losses.OBJECTIVES,
    "loss.energy_l2_form": losses.PENALTIES,
    "loss.wrong_labels": label.WRONG_LABELS,
}
METROPOLIS = ("mala", "hmc")  # their test needs a temperature above 0, and one energy for a whole chain
SMALLEST_SIDE = 8  # pixels: three halvings of a smaller image leave no pixel, and the energy is constant
SMALLEST_SIDES = {"multiscale": 16, "resnet128": 32}  # for networks that halve more often
FAMILIES = (  # methods that report the same metrics, and so cannot be summed
    ("contrastive", "improved", "joint", "fresh_contrast"),
    ("equilibrium", "energy_matching"),
    ("denoising",),
    ("noise_contrastive",),
    ("label",),
)
WITHOUT_LOGITS = ("mlp", *UNETS)
RESIDUAL = ("resnet32", "resnet32_large", "resnet32_wider", "resnet128")  # networks with dropout and attention


def check(config: Config, num_devices: int) -> None:
    """Refuse a config that cannot work on `num_devices` devices, before anything runs or is written.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """
    _check_use(config)
    if config.data.source != "density":
        factory_of(config.data.source)
    for key in ("train.batch_size", "buffer.capacity"):
        _require_multiple(config, key, num_devices, "devices")
    _require_multiple(config, "train.num_steps", config.train.steps_per_call, "train.steps_per_call")
    if config.buffer.capacity < config.train.batch_size:
        raise BadInput(
            f"buffer.capacity {config.buffer.capacity} is smaller than train.batch_size {config.train.batch_size}; "
            f"use at least {config.train.batch_size}"
        )


def usable(config: Any) -> Config:
    """The config that a caller gives to a Python function, locked and under present names.

    Raises:
      BadInput: it is no config, has an unknown key or lacks one, or no energy or chain can be made of it.
    """
    config = as_config(config, "the config")
    _check_use(config)
    return config


def _check_use(config: Config) -> None:
    """Refuse a config of which no energy or chain can be made, whatever the data and the devices."""
    check_values(config)
    for key, table in NAMES.items():
        named(key, value_of(config, key), table)
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
    _check_augment(config)
    _check_sum(config)
    _check_levels(config)
    _check_shape(config)
    _check_network(config)


def _check_guidance(config: Config) -> None:
    """Refuse an empty interval of guidance, and one for a method whose chains pass no known shares of data."""
    sample, name = config.sample, config.method.name
    if sample.guidance_from >= sample.guidance_until:
        raise BadInput(
            f"sample.guidance_from {sample.guidance_from} is not below sample.guidance_until {sample.guidance_until}; "
            "use 0 and 1 for guidance all the way"
        )
    if (sample.guidance_from, sample.guidance_until) != (0.0, 1.0) and name not in ORDERINGS:
        raise BadInput(
            f"sample.guidance_from {sample.guidance_from} and guidance_until {sample.guidance_until} need descent from "
            f"noise, of which the share of data is known, and method.name {name} has none; use 0 and 1"
        )


def _check_keep(config: Config) -> None:
    """Refuse a choice among samples of a model without classes, or among chains of a sampling buffer."""
    sample, model, condition = config.sample, config.model, config.data.condition
    if sample.keep == 1:
        return
    if model.num_classes == 1 or condition in SOFT:
        raise BadInput(
            f"sample.keep {sample.keep} needs classes: model.num_classes is {model.num_classes}, data.condition "
            f"{condition}; use 1"
        )
    if sample.buffer_capacity:
        raise BadInput(
            f"sample.keep {sample.keep} chooses among fresh chains, and sample.buffer_capacity "
            f"{sample.buffer_capacity} asks for those of a buffer; use sample.keep=1, or sample.buffer_capacity=0"
        )


def is_density(config: Config) -> bool:
    """Whether the run's energy U is meant as a log-density, exp(-U/T)/Z; else it only orders images by their noise."""
    return config.method.name not in ORDERINGS or config.method.then.after > 0


def require_density(config: Config, what: str, cure: str) -> None:
    """Refuse what asks an energy for a density that it has not.

    Raises:
      BadInput: with `what` asks, and the cure.
    """
    if not is_density(config):
        raise BadInput(
            f"{what} needs exp(-U) to be a density, and the energy of method.name {config.method.name} only orders "
            f"images by how noisy they are; {cure}, or let contrastive divergence join it (method.then.after)"
        )


def _require_multiple(config: Config, key: str, divisor: int, of: str) -> None:
    value = value_of(config, key)
    if value % divisor:
        low = value // divisor * divisor
        options = f"{low} or {low + divisor}" if low else f"{divisor}"
        raise BadInput(f"{key} {value} is not divisible by {divisor} {of}; use {options}")


def _check_metropolis(config: Config) -> None:
    kernel = f"chain.kernel {config.chain.kernel}"
    require_density(config, f"the Metropolis test of {kernel}", "use descent or langevin")
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


def _check_augment(config: Config) -> None:
    """Refuse to crop and colour chains that are no images in [0, 1]."""
    if not config.buffer.augment:
        return
    what = f"buffer.augment {config.buffer.augment} crops and colours images in [0, 1]"
    if config.data.source == "density":
        raise BadInput(f"{what}, and the data are points; use 0")
    if config.chain.base != "uniform":
        raise BadInput(f"{what}, and chains of chain.base {config.chain.base} go beyond; use 0, or chain.base=uniform")


def _check_sum(config: Config) -> None:
    """Refuse to sum two methods of one family."""
    method, label = config.method, "label" if config.loss.label_weight else ""
    joins = method.then.name if method.then.after else ""
    if label and label in (method.name, joins):
        raise BadInput(
            f"loss.label_weight {config.loss.label_weight} adds the method label, which the config names already; use 0"
        )
    if any(method.name in family and joins in family for family in FAMILIES):
        raise BadInput(
            f"method.then.name {joins} cannot join method.name {method.name}, which measures the same; use "
            "method.then.after=0, or another first method, such as equilibrium"
        )


def _check_levels(config: Config) -> None:
    """Refuse levels of noise of which the smallest is above the largest."""
    denoising = config.method.denoising
    least, most = denoising.least or denoising.sigma, denoising.most or denoising.sigma
    if config.method.name == "denoising" and least > most:
        raise BadInput(
            f"method.denoising.least {least} is above method.denoising.most {most}; use at most that (0 is "
            f"method.denoising.sigma, {denoising.sigma})"
        )


def _check_shape(config: Config) -> None:
    key = "data.shape"
    if config.data.source == "density":
        _require(config, key, lambda shape: tuple(shape) == (2,), "(2,) for a 2-D density")
        _require(config, "data.holdout", lambda share: share == 0, "0 for a 2-D density, whose draws are always new")
        require_density(config, "data.source density, which measures exp(-U / T),", "use method.name contrastive")
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
            f"model.resnet.{key} {value_of(config, f'model.resnet.{key}')} does not go with model.name {model.name}; "
            f"use one of {', '.join(RESIDUAL)}"
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
    if model.logits and (model.num_classes == 1 or condition in SOFT):
        raise BadInput(
            f"model.logits True needs classes: model.num_classes is {model.num_classes}, data.condition {condition}; "
            "use False"
        )
    if model.logits and model.name in WITHOUT_LOGITS:
        raise BadInput(f"model.logits True does not go with model.name {model.name}; use False, or small or a resnet")
    if config.method.name == "joint" and model.name in NETWORKS and not model.logits:
        raise BadInput("method.name joint needs a classifier of several classes; use model.logits=True")
    if model.name in UNETS and model.spectral_norm:
        raise BadInput(
            f"model.spectral_norm True does not go with model.name {model.name}, which has other norms; use False"
        )
    if config.sample.guidance and model.num_classes == 1 and condition not in SOFT:
        raise BadInput(
            f"sample.guidance {config.sample.guidance} needs a model of classes, and model.num_classes is 1; use 0"
        )
    _check_guidance(config)
    _check_keep(config)
    length = SOFT.get(condition)
    if length not in (None, model.num_classes):
        raise BadInput(f"model.num_classes {model.num_classes} does not fit data.condition {condition}; use {length}")
    kind = config.data.source.partition(":")[0]
    if kind not in SOURCES and config.data.source != "density":
        return  # the user's own source states its labels itself
    if condition == "soft" and kind not in ("npz", "noise"):
        raise BadInput(f"data.condition soft is not in data.source {config.data.source}; use class, or an .npz file")
    if condition not in ("class", "soft") and config.data.source not in ("tfds", "shapes", "noise"):
        raise BadInput(f"data.condition '{condition}' is not in data.source {config.data.source}; use class")
