"""Arrays and a description of how they came about, in one .npz file with its own hash, for later runs to use."""

import hashlib
import io
import json
import zipfile
from typing import NamedTuple

import numpy as np

from ebm_jax.storage import sizes
from ebm_jax.storage.writing import write_atomically
from ebm_jax.types import BadInput, Folder

DESCRIPTION, DIGEST = "description", "sha256"


class Archive(NamedTuple):
    """The content of such a file."""

    arrays: dict[str, np.ndarray]
    description: dict[str, str]
    digest: str
    """SHA-256, in hexadecimal, of arrays and description."""


def digest_of(arrays: dict[str, np.ndarray], description: dict[str, str]) -> str:
    """SHA-256 of names, types, shapes and values, and of the description; their order does not matter."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write(path: Folder, arrays: dict[str, np.ndarray], description: dict[str, str]) -> str:
    """Write the whole file or nothing, over any older file; returns its digest.

    Raises:
      BadInput: the file cannot be written.
    """
    digest, content = digest_of(arrays, description), io.BytesIO()
    words = {DESCRIPTION: np.array(json.dumps(description)), DIGEST: np.array(digest)}
    np.savez(content, **arrays, **words)  # pyright: ignore[reportArgumentType]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); give another path") from error
    return digest


def read(path: Folder, *, named: bool = True) -> Archive:
    """Read the file and check its hash; nothing is unpickled.

    Args:
      named: whether the user named the file, which may then be of another program.

    Raises:
      BadInput: the file cannot be read, is too large, is not of `write`, or does not match its hash.
    """
    try:
        arrays = sizes.read_npz(path)
        description, digest = json.loads(str(arrays.pop(DESCRIPTION))), str(arrays.pop(DIGEST))
        if not isinstance(description, dict):
            raise ValueError
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); mend that, or give another path") from error
    except Exception as error:  # NumPy, zipfile, zlib and json each raise their own
        if named and not _is_ours(path):
            raise BadInput(_of_another_program(path)) from error
        raise BadInput(f"{path} is damaged ({type(error).__name__}); delete it to have it made anew") from error
    if digest_of(arrays, description) != digest:
        raise BadInput(f"{path} is damaged: its SHA-256 is not that of its content; delete it to have it made anew")
    return Archive(arrays, description, digest)


def _names(path: Folder) -> set[str]:
    """The names of an archive's arrays; empty if it is none, or is cut short."""
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as file:
            return {name.removesuffix(".npy") for name in file.namelist()}
    except Exception:  # zipfile raises many kinds for a damaged archive
        return set()


def _is_ours(path: Folder) -> bool:
    return {DESCRIPTION, DIGEST} <= _names(path)


def _of_another_program(path: Folder) -> str:
    what = ", with mu and sigma of other images or weights" if {"mu", "sigma"} <= _names(path) else ", or is cut short"
    return f"{path} is of another program{what}; it is left as it is: give another path, and the file is made there"
