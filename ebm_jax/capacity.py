"""The least memory that a run needs; a run that cannot fit is refused before it is tried."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ebm_jax.distributed import parallel
from ebm_jax.program import abstract_state
from ebm_jax.schema import value_of
from ebm_jax.types import BadInput, Config

GIB = 2**30
KEYS = {"parameters": "model.width or model.num_classes", "buffer": "buffer.capacity", "batch": "train.batch_size"}


def check_memory(config: Config, mesh: Mesh) -> None:
    """Refuse a training run if its state and batch alone exceed a device's memory.

    They are a lower bound without activations, so this refuses no run that would fit.

    Raises:
      BadInput: with the size, the memory and the key to lower.
    """
    state = abstract_state(config, mesh)
    pixels = math.prod(config.data.shape) * config.train.num_models
    parts = {
        "parameters": _bytes_on_a_device((state.params, state.ema, state.opt_state)),
        "buffer": _bytes_on_a_device(state.memory),
        "batch": 8 * pixels * config.train.batch_size // mesh.size,  # data and samples, float32
    }
    needed, memory = sum(parts.values()), _memory_of_a_device(mesh)
    if needed > memory:
        largest = max(parts, key=parts.__getitem__)
        raise BadInput(
            f"this run takes at least {needed / GIB:,.1f} GiB on each device, of {memory / GIB:,.1f}, most of it for "
            f"the {largest}; lower {KEYS[largest]}"
        )


def check_samples_fit(config: Config) -> None:
    """Refuse samples, or a sampling buffer, that alone exceed the machine's memory.

    Raises:
      BadInput: with the size, the memory and the key to lower.
    """
    sample = config.sample
    frames = 1 + -(-sample.num_steps // sample.film.every) if sample.task == "film" else 1
    for key, copies in {"sample.num_images": frames, "sample.buffer_capacity": 1}.items():
        _check_images_fit(config, key, copies)


def check_evaluation_fits(config: Config) -> None:
    """Refuse samples to judge, or a sampling buffer, that alone exceed the machine's memory.

    Raises:
      BadInput: as `check_samples_fit`.
    """
    for key in ("eval.num_samples", "sample.buffer_capacity"):
        _check_images_fit(config, key, 1)


def _check_images_fit(config: Config, key: str, copies: int) -> None:
    number, each = value_of(config, key), 4 * math.prod(config.data.shape) * copies
    needed, memory = each * number, parallel.host_memory()
    if needed > memory:
        of_a_film = f" and {copies} frames" if copies > 1 else ""
        raise BadInput(
            f"{key} {number}{of_a_film} takes at least {needed / GIB:,.1f} GiB of memory, of {memory / GIB:,.1f}; use "
            f"at most {memory // each}"
        )


def _bytes_on_a_device(tree: object) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _memory_of_a_device(mesh: Mesh) -> int:
    """Bytes: a TPU or GPU reports its own; a CPU device gets an equal part of the machine's memory."""
    statistics = mesh.local_devices[0].memory_stats() or {}
    return statistics.get("bytes_limit") or parallel.host_memory() // len(mesh.local_devices)
