"""Checkpoints of one pytree by Orbax, each with a fingerprint, because Orbax restores a flipped bit without a word.

A checkpoint is the state and, beside it, {"step": number, "fingerprint": one number a leaf}. The fingerprint does not
depend on how the state lies over devices, so a run restores on another number of them. docs/reliability.md has what is
survived, and where it is tested.
"""

import contextlib
import gc
import itertools
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import lax
from jaxtyping import Array, UInt32

from ebm_jax.distributed import processes
from ebm_jax.report import console
from ebm_jax.storage import bucket
from ebm_jax.types import BadInput, Folder

DIRECTORY = "checkpoints"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax still writes
REASON = 120  # letters of a library's message that are shown


@contextlib.contextmanager
def open_manager(
    workdir: Folder, keep: int = 1, read_only: bool = False, directory: str = DIRECTORY
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in a `directory` of a run's folder; `keep` newest ones stay. What a killed run left is removed.

    Raises:
      BadInput: it cannot be opened; or, at the end, the last save failed. Where another error ends the context, the
        failed save is a line on standard error instead.
    """
    folder = workdir / directory if bucket.is_remote(workdir) else (workdir / directory).absolute()
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} cannot be opened (it is a file); move it away, or use another --workdir")
    with _without_logs():
        options = ocp.CheckpointManagerOptions(max_to_keep=None if read_only else keep, read_only=read_only)
        try:
            manager = ocp.CheckpointManager(folder, options=options)
            if not read_only:
                _remove_unfinished(manager)
        except OSError as error:
            raise BadInput(f"{folder} cannot be opened ({_reason(error)}); use another --workdir") from error
        try:
            yield manager
        except BaseException:
            if failure := settle(manager):
                console.warn(failure)
            raise
        else:
            if failure := settle(manager):
                raise BadInput(f"{failure}; mend that, and the same command goes on from there")
        finally:
            with contextlib.suppress(Exception):  # what is left of the failure that is told above
                manager.close()
            gc.collect()  # reads and writes that failed beside the first log themselves when they are collected


@contextlib.contextmanager
def _without_logs() -> Iterator[None]:
    """Keep off the terminal what Orbax logs, with tracebacks, and what this module tells in one line.

    One failed file ends the event loop of all; the others then complain that it is closed.
    """
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    levels = [logger.level for logger in loggers]

    def filtered(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = filtered
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    """False of what asyncio logs of reads and writes that failed beside one that is told.

    They are logged when they are collected, which may be long after, at the end of the process.
    """
    return "exception was never retrieved" not in record.getMessage()


def exists(workdir: Folder, directory: str = DIRECTORY) -> bool:
    """Whether anything ever finished a checkpoint there."""
    return bool(_steps(workdir / directory))


def _steps(folder: Any) -> list[int]:
    """The steps that anything in the folder is named by, newest first, be it a checkpoint or not.

    Orbax lists finished ones alone, and deletes what is in the way of a new one of the same name.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    numbers = {int(name) for name in names if name.isascii() and name.isdigit()}
    return sorted((number for number in numbers if str(number) in names), reverse=True)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Start saving `state`; the arrays may be donated as soon as this returns, the files follow in the background.

    A save that fails costs no older checkpoint. The next one says so on standard error and is the next attempt; of the
    last one `open_manager` says so.

    Raises:
      ValueError: `step` is not newer than all saved ones; see `discard_after`.
    """
    if failure := settle(manager):
        console.warn(f"{failure}; going on, step {step} is saved now")
    state = _copied(state)
    meta = {"step": step, "fingerprint": fingerprint(state)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    try:
        try:
            started = manager.save(step, args=args)
        except Exception:  # Orbax can raise once more what was wrong with the save before
            if processes.count() > 1:
                raise
            started = manager.save(step, args=args)
    except Exception as error:  # tensorstore, Orbax and the system each raise their own
        if processes.count() > 1:  # the others wait for this one inside Orbax, until they are told that it failed
            raise
        _not_started[manager] = _failure(manager, step, error)
        return
    if not started:
        raise ValueError(f"step {step} is not newer than step {manager.latest_step()}, which is saved")


_not_started: WeakKeyDictionary[ocp.CheckpointManager, str] = WeakKeyDictionary()


def settle(manager: ocp.CheckpointManager) -> str | None:
    """Wait for a save that still runs; what went wrong with the last one, in a line, if anything did."""
    step = manager.latest_step()
    try:
        manager.wait_until_finished()
    except Exception as error:  # from the writing thread: tensorstore, Orbax and the system each raise their own
        return _failure(manager, step, error)
    return _not_started.pop(manager, None)


def _failure(manager: ocp.CheckpointManager, step: int | None, error: Exception) -> str:
    """What went wrong, and what there is to go on from, after tidying up."""
    logging.getLogger("asyncio").addFilter(_is_news)
    _remove_unfinished(manager)  # makes room on a full disk
    manager.reload()
    if bucket.is_remote(manager.directory) and step not in manager.all_steps() and processes.is_first():
        with contextlib.suppress(Exception):  # whatever a bucket raises: it only takes room
            (manager.directory / str(step)).rmtree()
    left = manager.latest_step()
    rest = "there is none yet" if left is None else f"that of step {left} stays"
    return f"the checkpoint of step {step} in {manager.directory} could not be written ({_reason(error)}); {rest}"


def _remove_unfinished(manager: ocp.CheckpointManager) -> None:
    """Delete what a save that failed or was killed left behind; it was never a checkpoint."""
    if not processes.is_first() or not manager.directory.is_dir():
        return
    for path in manager.directory.iterdir():
        if UNFINISHED in path.name:
            with contextlib.suppress(OSError):  # it only takes room
                path.rmtree()


def _reason(error: Exception) -> str:
    """An error in less than a line."""
    text = str(error)
    if "tree structures do not match" in text or "not compatible with the stored shape" in text:
        return "it was saved by another version of this project, whose state has other parts or shapes: use that one"
    for phrase in ("No space left on device", "File too large", "Disk quota exceeded"):  # at the end of a long message
        if phrase in text:
            return phrase
    return f"{type(error).__name__} {(text.splitlines() or [''])[0][:REASON]}"


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
    skipped: dict[int, str] = {}
    steps = json.loads(processes.from_first(json.dumps(_steps(manager.directory))))  # file systems' caches differ
    for step in steps:
        if step >= before:
            continue
        state, reason = _examined(manager, step, abstract)
        if reason is None:
            return Restored(step, state, skipped)
        skipped[step] = reason
    return Restored(None, None, skipped)


def _examined(manager: ocp.CheckpointManager, step: int, abstract: Any) -> tuple[Any, str | None]:
    """The state of a checkpoint and, the same on every process, what is wrong with it.

    Every process reads without waiting for the others, since one may fail alone; then they agree. The fingerprint is
    one computation of all processes, so it comes after.
    """
    own = processes.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}"
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
    state, meta, reason = None, None, None
    try:
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            restored = reader.restore(manager.directory / str(step), args=args)
        state, meta = restored["state"], {"step": step} | restored["meta"]  # the step is not in older checkpoints
    except Exception as error:  # tensorstore, zarr, JSON and Orbax each raise their own for damaged files
        reason = _reason(error)
        logging.getLogger("asyncio").addFilter(_is_news)
    if (reason := _agreed(reason)) is None:
        saved = {"step": step, "fingerprint": fingerprint(state)}
        reason = _agreed(None if meta == saved else "its arrays are not those that were saved under this step")
    return state, reason


def _agreed(reason: str | None) -> str | None:
    """None where it is None on every process, else what the first of those that found something wrong found."""
    return next((found for found in processes.meet(reason or "") if found), None)


def set_aside(
    manager: ocp.CheckpointManager, workdir: Folder, steps: Iterable[int], directory: str = DIRECTORY
) -> None:
    """Move damaged checkpoints to damaged_DIRECTORY/: Orbax would not save the same step again over them."""
    _move(manager, steps, workdir / f"damaged_{directory}")


def discard_after(manager: ocp.CheckpointManager, step: int) -> list[int]:
    """Move every checkpoint newer than `step` to rolled_back_DIRECTORY/, after waiting for a save that still runs.

    A run that goes back to `step` can then save again: Orbax saves no step that is not newer than all others. The
    newest goes first: a process killed in between leaves a history without a gap.

    Returns:
      The steps that were moved.
    """
    if failure := settle(manager):
        console.warn(failure)
    newer = [other for other in _steps(manager.directory) if other > step]
    _move(manager, newer, manager.directory.parent / f"rolled_back_{manager.directory.name}")
    return newer


def _move(manager: ocp.CheckpointManager, steps: Iterable[int], aside: Folder) -> None:
    """Move checkpoints to STEP_N in the folder `aside`, N being the first number that is free; nothing is deleted."""
    for step in steps if processes.is_first() else ():
        aside.mkdir(exist_ok=True)
        number = next(n for n in itertools.count() if not (aside / f"{step}_{n}").exists())
        (manager.directory / str(step)).rename(aside / f"{step}_{number}")
    _agreed(None)  # nobody looks before all is moved
    manager.reload()


def all_damaged(workdir: Folder, restored: Restored) -> str:
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
