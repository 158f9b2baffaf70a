"""Checkpoints of one pytree by Orbax, each with a fingerprint, because Orbax restores a flipped bit without a word.

A checkpoint is the state and, beside it, {"step": number, "fingerprint": {path of a leaf: number}}. The fingerprint is
the same however the state lies over devices, so a run goes on with another number of them. older.py says how the
checkpoints of older versions are read. docs/reliability.md says what a run survives, and which test shows it.
"""

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from ebm_jax.distributed import processes
from ebm_jax.storage import bucket
from ebm_jax.storage.fingerprint import fingerprint, named_leaves
from ebm_jax.storage.older import OLDER, Older, made, sources
from ebm_jax.types import BadInput, Folder

DIRECTORY = "checkpoints"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax still writes
REASON = 120  # letters of a library's message that are shown


@contextlib.contextmanager
def open_manager(
    workdir: Folder,
    keep: int = 1,
    read_only: bool = False,
    directory: str = DIRECTORY,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in a `directory` of a run's folder; `keep` newest ones stay. What a killed run left is removed.

    Args:
      warn: takes the line about a last save that failed, if another error ends the context.

    Raises:
      BadInput: it cannot be opened; or, at the end, the last save failed.
    """
    folder = workdir / directory if bucket.is_remote(workdir) else (workdir / directory).absolute()
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} cannot be opened (it is a file); move it away, or use another --workdir")
    # Orbax's own read_only=True logs three warnings each time; a manager that saves nothing writes nothing either
    options = ocp.CheckpointManagerOptions(max_to_keep=None if read_only else keep, create=not read_only)
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
            warn(failure)
        raise
    else:
        if failure := settle(manager):
            raise BadInput(f"{failure}; mend that, and the same command goes on from there")
    finally:
        with contextlib.suppress(Exception):  # what is left of the failure that is told above
            manager.close()


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


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> str | None:
    """Start saving `state`; the arrays may be donated as soon as this returns, the files follow in the background.

    A save that fails costs no older checkpoint. The next one tells it and is the next attempt; of the last one
    `open_manager` tells it.

    Returns:
      A line about the save before, if that failed.

    Raises:
      ValueError: `step` is not newer than all saved ones; see `discard_after`.
    """
    failure = settle(manager)
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
        _untold[manager] = _failure(manager, step, error)
        started = True
    if not started:
        raise ValueError(f"step {step} is not newer than step {manager.latest_step()}, which is saved")
    return f"{failure}; going on, step {step} is saved now" if failure else None


_untold: WeakKeyDictionary[ocp.CheckpointManager, str] = WeakKeyDictionary()
"""What went wrong without Orbax's knowing of it any more, until `settle` tells it."""


def settle(manager: ocp.CheckpointManager) -> str | None:
    """Wait for a save that still runs; what went wrong with the last one, in a line, if anything did."""
    step = manager.latest_step()
    try:
        manager.wait_until_finished()
    except Exception as error:  # from the writing thread: tensorstore, Orbax and the system each raise their own
        return _failure(manager, step, error)
    return _untold.pop(manager, None)


def _failure(manager: ocp.CheckpointManager, step: int | None, error: Exception) -> str:
    """What went wrong, and what there is to go on from, after tidying up."""
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


def restore_newest(
    manager: ocp.CheckpointManager, abstract: Any, before: float | int = math.inf, older: Older = OLDER
) -> Restored:
    """The newest checkpoint, of a step less than `before`, whose arrays are what was saved.

    Args:
      abstract: shapes, types and shardings of a state.
      older: where the parts of the state are in checkpoints of older versions.
    """
    skipped: dict[int, str] = {}
    steps = json.loads(processes.from_first(json.dumps(_steps(manager.directory))))  # file systems' caches differ
    for step in steps:
        if step >= before:
            continue
        state, reason = _examined(manager.directory / str(step), step, abstract, older)
        if reason is None:
            return Restored(step, state, skipped)
        skipped[step] = reason
    return Restored(None, None, skipped)


def _examined(folder: Folder, step: int, abstract: Any, older: Older) -> tuple[Any, str | None]:
    """The state of a checkpoint and, the same on every process, what is wrong with it.

    Every process reads without waiting for the others, since one may fail alone; then they agree. The fingerprint is
    one computation of all processes, so it comes after.
    """
    named, places, leaves, meta, reason = named_leaves(abstract), {}, {}, {}, None
    try:
        places, leaves, meta = _read(folder, named, older)
    except Exception as error:  # tensorstore, zarr, JSON and Orbax each raise their own for damaged files
        reason = _reason(error)
    if reason := _agreed(reason):
        return None, reason
    numbers: Any = fingerprint(leaves)
    if isinstance(meta.get("fingerprint"), list):  # of older versions: in the order of the state's leaves
        numbers = [numbers[place] for place in places.values() if place is not None]
    saved = {"step": step, "fingerprint": numbers}
    if reason := _agreed(None if meta == saved else "its arrays are not those that were saved under this step"):
        return None, reason
    parts = [
        made(older.added[path], leaf) if (place := places[path]) is None else leaves[place]
        for path, leaf in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), parts), None


def _read(
    folder: Folder, named: Mapping[str, Any], older: Older
) -> tuple[dict[str, str | None], dict[str, Any], dict[str, Any]]:
    """Where a checkpoint has each leaf of a state, its arrays by their paths there, and what stands beside them."""
    own = processes.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}"
    )
    with contextlib.closing(ocp.StandardCheckpointHandler(multiprocessing_options=alone)) as of_state:
        tree = of_state.metadata(epath.Path(folder / "state")).tree
    places = sources(named, named_leaves(tree), older)
    wanted = {place: named[path] for path, place in places.items() if place is not None}
    target = jax.tree.unflatten(jax.tree.structure(tree), [wanted[place] for place in named_leaves(tree)])
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        restored = reader.restore(folder, args=args)
    step = {"step": int(folder.name)}  # not in the checkpoints of older versions
    return places, named_leaves(restored["state"]), step | restored["meta"]


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
        _untold[manager] = failure
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
