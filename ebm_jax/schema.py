"""What each key of a config may be by itself: its kind, and the range of a number."""

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ebm_jax.choices import value_of
from ebm_jax.types import BadInput, Config

INT32 = 2**31 - 1
SHOWN = 80  # characters of a value in a message, at most


class Limit(NamedTuple):
    """What a key may be."""

    kind: str
    """In words, such as "a whole number"."""
    is_kind: Callable[[Any], bool]
    range: str = ""
    """In words, such as "at least 1"."""
    in_range: Callable[[Any], bool] = lambda value: True


def whole(low: int, high: int = INT32) -> Limit:
    """A whole number from `low` to `high`."""
    limit = f"at least {low}" if high == INT32 else f"at least {low} and at most {high:,}"
    return Limit("a whole number", _is_whole, limit, lambda value: low <= value <= high)


def number(limit: str, holds: Callable[[float], bool], *, as_float32: bool = True) -> Limit:
    """A number whose value, rounded to the float32 that it becomes on the device, `holds`."""
    return Limit("a number", _is_number, limit, lambda value: holds(_rounded(value) if as_float32 else value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _rounded(value: int | float) -> float:
    """The nearest float32; what is too large for one is infinite."""
    with np.errstate(over="ignore"):
        return float(np.float32(_as_float(value)))


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # of a whole number with hundreds of digits
        return math.inf if value > 0 else -math.inf


def _is_shape(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_whole, value))


FLAG = Limit("True or False", lambda value: isinstance(value, bool))
LONGEST_TEXT = 4_200  # a path has at most 4,096 bytes
TEXT = Limit(
    "text",
    lambda value: isinstance(value, str),
    f"at most {LONGEST_TEXT} letters",
    lambda value: len(value) <= LONGEST_TEXT,
)
WORD = Limit("text", TEXT.is_kind, "some letters", lambda value: bool(value.strip()) and TEXT.in_range(value))
HASH = Limit(
    "text",
    TEXT.is_kind,
    "the beginning of a SHA-256 in hexadecimal digits, or empty",
    lambda value: len(value) <= 64 and set(value.lower()) <= set("0123456789abcdef"),
)
SHAPE = Limit(
    "whole numbers such as (32, 32, 3)",
    _is_shape,
    "of sizes from 1 to 4,096",
    lambda value: all(1 <= size <= 4096 for size in value),
)
SEED = whole(0, 2**32 - 1)  # JAX drops higher bits without a word
CHAIN_STEPS = whole(1, 1_000_000)  # keys and energies of all steps are kept until the end
POSITIVE = number("greater than 0 and finite, as float32", lambda value: 0 < value < math.inf)
ABOVE_ZERO = number("greater than 0, as float32", lambda value: value > 0)
NOT_NEGATIVE = number("at least 0 and finite, as float32", lambda value: 0 <= value < math.inf)
BELOW_ONE = number("at least 0 and below 1, as float32", lambda value: 0 <= value < 1)
PROBABILITY = number("a probability, 0 to 1", lambda value: 0 <= value <= 1)

LIMITS: dict[str, dict[str, Limit]] = {
    "data": {
        "source": WORD,
        "name": WORD,
        "condition": WORD,
        "shape": SHAPE,
        "split": WORD,
        "crop": FLAG,
        "dir": TEXT,
        "manual_dir": TEXT,
        "verify_checksums": FLAG,
        "max_unreadable": whole(0),
        "memory_gib": number("at least 0", lambda value: value >= 0, as_float32=False),
        "workers": whole(0, 1024),
    },
    "model": {
        "name": WORD,
        "width": whole(1, 16_384),
        "num_classes": whole(1, 1_000_000),
        "activation": WORD,
        "spectral_norm": FLAG,
        "attention": FLAG,
        "dropout": BELOW_ONE,
        "dropout_in_chains": FLAG,
        "dtype": WORD,
    },
    "chain": {
        "kernel": WORD,
        "num_steps": CHAIN_STEPS,
        "step_size": POSITIVE,
        "noise_scale": NOT_NEGATIVE,
        "tied": FLAG,
        "grad_clip": ABOVE_ZERO,
        "temperature": NOT_NEGATIVE,
        "anneal_from": NOT_NEGATIVE,
        "quiet_steps": whole(0),
        "num_leaps": whole(1, 10_000),
    },
    "buffer": {
        "capacity": whole(1),
        "restart_prob": PROBABILITY,
        "relabel_prob": PROBABILITY,
        "dtype": WORD,
        "ring": FLAG,
    },
    "loss": {
        "objective": WORD,
        "energy_l2": NOT_NEGATIVE,
        "energy_l2_form": WORD,
        "label_weight": NOT_NEGATIVE,
        "label_margin": POSITIVE,
        "wrong_labels": WORD,
    },
    "optim": {
        "learning_rate": POSITIVE,
        "b1": BELOW_ONE,
        "b2": BELOW_ONE,
        "clip_scale": NOT_NEGATIVE,
        "clip_offset": number("at least 0, as float32", lambda value: value >= 0),
        "ema_decay": BELOW_ONE,
    },
    "train": {
        "batch_size": whole(1, 1_000_000),
        "num_steps": whole(1),
        "seed": SEED,
        "num_models": whole(1, 100),
        "steps_per_call": whole(1, 1_000),
        "dry_run": FLAG,
        "cpu_devices": whole(0, 256),
    },
    "guard": {
        "enabled": FLAG,
        "max_energy": ABOVE_ZERO,
        "max_separation": ABOVE_ZERO,
        "max_chain_grad": ABOVE_ZERO,
        "min_chain_grad": NOT_NEGATIVE,
        "least_energy_l2": POSITIVE,
        "patience": whole(1),
        "max_rescues": whole(0, 1000),
        "rescue_learning_rate": number("greater than 0 and at most 1, as float32", lambda value: 0 < value <= 1),
        "rescue_chain": number("at least 1 and at most 10", lambda value: 1 <= value <= 10),
    },
    "sample": {
        "num_images": whole(1, 10_000_000),
        "batch_size": whole(1, 1_000_000),
        "num_steps": CHAIN_STEPS,
        "quiet_steps": whole(0),
        "anneal_from": NOT_NEGATIVE,
        "weights": WORD,
        "seed": SEED,
        "task": WORD,
        "labels": TEXT,
        "split": WORD,
        "mask": WORD,
        "corruption": WORD,
        "amount": NOT_NEGATIVE,
        "factor": whole(1),
        "strength": PROBABILITY,
        "with_runs": TEXT,
        "with_labels": TEXT,
        "snapshots": whole(1),
        "ensemble": WORD,
        "buffer_capacity": whole(0),
        "rounds": whole(1),
        "restart_prob": PROBABILITY,
        "relabel_prob": PROBABILITY,
        "film_every": whole(1),
        "neighbours": whole(1),
    },
    "eval": {
        "metrics": WORD,
        "num_samples": whole(1, 10_000_000),
        "samples": WORD,
        "split": WORD,
        "reference_split": WORD,
        "batch_size": whole(1, 1_000_000),
        "seed": SEED,
        "ood_sets": TEXT,
        "ood_images": whole(4, 10_000_000),
        "splits": whole(2, 1000),
        "inception_weights": TEXT,
        "inception_sha256": HASH,
        "inception_batch_size": whole(1, 1_000_000),
        "reference": TEXT,
        "kept_features": whole(2, 10_000_000),
        "kid_subsets": whole(2, 1_000_000),
        "kid_subset_size": whole(2, 1_000_000),
        "precision_neighbours": whole(1, 1_000_000),
        "coverage_neighbours": whole(1, 1_000_000),
        "classifier_dir": TEXT,
        "classifier_steps": whole(1, 10_000_000),
        "classifier_seed": SEED,
        "ais_chains": whole(2, 1_000_000),
        "ais_steps": CHAIN_STEPS,
        "ais_kernel": WORD,
        "ais_leaps": whole(1, 10_000),
        "ais_temperature": POSITIVE,
        "ais_burn_in": whole(16, 1_000_000),
        "ais_tolerance": POSITIVE,
        "chains_number": whole(2, 1_000_000),
        "chains_steps": whole(16, 1_000_000),
        "attack_images": whole(1, 10_000_000),
        "attack_linf": WORD,
        "attack_l2": WORD,
        "attack_steps": whole(1, 100_000),
        "attack_restarts": whole(1, 10_000),
        "attack_step_size": NOT_NEGATIVE,
        "attack_refine_steps": whole(0, 10_000),
        "attack_refine_radius": NOT_NEGATIVE,
        "attack_refine_temperature": NOT_NEGATIVE,
        "attack_keys": whole(1, 10_000),
    },
    "log": {"every": whole(1), "images_every": whole(0)},
    "checkpoint": {"every": whole(1), "keep": whole(1)},
}
KEYS = {f"{group}.{name}": limit for group, limits in LIMITS.items() for name, limit in limits.items()}


def as_config(found: Any, origin: str, cure: str) -> Config:
    """A locked config of what a person's file or a run's folder gave: all keys, no others, each of its kind.

    Lists become tuples, and whole numbers floats where a key takes any number. Ranges are left to `check_values`,
    because an override may yet change a value.

    Args:
      origin: names where it was found.
      cure: what to do about a missing key.

    Raises:
      BadInput: it is no config, a key is missing or unknown, or of another kind.
    """
    if not isinstance(found, ConfigDict):
        raise BadInput(f"{origin} gives {type(found).__name__}, not a ConfigDict; change that of configs/default.py")
    try:
        values = _flat(found.to_dict())
    except Exception as error:  # ml_collections raises its own, of a required placeholder that is empty, say
        raise BadInput(f"{origin} cannot be read: {type(error).__name__} {error}") from error
    for key in values:
        if key not in KEYS:
            raise BadInput(f"{origin} has {shown(key)}, which is no key; did you mean {nearest(key)}?")
    if missing := [key for key in KEYS if key not in values]:
        others = f" and {len(missing) - 1} more keys" if missing[1:] else ""
        raise BadInput(f"{origin} has no {missing[0]}{others}; {cure}")
    for key, limit in KEYS.items():
        _check_kind(f"{origin}: {key}", values[key], limit)
    config = ConfigDict()
    for group, limits in LIMITS.items():
        config[group] = {name: _stored(values[f"{group}.{name}"], limit) for name, limit in limits.items()}
    return config.lock()


def _flat(groups: dict[Any, Any]) -> dict[str, Any]:
    """{"group.name": value}; what is no group stands under its own name."""
    pairs = [(group, fields if isinstance(fields, dict) else {None: fields}) for group, fields in groups.items()]
    return {
        str(group) if name is None else f"{group}.{name}": value
        for group, fields in pairs
        for name, value in fields.items()
    }


def _stored(value: Any, limit: Limit) -> Any:
    if limit is SHAPE:
        return tuple(value)
    return _as_float(value) if limit.kind == "a number" else value


def nearest(key: str) -> str:
    """The key of a config that looks most like this one."""
    return difflib.get_close_matches(key, KEYS, 1, 0.0)[0]


def shown(value: Any) -> str:
    """A value in a message: on one line, and not endless."""
    try:
        text = str(value) if isinstance(value, (int, float, tuple, list)) else repr(value)
    except Exception as error:  # a whole number of thousands of digits, a class of the user's own
        return f"{type(value).__name__} ({type(error).__name__})"
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def check_values(config: Config) -> None:
    """Refuse a value that is of another kind than its key's, or out of its range.

    Raises:
      BadInput: with the key, its value and the limit.
    """
    for key, limit in KEYS.items():
        value = value_of(config, key)
        _check_kind(key, value, limit)
        if not limit.in_range(value):  # written so that NaN fails too
            raise BadInput(f"{key} {shown(value)} is out of range; it must be {limit.range}")


def _check_kind(key: str, value: Any, limit: Limit) -> None:
    if not limit.is_kind(value):
        raise BadInput(f"{key} {shown(value)} is of the type {type(value).__name__}; it must be {limit.kind}")
