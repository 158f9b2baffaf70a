"""What comes with the package: its configs, how config files import them as `configs`, and trained energies.

The configs are the repository's folder configs/. An installed package carries them inside itself, so that no other
package of that name can take their place, nor they its.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from ebm_jax.given import BadInput
from ebm_jax.paths import Folder

PACKAGE = "configs"
WEIGHTS = "model.safetensors"  # of an energy to give away, in place of a run's checkpoints
HIDDEN = ("__init__", "default")  # files that are no experiments


def folder() -> Path:
    """The folder of the configs, in an installed package or in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / PACKAGE
    return inside if inside.is_dir() else package.parent / PACKAGE


def names() -> list[str]:
    """The names of the experiments, in order."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem not in HIDDEN)


def named(name: str) -> Path | None:
    """The file of a config by its name, default included; None if no config has the name."""
    return folder() / f"{name}.py" if name in (*names(), "default") else None


def energies() -> Path:
    """The folder of the trained energies; each is a folder that `TrainedRun.save` wrote."""
    return Path(__file__).resolve().parent / "energies"


def energy_names() -> list[str]:
    """The names of the trained energies, in order."""
    return sorted(path.parent.name for path in energies().glob("*/config.json"))


def copied(name: str, folder: Folder) -> None:
    """Copy a trained energy to a folder, to work there; if it is there already, leave it.

    Raises:
      BadInput: the folder holds something else, lies in a bucket, or cannot be written.
    """
    source = energies() / name
    if not isinstance(folder, Path):
        raise BadInput(f"--workdir {folder} must be of this machine to work with the energy {name}; give a folder")
    try:
        if not os.path.lexists(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
                shutil.copytree(source, Path(made) / name).rename(folder)
        elif not _is_same(source, folder):
            raise BadInput(f"--workdir {folder} holds something else than the energy {name}; give another --workdir")
    except OSError as error:
        raise BadInput(f"--workdir {folder} cannot be written ({error.strerror}); give another --workdir") from error


def _is_same(source: Path, folder: Path) -> bool:
    """Whether the folder has the weights of the source."""
    mine = folder / WEIGHTS
    return mine.is_file() and mine.read_bytes() == (source / WEIGHTS).read_bytes()


@contextlib.contextmanager
def importable(source: Path) -> Iterator[None]:
    """Let a config file import the modules beside it, as Python does for a script, and `configs`."""
    beside, finder = str(source.resolve().parent), _Finder(source)
    sys.path.insert(0, beside)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the file has changed the lists
            sys.path.remove(beside)
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds the package `configs`: the shipped one, unless the user has a package of this name and the file is his."""

    def __init__(self, source: Path):
        self._is_shipped = source.resolve().parent == folder()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PACKAGE:
            return None
        theirs = PathFinder.find_spec(PACKAGE)
        home = Path(theirs.origin).parent if theirs and theirs.origin else None  # of a package with an __init__.py
        if home and (home == folder() or not self._is_shipped):
            return None
        spec = ModuleSpec(PACKAGE, None, is_package=True)
        mine = [] if theirs is None or home else list(theirs.submodule_search_locations or ())
        spec.submodule_search_locations = [*mine, str(folder())]  # the user's mere folder comes first
        return spec
