"""A file of a network's weights that the user names: its hash, and its arrays by name."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ebm_jax.storage import sizes, torch_file
from ebm_jax.types import BadInput


class Weights(NamedTuple):
    """The content of a file of weights."""

    arrays: dict[str, np.ndarray]
    digest: str
    """SHA-256 of the file, in hexadecimal."""


def digest_of(path: Path, expected: str) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
      expected: the hash that the file must have, or its beginning; empty allows any.

    Raises:
      BadInput: the file cannot be read, is too large, or has another hash.
    """
    try:
        sizes.require_file(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); give a file of weights") from error
    if not digest.startswith(expected.strip().lower()):
        raise BadInput(
            f"{path} has the SHA-256 {digest}, not {expected}; download it anew, or name the hash that you expect"
        )
    return digest


def read(path: Path, expected: str, part: str = "") -> Weights:
    """The arrays of a .npz file, or of a state dict that PyTorch saved; nothing is unpickled.

    Args:
      expected: as in `digest_of`.
      part: of PyTorch's file, as in `torch_file.read_tensors`.

    Raises:
      BadInput: as `digest_of`; or the file is of neither kind.
    """
    digest = digest_of(path, expected)
    if path.suffix != ".npz":
        return Weights(torch_file.read_tensors(path, part), digest)
    try:
        return Weights(sizes.read_npz(path), digest)
    except BadInput:
        raise
    except Exception as error:  # NumPy, zipfile and zlib each raise their own
        raise BadInput(f"{path} is no .npz file of plain numbers ({type(error).__name__}); save it again") from error
