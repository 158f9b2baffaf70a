"""Paths as a person writes them, and the folders that they name."""

import os
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ebm_jax.given import BadInput

if TYPE_CHECKING:
    from etils import epath

    Folder = Path | epath.Path  # on this machine, or in a bucket (storage/bucket.py)
else:
    Folder = PurePath  # both are; epath would take a third of the time in which a wrong word is told


def expanded(text: str | Path, what: str) -> Path:
    """The path with a leading ~ or ~NAME replaced by that home directory; a shell leaves it after `--flag=`.

    A file whose own name begins with ~ is ./~NAME.

    Args:
      what: the flag, key or argument that has the path, for messages.

    Raises:
      BadInput: there is no such home directory.
    """
    path = Path(os.path.expanduser(text))
    if not str(path).startswith("~"):
        return path
    if str(text).startswith("~"):
        raise BadInput(f"{what} {text}: there is no such home directory here; give the whole path")
    return path.absolute()  # pathlib drops ./, and whoever expands the path again must not take it for a home directory
