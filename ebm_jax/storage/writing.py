"""Writes files of a run's folder whole or not at all, and never through a symbolic link.

A folder may come from a stranger, and archives keep links: a picture in it may be a link to a file of the reader.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import IO, Any

from ebm_jax.given import BadInput, printable
from ebm_jax.paths import Folder
from ebm_jax.storage import bucket


@contextlib.contextmanager
def replacing(path: Folder) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the context ends without an error; a link there goes."""
    if bucket.is_remote(path):  # a bucket shows no file before it has the whole file
        with path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a killed process; or a link
    try:
        with temporary.open("xb") as file:  # x: a link in its place is an error
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Folder, content: str | bytes) -> None:
    """Write a whole file or nothing."""
    content = content if isinstance(content, bytes) else content.encode()
    if bucket.is_remote(path):
        path.write_bytes(content)
        return
    with replacing(path) as file:
        file.write(content)


def appending(path: Folder) -> IO[Any]:
    """The text file at `path`, to write at its end.

    Raises:
      BadInput: it is a link.
    """
    try:
        return open(path, "a", opener=_not_through_a_link)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        raise BadInput(_refusal(path)) from error


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def require_no_links(folder: Folder) -> None:
    """Refuse a run's folder of which a part is a link, before anything is written there.

    Raises:
      BadInput: with the link and the cure.
    """
    if bucket.is_remote(folder) or not os.path.isdir(folder):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_symlink():
            raise BadInput(_refusal(entry.path))


def _refusal(path: Any) -> str:
    return (
        f"{printable(str(path))} is a link to {printable(os.readlink(path))}, and files of a run are not written "
        "through links; delete it, or move what it leads to here (the folder of the whole run may be a link)"
    )
