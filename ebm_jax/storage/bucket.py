"""A run's folder, on this machine's file systems or in a bucket gs://BUCKET/RUN, and what a bucket cannot do itself."""

import contextlib
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ebm_jax.given import BadInput
from ebm_jax.paths import Folder, expanded

SCHEME = "gs://"


def folder_of(text: str | Folder, what: str = "--workdir") -> Folder:
    """The folder at a path or address; this touches nothing.

    Args:
      what: the flag or key that has the path, for messages.

    Raises:
      BadInput: the address is not of the kind gs://, or names no bucket; gcsfs is not installed; or ~ is no home
        directory here.
    """
    if "://" not in str(text) or re.match(r"[A-Za-z]:/", str(text)):  # the latter is a drive of Windows
        return expanded(str(text), what)
    if not str(text).startswith(SCHEME) or not str(text).removeprefix(SCHEME).strip("/"):
        raise BadInput(f"{what} {text} is no address that is known; give a folder, or {SCHEME}BUCKET/RUN")
    if importlib.util.find_spec("gcsfs") is None:
        raise BadInput(f"{what} {text} needs gcsfs; pip install -r requirements-gcs.txt, or 'ebm_jax[gcs]'")
    from etils import epath

    return epath.Path(text)


def is_remote(folder: Folder) -> bool:
    """Whether the folder lies in a bucket."""
    return str(folder).startswith(SCHEME)


def names(folder: Folder) -> set[str]:
    """The names of all that lies in the folder; empty if there is no folder.

    Raises:
      BadInput: it is a file, not a folder; or it cannot be read or reached.
    """
    try:
        if is_remote(folder) and not folder.is_dir():
            return set()
        return {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except NotADirectoryError as error:
        raise BadInput(f"--workdir {folder} is a file, or lies below one; give a directory") from error
    except Exception as error:  # from a bucket: gcsfs, aiohttp and google-auth each raise their own
        if not is_remote(folder) and not isinstance(error, OSError):
            raise
        raise BadInput(f"--workdir {folder} cannot be read ({reason(error)}); use another --workdir") from error


def reason(error: Exception) -> str:
    """An error in less than a line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text[:200]


class Mirror:
    """A folder of this machine that holds a run's files: for a run in a bucket a copy, else the run's folder itself.

    Files of a bucket cannot grow, and some libraries know no buckets. So such files are written here and copied to the
    bucket. Copying goes on beside the caller; the next `push` retries what fails.

    Args:
      pulled: patterns of the files to go on with; they are copied here first.
    """

    def __init__(self, folder: Folder, pulled: Sequence[str] = ()) -> None:
        self._folder, self._remote = folder, is_remote(folder)
        self.local = Path(tempfile.mkdtemp(prefix="ebm_jax_")) if self._remote else Path(folder)
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._copying: Future[None] | None = None
        self._copier = ThreadPoolExecutor(1)
        for pattern in pulled if self._remote else ():
            for path in folder.glob(pattern):
                copy = self.local / path.name
                copy.write_bytes(path.read_bytes())
                self._pushed[copy] = _mark(copy)

    def push(self) -> None:
        """Begin to copy what is new or changed, unless the last copying still goes on."""
        if self._remote and (self._copying is None or self._copying.done()):
            self._copying = self._copier.submit(self._copy)

    def close(self) -> str | None:
        """Copy what is left and end. If that fails, returns why, and where the files stay; else None."""
        self._copier.shutdown()
        if not self._remote:
            return None
        try:
            self._copy()
        except Exception as error:  # gcsfs, aiohttp and google-auth each raise their own
            return f"{self._folder} could not be written ({reason(error)}); what it lacks is in {self.local}"
        shutil.rmtree(self.local)
        return None

    def _copy(self) -> None:
        for path in sorted(self.local.rglob("[!.]*")):  # a hidden file is being written, and takes its name later
            if path.is_file() and self._pushed.get(path) != (mark := _mark(path)):
                target = self._folder / path.relative_to(self.local).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
                self._pushed[path] = mark


@contextlib.contextmanager
def staged(folder: Folder) -> Iterator[Path]:
    """A folder of this machine; when the context ends, its files are in `folder`.

    Raises:
      BadInput: the files could not be copied; they stay here.
    """
    mirror = Mirror(folder)
    try:
        yield mirror.local
    finally:
        failure = mirror.close()
    if failure:
        raise BadInput(failure)


def _mark(path: Path) -> tuple[int, int]:
    """Size and time of change, which a new content changes."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
