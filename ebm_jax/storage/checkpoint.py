"""Checkpoints of one pytree by Orbax, each with a fingerprint, because Orbax restores a flipped bit without a word.

A checkpoint is the state and, beside it, {"step": number, "fingerprint": {path of a leaf: number}}. The fingerprint
does not depend on how the state lies over devices, so a run can go on with another number of devices. older.py says how
to read the checkpoints of older versions. docs/reliability.md says what a run survives, and which test shows it.
"""

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
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
BEST = "best"  # the folder of the best state by `eval.during`, beside the newest ones
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax still writes
REASON = 120  # letters to show of a library's message


@contextlib.contextmanager
def open_manager(
    workdir: Folder,
    keep: int = 1,
    read_only: bool = False,
    directory: str = DIRECTORY,
    warn: Callable[[str], None] = warnings.warn,
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints in `directory` of a run's folder; the newest `keep` stay. It removes what a killed run left.

    Args:
      read_only: saves and removes nothing.
      warn: gets the line about a failed last save, if another error ends the context.

    Raises:
      BadInput: the folder cannot be opened; or, at the end, the last save failed.
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
        with contextlib.suppress(Exception):  # the rest of the failure reported above
            manager.close()


def exists(workdir: Folder, directory: str = DIRECTORY) -> bool:
    """Whether a checkpoint was ever finished there."""
    return bool(_steps(workdir / directory))


def _steps(folder: Any) -> list[int]:
    """The steps that name anything in the folder, checkpoint or not, newest first.

    Orbax lists only finished checkpoints, and deletes whatever is in the way of a new one of the same name.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    numbers = {int(name) for name in names if name.isascii() and name.isdigit()}
    return sorted((number for number in numbers if str(number) in names), reverse=True)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> str | None:
    """Start saving `state`; the arrays may be donated as soon as this returns, the files follow in the background.

    A save that fails costs no older checkpoint. The next save reports the failure and tries anew; `open_manager`
    reports the failure of the last save.

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
        except Exception:  # Orbax can raise the failure of the save before once more
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
"""Failures that Orbax no longer knows, until `settle` reports them."""


def settle(manager: ocp.CheckpointManager) -> str | None:
    """Wait for a save that still runs. If the last save failed, returns a line that says why, else None."""
    step = manager.latest_step()
    try:
        manager.wait_until_finished()
    except Exception as error:  # from the writing thread: tensorstore, Orbax and the system each raise their own
        return _failure(manager, step, error)
    return _untold.pop(manager, None)


def _failure(manager: ocp.CheckpointManager, step: int | None, error: Exception) -> str:
    """Tidy up after a failed save; returns a line that says what went wrong, and which checkpoint is left."""
    _remove_unfinished(manager)  # makes room on a full disk
    manager.reload()
    if bucket.is_remote(manager.directory) and step not in manager.all_steps() and processes.is_first():
        with contextlib.suppress(Exception):  # whatever a bucket raises: it only takes room
            (manager.directory / str(step)).rmtree()
    left = manager.latest_step()
    rest = "there is none yet" if left is None else f"that of step {left} stays"
    return f"the checkpoint of step {step} in {manager.directory} could not be written ({_reason(error)}); {rest}"


def _remove_unfinished(manager: ocp.CheckpointManager) -> None:
    """Delete what failed or killed saves left behind; these were never checkpoints."""
    if not processes.is_first() or not manager.directory.is_dir():
        return
    for path in manager.directory.iterdir():
        if UNFINISHED in path.name:
            with contextlib.suppress(OSError):  # it only takes room
                path.unlink() if Path(path).is_symlink() else path.rmtree()


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
    """A copy for the writer thread: on a CPU its NumPy views would share memory with the donated state."""
    return jax.tree.map(jnp.copy, state)


class Restored(NamedTuple):
    """The newest valid checkpoint; step and state are None if there is none."""

    step: int | None
    state: Any
    skipped: dict[int, str]
    """What is wrong with each newer checkpoint, by its step; all these stay on disk."""


def restore_newest(
    manager: ocp.CheckpointManager, abstract: Any, before: float | int = math.inf, older: Older = OLDER
) -> Restored:
    """The newest checkpoint, of a step less than `before`, that still has the arrays that were saved.

    Args:
      abstract: shapes, types and shardings of a state.
      older: where checkpoints of older versions have the parts of the state.
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
    """The state of a checkpoint, and what is wrong with it; all processes get the same answer.

    Every process reads without waiting for the others, since one may fail alone; then they agree. All processes compute
    the fingerprint together, so it comes after.
    """
    named, places, leaves, meta, reason = named_leaves(abstract), {}, {}, {}, None
    try:
        places, leaves, meta = _read(folder, named, older)
    except Exception as error:  # tensorstore, zarr, JSON and Orbax each raise their own for damaged files
        reason = _reason(error)
    if reason := _agreed(reason):
        return None, reason
    numbers: Any = fingerprint(leaves)
    if isinstance(meta.get("fingerprint"), list):  # older versions list them in the order of the state's leaves
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
    """Each leaf's path in the checkpoint, the checkpoint's arrays by these paths, and what stands beside the arrays."""
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
    step = {"step": int(folder.name)}  # checkpoints of older versions lack it
    return places, named_leaves(restored["state"]), step | restored["meta"]


def _agreed(reason: str | None) -> str | None:
    """None if it is None on every process; else the reason of the first process that has one."""
    return next((found for found in processes.meet(reason or "") if found), None)


def set_aside(
    manager: ocp.CheckpointManager, workdir: Folder, steps: Iterable[int], directory: str = DIRECTORY
) -> None:
    """Move damaged checkpoints to damaged_DIRECTORY/: Orbax would not save the same step again over them."""
    _move(manager, steps, workdir / f"damaged_{directory}")


def discard_after(manager: ocp.CheckpointManager, step: int) -> list[int]:
    """Move every checkpoint newer than `step` to rolled_back_DIRECTORY/, after waiting for a save that still runs.

    A run that goes back to `step` can then save again: Orbax saves a step only if it is newer than all others. The
    newest goes first, so a process killed in between leaves a history without a gap.

    Returns:
      The steps that were moved.
    """
    if failure := settle(manager):
        _untold[manager] = failure
    newer = [other for other in _steps(manager.directory) if other > step]
    _move(manager, newer, manager.directory.parent / f"rolled_back_{manager.directory.name}")
    return newer


def _move(manager: ocp.CheckpointManager, steps: Iterable[int], aside: Folder) -> None:
    """Move checkpoints to STEP_N in the folder `aside`, N being the first free number; nothing is deleted."""
    for step in steps if processes.is_first() else ():
        aside.mkdir(exist_ok=True)
        number = next(n for n in itertools.count() if not (aside / f"{step}_{n}").exists())
        (manager.directory / str(step)).rename(aside / f"{step}_{number}")
    _agreed(None)  # nobody looks before all is moved
    manager.reload()


def keep_best(workdir: Folder, step: int, state: Any, warn: Callable[[str], None]) -> None:
    """Save `state` in place of the best one so far, and wait for that; a failure costs no more than this state.

    Args:
      warn: gets the line about a failure.
    """
    try:
        with open_manager(workdir, directory=BEST, warn=warn) as manager:
            discard_after(manager, step - 1)  # of steps that the run does again
            save(manager, step, state)
    except BadInput as failure:
        warn(str(failure))


def all_damaged(workdir: Folder, restored: Restored, directory: str = DIRECTORY) -> str:
    """What to tell the user if checkpoints exist and none is valid."""
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in restored.skipped.items())
    return (
        f"every checkpoint in {workdir / directory} is damaged ({reasons}); restore one from a copy, or use another "
        "--workdir"
    )
