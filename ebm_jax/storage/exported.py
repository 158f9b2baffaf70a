"""Reads an exported model with jax, numpy and flatbuffers alone; a copy of this file lies beside every export."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1  # of the folder; raise it whenever a reader of the format before would misread the new one
MANIFEST, PARAMS, SAMPLER, ENERGY = "manifest.json", "params.npz", "sampler.bin", "energy.bin"


class Exported(NamedTuple):
    """A model without its code."""

    params: dict[str, Any]
    sampler: Callable[..., Any]
    """(params, key, labels [n, ...]) -> images [n, *event]"""
    energy: Callable[..., Any]
    """(params, images [n, *event], labels [n, ...]) -> energies [n]"""
    manifest: dict[str, Any]

    def labels(self, n: int) -> np.ndarray:
        """Labels of n chains, all 0, as an unconditional model takes them."""
        return np.zeros((n, *self.manifest["label_shape"]), self.manifest["label_dtype"])


def load(folder: str | Path = Path(__file__).parent) -> Exported:
    """The model in `folder`, by default the one beside this file.

    Raises:
      ValueError: a file is missing or damaged, or this jax or reader cannot read the artifact's version; the message is
        one line.
    """
    folder = Path(folder).expanduser()
    manifest = _manifest(folder / MANIFEST)
    for name, digest in manifest["files"].items():
        if hashlib.sha256(_content(folder / name)).hexdigest() != digest:
            raise ValueError(f"{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}; copy it anew")
    sampler, energy = (_program(folder / name, manifest) for name in (SAMPLER, ENERGY))
    with np.load(folder / PARAMS, allow_pickle=False) as arrays:
        params = nested(dict(arrays))
    return Exported(params, sampler, energy, manifest)


def nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree of arrays with the flat names of `flat`, such as "a/b/kernel"."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return tree


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); copy the folder anew") from error


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_content(path))
        version = manifest["format"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the manifest of an export; copy the folder anew") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this reader has {FORMAT}; use the load.py exported with it")
    return manifest


def _program(path: Path, manifest: dict[str, Any]) -> Callable[..., Any]:
    """The program of a .bin file; raises ValueError if the installed jax cannot read it, and says why."""
    import jax

    made, here = f"made with jax {manifest['jax']}", f"jax {jax.__version__} is installed"
    try:
        from jax import export
    except ImportError as error:
        raise ValueError(f"{path} needs a jax that has jax.export; {here}, it was {made}") from error
    low, high = (getattr(export, f"{end}_supported_calling_convention_version") for end in ("minimum", "maximum"))
    version = manifest["calling_convention"]
    if not low <= version <= high:
        raise ValueError(
            f"{path} has calling convention {version}, {here} and reads {low} to {high}; it was {made}: install that, "
            "or export the run again"
        )
    try:
        exported = export.deserialize(bytearray(_content(path)))
        exported.mlir_module()  # parses the program: a newer jax's operations fail here and not in the first call
    except Exception as error:  # flatbuffers, MLIR and JAX each raise their own
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:120]}"
        raise ValueError(f"{path} cannot be read ({reason}); {here}, it was {made}") from error
    return exported.call
