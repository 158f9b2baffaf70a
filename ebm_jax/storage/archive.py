"""Arrays and a description of how they came about, in one .npz file with its own hash, for later runs to use."""

import hashlib
import io
import json
from typing import NamedTuple

import numpy as np

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


def read(path: Folder) -> Archive:
    """Read the file and check its hash; nothing is unpickled.

    Raises:
      BadInput: the file cannot be read, is no such file, or does not match its hash.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        description, digest = json.loads(str(arrays.pop(DESCRIPTION))), str(arrays.pop(DIGEST))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror or error}); delete it to have it made anew") from error
    except Exception as error:  # NumPy, zipfile, zlib and json each raise their own
        raise BadInput(
            f"{path} is no file of saved statistics ({type(error).__name__}); delete it to have it made anew"
        ) from error
    if digest_of(arrays, description) != digest:
        raise BadInput(f"{path} is damaged: its SHA-256 is not that of its content; delete it to have it made anew")
    return Archive(arrays, description, digest)
