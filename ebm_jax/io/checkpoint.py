"""Checkpoints of one pytree by Orbax, each with a fingerprint, because Orbax restores a flipped bit without a word.

A checkpoint is the state and, beside it, {"fingerprint": one number a leaf}. The fingerprint does not depend on how
the state lies over devices, so a run restores on another number of them.
"""

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import lax
from jaxtyping import Array, UInt32
from orbax.checkpoint.options import MultiprocessingOptions

from ebm_jax import processes

DIRECTORY = "checkpoints"


def open_manager(
    workdir: Path, keep: int = 1, read_only: bool = False, directory: str = DIRECTORY
) -> ocp.CheckpointManager:
    """The checkpoints in a `directory` of a run's folder; `keep` newest ones stay. Close it when done."""
    options = ocp.CheckpointManagerOptions(max_to_keep=None if read_only else keep, read_only=read_only)
    return ocp.CheckpointManager((workdir / directory).absolute(), options=options)


def exists(workdir: Path, directory: str = DIRECTORY) -> bool:
    """Whether anything ever finished a checkpoint there."""
    folder = workdir / directory
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Start saving `state`; the arrays may be donated as soon as this returns, the files follow in the background."""
    state = _copied(state)
    meta = {"fingerprint": fingerprint(state)}
    manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))


@jax.jit
def _copied(state: Any) -> Any:
    """Arrays of its own for the writer thread: on a CPU its NumPy views would share memory with the donated state."""
    return jax.tree.map(jnp.copy, state)


class Restored(NamedTuple):
    """The newest valid checkpoint, or step None and no state where there is none."""

    step: int | None
    state: Any
    skipped: dict[int, str]
    """What is wrong with each newer checkpoint, by its step; all are left on disk."""


def restore_newest(manager: ocp.CheckpointManager, abstract: Any, before: float | int = math.inf) -> Restored:
    """The newest checkpoint, of a step less than `before`, whose arrays are what was saved.

    `abstract` states shapes, types and shardings.
    """
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
    skipped: dict[int, str] = {}
    steps = json.loads(processes.from_first(json.dumps([step for step in manager.all_steps() if step < before])))
    reader = _lone_reader(manager)
    for step in sorted(steps, reverse=True):
        state, meta, reason = None, {}, ""
        try:
            restored = reader.restore(step, args=args)
            state, meta = restored["state"], restored["meta"]
        except Exception as error:  # tensorstore, zarr, JSON and Orbax each raise their own for damaged files
            reason = f"{type(error).__name__} {(str(error).splitlines() or [''])[0][:120]}"
        if reasons := list(filter(None, processes.meet(reason))):  # damaged for one is damaged for all
            skipped[step] = reasons[0]
            continue
        if fingerprint(state) == meta["fingerprint"]:
            return Restored(step, state, skipped)
        skipped[step] = "its arrays are not those that were saved"
    return Restored(None, None, skipped)


def _lone_reader(manager: ocp.CheckpointManager) -> ocp.CheckpointManager:
    """What restores the shards of this process and never waits for another one, which may have failed to."""
    if processes.count() == 1:
        return manager
    own = processes.index()
    alone = MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}")
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
    return ocp.CheckpointManager(manager.directory, options=options)


def set_aside(manager: ocp.CheckpointManager, workdir: Path, steps: Iterable[int], directory: str = DIRECTORY) -> None:
    """Move damaged checkpoints to damaged_DIRECTORY/: Orbax would not save the same step again over them."""
    for step in steps if processes.is_first() else ():
        aside = workdir / f"damaged_{directory}"
        aside.mkdir(exist_ok=True)
        number = next(n for n in itertools.count() if not (aside / f"{step}_{n}").exists())
        (workdir / directory / str(step)).rename(aside / f"{step}_{number}")
    processes.meet()
    manager.reload()


def all_damaged(workdir: Path, restored: Restored) -> str:
    """What to tell the user where checkpoints exist and none is valid."""
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in restored.skipped.items())
    return (
        f"every checkpoint in {workdir / DIRECTORY} is damaged ({reasons}); restore one from a copy, or use another "
        "--workdir"
    )


def fingerprint(state: Any) -> list[int]:
    """One number for each leaf, from its bits and their places, equal on any sharding."""
    return [int(value) for value in jax.device_get(_fingerprints(jax.tree.leaves(state)))]


@jax.jit
def _fingerprints(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    """Σ mix(bits xor mix(place)) modulo 2³²: exact in any order of summing, and never equal after one changed value.

    The sum alone, or with a factor for the place, would let two flipped sign bits cancel.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)
    return jnp.sum(_mix(bits ^ _mix(lax.iota(jnp.uint32, bits.size))), dtype=jnp.uint32)


def _mix(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """A bijection of 32-bit integers that scatters neighbours (lowbias32: C. Wellons, "Hash prospector", 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
