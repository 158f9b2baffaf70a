"""Paths as a person writes them."""

import os
from pathlib import Path

from ebm_jax.types import BadInput


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
