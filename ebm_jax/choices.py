"""What the names in a config stand for."""

import difflib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ebm_jax import labels
from ebm_jax.distributed import parallel
from ebm_jax.methods import losses
from ebm_jax.models import layers, networks
from ebm_jax.storage import bucket
from ebm_jax.training import step
from ebm_jax.types import BadInput, Config, Folder, Labels, Places

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
    "chain.kernel": {"langevin": None, "mala": None, "hmc": None},
    "model.activation": {"leaky_relu": layers.leaky_relu, "swish": nn.swish},
    "model.dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16},
    "buffer.dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "uint8": jnp.uint8},
    "loss.objective": {
        "cd": losses.contrastive_divergence,
        "softplus": losses.softplus,
        "logsumexp": losses.logsumexp(parallel.gather),
    },
    "loss.wrong_labels": {"any": step.of_any_class, "batch": step.of_the_batch},
    "loss.energy_l2_form": {"sum": losses.energy_l2_sum, "difference": losses.energy_l2_difference},
    "sample.weights": {"ema": True, "raw": False},
    "sample.ensemble": {"mean": False, "turns": True},
    "eval.samples": {"fresh": False, "buffer": True},
    "eval.ais.kernel": {"hmc": None, "mala": None},
    "sample.restore.corruption": dict.fromkeys(("salt_and_pepper", "noise", "blur")),
}
SOFT = {"soft": None, "size": 1, "position": 2, "rotation": 2}  # conditions whose labels are vectors, of what length
EXAMPLES = {  # labels to sample under, of conditions that are not classes
    "soft": labels.one_hot,
    "size": labels.size,
    "position": labels.position,
    "rotation": labels.rotation,
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
    return among(key, value_of(config, key), CHOICES[key])


def among(key: str, name: str, options: dict[str, Any]) -> Any:
    """The option of this name.

    Raises:
      BadInput: there is none; the message names `key`.
    """
    if name not in options:
        near = difflib.get_close_matches(str(name), options, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(f"{key} '{name}' is unknown; use one of {', '.join(options)}{hint}")
    return options[name]


def label_shape(config: Config) -> tuple[int, ...] | None:
    """The shape of one label: None for an integer, (k,) for a soft one."""
    return (config.model.num_classes,) if config.data.condition in SOFT else None


def check_labels(config: Config, labels: Labels, num_images: Any) -> None:
    """Refuse labels that do not fit the model, or not `num_images` images; under jit only their shape is known.

    Raises:
      BadInput: with the shape or the first class that is wrong, and what fits.
    """
    num_classes, shape = config.model.num_classes, label_shape(config)
    if labels.shape != (num_images, *(shape or ())):
        one = "integer" if shape is None else f"vector of {num_classes}"
        raise BadInput(f"labels of shape {labels.shape} for {num_images} images; give one {one} for each image")
    if shape is not None or num_classes == 1 or isinstance(labels, Tracer):
        return
    wrong = np.asarray(labels)[(np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes)]
    if len(wrong):
        raise BadInput(f"label {wrong[0]} is out of range; this model has the classes 0 to {num_classes - 1}")


def example_labels(config: Config, places: Places) -> Labels:
    """Labels to sample under at these places of a picture; all 0 for an unconditional model."""
    return EXAMPLES.get(config.data.condition, labels.classes)(places, config.model.num_classes)


def other_runs(config: Config) -> list[Folder]:
    """The folders of `sample.with_runs`."""
    return [bucket.folder_of(name.strip()) for name in config.sample.with_runs.split(",") if name.strip()]


def sample_labels(config: Config, places: Places) -> Labels:
    """The labels of `sample.labels` in turn at these places of a picture, or where it is empty the example labels.

    Raises:
      BadInput: as `parse_labels`; or it has sums, which only task=compose takes.
    """
    terms = parse_labels(config, "sample.labels")
    if not terms:
        return example_labels(config, places)
    if len(terms) > 1:
        raise BadInput(f"sample.labels '{config.sample.labels}' sums energies; that is sample.task=compose")
    return terms[0][places % len(terms[0])]


def parse_labels(config: Config, key: str) -> list[Labels]:
    """The labels at a key: terms apart by "+", in each values apart by ",", each a class or numbers apart by blanks.

    "3": class 3. "3,5": classes 3 and 5 in turn. "1+3": the sum of the energies of 1 and 3. "0.5 0.5": a position.

    Raises:
      BadInput: no number, a class that the model does not have, a vector of another length.
    """
    text, num_classes, shape = value_of(config, key), config.model.num_classes, label_shape(config)
    if not text.strip():
        return []
    try:
        terms = [[[float(number) for number in entry.split()] for entry in term.split(",")] for term in text.split("+")]
    except ValueError:
        raise BadInput(f"{key} '{text}' is not labels; use for example 3, or 3,5, or 0.5 0.5") from None
    length = 1 if shape is None else shape[0]
    for entry in [entry for term in terms for entry in term]:
        if len(entry) != length:
            raise BadInput(f"{key} '{text}' has a label of {len(entry)} numbers; this model's have {length}")
        if shape is None and not (entry[0].is_integer() and 0 <= entry[0] < num_classes):
            raise BadInput(f"{key} '{text}': label {entry[0]:g} is out of range; use 0 to {num_classes - 1}")
    if shape is None:
        return [jnp.asarray(term, jnp.int32)[:, 0] for term in terms]
    return [jnp.asarray(term, jnp.float32) for term in terms]
