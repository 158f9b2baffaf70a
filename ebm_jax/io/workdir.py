"""The folder of one run: which config it belongs to, and where each of its files lies."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ebm_jax.types import BadInput, Config

CONFIG = "config.json"
MAY_CHANGE = ("log", "checkpoint", "sample", "guard")  # groups of keys that a run may go on with under other values
MAY_CHANGE_KEYS = ("train.num_steps", "train.cpu_devices", "data.dir", "data.manual_dir", "data.verify_checksums")
MAY_CHANGE_KEYS += ("data.max_unreadable", "data.memory_gib", "data.workers")


def check(workdir: Path, config: Config) -> None:
    """Refuse a folder that a run of `config` can neither begin nor go on in; nothing is touched.

    Raises:
      BadInput: it belongs to something else, or to a run of another config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise BadInput(f"--workdir {workdir} is a file; give a directory")
    if (workdir / CONFIG).exists():
        differing = differences(read_config(workdir), config)
        if differing:
            raise BadInput(
                f"--workdir {workdir} holds a run that cannot go on: {describe(differing)}; use another --workdir"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise BadInput(f"--workdir {workdir} is not empty and has no {CONFIG} of a run; use another --workdir")


def claim(workdir: Path, config: Config) -> None:
    """Make `workdir` the folder of a run of `config`, or go on with the run that is there.

    Raises:
      BadInput: as `check`, or it cannot be written.
    """
    check(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise BadInput(f"--workdir {workdir} cannot be written ({error.strerror}); use another --workdir") from error


def read_config(workdir: Path) -> Config:
    """The config of the run in `workdir`, locked.

    Raises:
      BadInput: there is no run, or its config.json is damaged.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise BadInput(
            f"{workdir} is not the folder of a run: it has no {CONFIG}; train first, or give another --workdir"
        )
    try:
        return ConfigDict(json.loads(path.read_text())).lock()
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is damaged ({error}); restore it from a copy, or use another --workdir") from error


def flat(config: Config) -> dict[str, Any]:
    """The config as {dotted key: value}, with values as JSON would give them back."""
    groups = json.loads(json.dumps(config.to_dict()))
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The keys, with both values, whose difference makes `new` another run than `old`."""
    old_flat, new_flat = flat(old), flat(new)
    keys = [key for key in old_flat | new_flat if key not in MAY_CHANGE_KEYS and key.split(".")[0] not in MAY_CHANGE]
    pairs = {key: (old_flat.get(key, "absent"), new_flat.get(key, "absent")) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def describe(differing: dict[str, tuple[Any, Any]]) -> str:
    """The differences in words."""
    return ", ".join(f"{key} is {old} there and {new} here" for key, (old, new) in differing.items())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    temporary.replace(path)
