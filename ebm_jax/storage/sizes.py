"""How large a file of weights or statistics may be, packed and unpacked: it may come from a stranger."""

import io
import os
import stat
import zipfile
from pathlib import Path

import numpy as np

from ebm_jax.types import BadInput, Folder

VARIABLE = "EBM_JAX_MAX_FILE_GIB"  # of the environment; raises the limit
USUAL_GIB = 8.0  # the FID's weights have 0.09, the statistics of 10,000 kept features 0.12


def largest() -> int:
    """The limit in bytes.

    Raises:
      BadInput: the variable is no positive number.
    """
    text = os.environ[VARIABLE] if VARIABLE in os.environ else str(USUAL_GIB)
    try:
        gib = float(text)
        if not 0 < gib < 2**30:
            raise ValueError
    except ValueError as error:
        raise BadInput(f"{VARIABLE} '{text}' is no positive number of GiB; use {USUAL_GIB:g}, or unset it") from error
    return int(gib * 2**30)


def in_words(what: str, size: int, limit: int) -> str:
    """That something is too large, with the cure, as the rest of a sentence."""
    return f"{what} {size:,} bytes, of which at most {limit:,} are read; {VARIABLE} raises that"


def require_file(path: Folder) -> None:
    """Refuse what is no ordinary file, such as a pipe, which never ends, and what is too large.

    Raises:
      BadInput: with the size, the limit and the cure.
      OSError: there is none.
    """
    found = path.stat()
    if isinstance(path, Path) and not stat.S_ISREG(found.st_mode):  # type: ignore[union-attr]
        raise BadInput(f"{path} cannot be read (it is no file); give a file")
    size = found.st_size if isinstance(path, Path) else found.length  # type: ignore[union-attr]
    if size > (limit := largest()):
        raise BadInput(f"{path} {in_words('has', size, limit)}")


def read_npz(path: Folder) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; nothing is unpickled, and nothing too large is unpacked.

    Raises:
      BadInput: the file is too large, packed or unpacked.
      OSError and others: it cannot be read; NumPy, zipfile and zlib each raise their own.
    """
    require_file(path)
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > (limit := largest()):
        raise BadInput(f"{path} {in_words('unpacks to', size, limit)}")
    with np.load(content, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
