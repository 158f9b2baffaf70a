"""What the names in a config stand for."""

import difflib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ebm_jax.distributed import parallel
from ebm_jax.labels import EXAMPLES, SOFT, check_labels, example_labels, label_shape, parse_labels, sample_labels  # noqa
from ebm_jax.methods import label, losses
from ebm_jax.models import layers, networks
from ebm_jax.schema import value_of  # noqa
from ebm_jax.storage import bucket
from ebm_jax.types import BadInput, Config, Folder

TASKS = ("generate", "film", "transition", "compose", "inpaint", "restore", "super_resolve", "colourise")
TASKS += ("classify", "neighbours")
CHOICES: dict[str, dict[str, Any]] = {
    "model.name": dict(networks.NETWORKS),
    "chain.kernel": {"langevin": None, "mala": None, "hmc": None},
    "model.activation": {"leaky_relu": layers.leaky_relu, "swish": nn.swish},
    "model.dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16},
    "buffer.dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "uint8": jnp.uint8},
    "loss.objective": {
        "cd": losses.contrastive_divergence,
        "softplus": losses.softplus,
        "logsumexp": losses.logsumexp(parallel.gather),
    },
    "loss.wrong_labels": {"any": label.of_any_class, "batch": label.of_the_batch},
    "loss.energy_l2_form": {"sum": losses.energy_l2_sum, "difference": losses.energy_l2_difference},
    "sample.weights": {"ema": True, "raw": False},
    "sample.ensemble": {"mean": False, "turns": True},
    "sample.task": dict.fromkeys(TASKS),
    "eval.samples": {"fresh": False, "buffer": True},
    "eval.ais.kernel": {"hmc": None, "mala": None},
    "sample.restore.corruption": dict.fromkeys(("salt_and_pepper", "noise", "blur")),
}


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


def other_runs(config: Config) -> list[Folder]:
    """The folders of `sample.with_runs`."""
    return [bucket.folder_of(name.strip()) for name in config.sample.with_runs.split(",") if name.strip()]
