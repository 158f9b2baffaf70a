"""The folder of one run: which config it belongs to, and where each of its files lies."""

import contextlib
import itertools
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ebm_jax import schema, shipped
from ebm_jax.distributed import processes
from ebm_jax.given import BadInput, Config
from ebm_jax.paths import Folder
from ebm_jax.storage import bucket
from ebm_jax.storage.writing import require_no_links, write_atomically

CONFIG = "config.json"
IMAGES = "images-"  # begins the names of files of images that Python gave (fitting.py); they come before the run
DATA = "data.json"  # records of the run's data, the newest one last (data/found.py)
LARGEST_CONFIG = 2**24  # letters
PATHS = {"folder", "npz"}  # kinds of data.source whose data may lie anywhere
NAMELESS = {*PATHS, "shapes", "noise"}  # kinds of data.source for which data.name is any word
DESCRIBED = 6  # differences that a message lists


def check(workdir: Folder, config: Config) -> None:
    """Refuse a folder in which a run of `config` can neither begin nor go on; this touches nothing.

    It lets another place of data pass, if they may lie anywhere: `identity.continued` compares the data themselves.

    Raises:
      BadInput: the folder belongs to something else, or to a run of another config; or a part of it is a link.
    """
    names = bucket.names(workdir)
    require_no_links(workdir)
    if shipped.WEIGHTS in names:
        raise BadInput(
            f"--workdir {workdir} has an energy to give away, without what training goes on from; use another --workdir"
        )
    if CONFIG in names:
        if differing := differences(read_config(workdir), as_it_began(workdir, config), anywhere=True):
            raise BadInput(
                f"--workdir {workdir} holds a run that cannot go on: {describe(differing)}; use another --workdir"
            )
    elif any(not name.startswith(IMAGES) for name in names):
        raise BadInput(f"--workdir {workdir} is not empty and has no {CONFIG} of a run; use another --workdir")


def claim(workdir: Folder, config: Config) -> str:
    """Make `workdir` the folder of a run of `config`, or go on with the run that is there.

    Returns:
      One line that says what was filled in for a run of an earlier version; empty if nothing was.

    Raises:
      BadInput: as `check`, or the folder cannot be written.
    """
    check(workdir, config)
    note = read(workdir)[1] if CONFIG in bucket.names(workdir) else ""
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        config = schema.canonical(as_it_began(workdir, config))
        write_atomically(workdir / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
    return note


def as_it_began(workdir: Folder, config: Config) -> Config:
    """The config, with what an older run in `workdir` goes on doing, whatever the defaults are now.

    These are the keys that came later and whose default acts otherwise (`absent`), where the config has the default.
    """
    if CONFIG not in bucket.names(workdir):
        return config
    old, new = schema.flat(read_config(workdir)), schema.flat(config)
    later = {name: key for name, key in schema.KEYS.items() if key.absent not in (schema.ALWAYS, key.default)}
    kept = {name: key.absent for name, key in later.items() if (old[name], new[name]) == (key.absent, key.default)}
    return schema.with_values(config, kept) if kept else config


def read_data(workdir: Folder) -> str:
    """The text of the run's data.json; empty if it has none.

    Raises:
      BadInput: it cannot be read.
    """
    path = workdir / DATA
    try:
        return path.read_text() if DATA in bucket.names(workdir) else ""
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({bucket.reason(error)}); restore it from a copy") from error


def write_data(workdir: Folder, text: str) -> None:
    """Write the run's data.json whole.

    Raises:
      BadInput: the folder cannot be written.
    """
    with _writing(workdir):
        write_atomically(workdir / DATA, text)


@contextlib.contextmanager
def _writing(workdir: Folder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"--workdir {workdir} cannot be written ({error.strerror}); use another --workdir") from error


@contextlib.contextmanager
def locked(workdir: Folder, warn: Callable[[str], None] = warnings.warn) -> Iterator[None]:
    """Keep other processes from training in the folder until the context ends, or this process ends, however it ends.

    It makes the folder if there is none. It cannot lock a bucket, or a file system that has no locks. Where the system
    has no such locks at all, as Windows, it says so.

    Args:
      warn: takes that line.

    Raises:
      BadInput: another process trains there, or the folder cannot be written.
    """
    if bucket.is_remote(workdir):
        yield
        return
    with _writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl  # POSIX alone
    except ImportError:
        warn(f"this system cannot lock {workdir}; take care that no other process trains there")
        yield
        return
    handle = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BadInput(f"--workdir {workdir} is being trained in by another process; wait, or use another") from error
    except OSError:  # no locks here
        pass
    try:
        yield
    finally:
        os.close(handle)


def require_same(workdir: Folder, config: Config) -> None:
    """Refuse to start, on all processes of a run, if two of them have different configs or folders.

    Raises:
      BadInput: on all processes.
    """
    of_all = {key: value for key, value in schema.flat(config).items() if schema.scope_of(key) != schema.HOST}
    values = {"--workdir": str(workdir)} | of_all
    mine = {key: json.dumps(value) for key, value in values.items()}  # as words, because NaN equals itself there
    first = json.loads(processes.from_first(json.dumps(mine)))
    with processes.agreed():
        for key in mine | first:
            here, there = mine.get(key, "absent"), first.get(key, "absent")
            if here != there:
                raise BadInput(f"{key} is {here} here and {there} on process 0; start the same command on every host")


def require_shared(workdir: Folder) -> None:
    """Refuse to start, on all processes of a run, if one of them does not share the folder with process 0.

    Each process would keep a part of every checkpoint for itself.

    Raises:
      BadInput: on all processes.
    """
    if processes.count() == 1:
        return
    mark = workdir / f".{processes.from_first(uuid.uuid4().hex)}"
    with processes.agreed():
        if processes.is_first():
            mark.touch()
    try:
        with processes.agreed():
            if not mark.exists():
                raise BadInput(
                    f"--workdir {workdir} is not the folder that process 0 sees there; give one that all hosts share"
                )
    finally:
        if processes.is_first():
            mark.unlink()


def read_config(workdir: Folder) -> Config:
    """The locked config of the run in `workdir`; as `read`, without the note."""
    return read(workdir)[0]


def read(workdir: Folder) -> tuple[Config, str]:
    """The locked config of the run in `workdir`, with all keys and each value of its key's kind, and a note.

    Returns:
      The config, and one line that says what was filled in for a run of an earlier version; empty if nothing was.

    Raises:
      BadInput: there is no run, or its config.json is damaged or of a version that cannot be read.
    """
    path = workdir / CONFIG
    try:
        with path.open() as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"more than {LARGEST_CONFIG:,} letters, which no config has")
        groups = json.loads(text)
        if not isinstance(groups, dict):
            raise ValueError(f"{type(groups).__name__}, not groups of keys")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadInput(
            f"{workdir} is not the folder of a run: it has no {CONFIG}; train first, or give another --workdir"
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); mend that, or give another --workdir") from error
    except (ValueError, RecursionError) as error:  # no JSON, or JSON of something else
        raise BadInput(f"{path} is damaged ({error}); restore it from a copy, or use another --workdir") from error
    return schema.of_run(groups, str(path))


def differences(old: Config, new: Config, *, anywhere: bool = False) -> dict[str, tuple[Any, Any]]:
    """The keys that make `new` another run than `old`, each with both values, (old, new).

    Another spelling of a path, and another word for data that need none, make no other run.

    Args:
      anywhere: True: neither does another place of a folder or .npz file of images.
    """
    old_flat, new_flat = schema.flat(old), schema.flat(new)
    keys = [key for key in old_flat | new_flat if schema.scope_of(key) == schema.RUN]
    pairs = {key: (old_flat.get(key, "absent"), new_flat.get(key, "absent")) for key in keys}
    kinds = {config.data.source.partition(":")[0] for config in (old, new)}
    same = {"data.name": kinds <= NAMELESS, "data.source": (anywhere and kinds <= PATHS) or not is_moved(old, new)}
    free = [key for key, is_same in same.items() if is_same and len(kinds) == 1]
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key not in free}


def is_moved(old: Config, new: Config) -> bool:
    """Whether `data.source` names another place; another spelling of a path names the same one."""
    return _place(old) != _place(new)


def _place(config: Config) -> str:
    kind, _, path = config.data.source.partition(":")
    return f"{kind}:{os.path.realpath(os.path.expanduser(path))}" if kind in PATHS else config.data.source


def describe(differing: dict[str, tuple[Any, Any]]) -> str:
    """The first `DESCRIBED` differences in words, and how many more there are."""
    words = [f"{key} is {old} there and {new} here" for key, (old, new) in differing.items()]
    more = f" and {len(words) - DESCRIBED} more" if len(words) > DESCRIBED else ""
    return ", ".join(words[:DESCRIBED]) + more


def unused(folder: Folder, name: str, suffix: str = "") -> Folder:
    """The first path NAME_N, N = 0, 1 ..., for which there is no file NAME_N + suffix."""
    numbers = (folder / f"{name}_{number}" for number in itertools.count())
    return next(path for path in numbers if not _is_taken(path.with_name(path.name + suffix)))


def _is_taken(path: Folder) -> bool:
    """Whether there is anything at a path, a link to nothing included."""
    return path.exists() or (not bucket.is_remote(path) and os.path.islink(path))
