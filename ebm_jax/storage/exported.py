"""Reads an exported model with jax, numpy and flatbuffers alone; a copy of this file lies beside every export."""

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1  # of the folder; raise it whenever a reader of the format before would misread the new one
LARGEST_MANIFEST = 2**24  # bytes
MANIFEST, PARAMS, SAMPLER, ENERGY = "manifest.json", "params.npz", "sampler.bin", "energy.bin"


class Exported(NamedTuple):
    """A model without its code. Its programs raise ValueError, in one line, for arguments of another shape or type."""

    params: dict[str, Any]
    sampler: Callable[..., Any]
    """(params, key, labels [n, ...]) -> images float32 [n, *event]; `key` is one of jax.random.key"""
    energy: Callable[..., Any]
    """(params, images [n, *event] of floats, labels [n, ...]) -> energies float32 [n]; pixels are in [0, 1]"""
    manifest: dict[str, Any]

    def labels(self, n: int) -> np.ndarray:
        """Labels of n chains, all 0, as an unconditional model takes them."""
        return np.zeros((n, *self.manifest["label_shape"]), self.manifest["label_dtype"])


def load(folder: str | Path = Path(__file__).parent, max_bytes: int = 2**33) -> Exported:
    """The model in `folder`, by default the one beside this file.

    Args:
      max_bytes: the largest file that is read, and the most that the parameters may unpack to.

    Raises:
      ValueError: a file is missing, damaged or too large, this jax or reader cannot read the artifact's version, or a
        program calls back into Python; the message is one line.
    """
    folder = Path(folder).expanduser()
    manifest = _manifest(folder / MANIFEST, max_bytes)
    for name in (PARAMS, SAMPLER, ENERGY):
        if hashlib.sha256(_content(folder / name, max_bytes)).hexdigest() != manifest["files"][name]:
            raise ValueError(f"{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}; copy it anew")
    sampler, energy = (_program(folder / name, manifest, max_bytes) for name in (SAMPLER, ENERGY))
    params = nested(_arrays(folder / PARAMS, max_bytes))
    return Exported(
        params, _checked_sampler(sampler, params, manifest), _checked_energy(energy, params, manifest), manifest
    )


def _arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > max_bytes:
            raise ValueError(
                f"unpacks to {size:,} bytes, of which at most {max_bytes:,} are read; max_bytes raises that"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # NumPy, zipfile and zlib each raise their own
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())[:120]})") from error


def _checked_sampler(
    program: Callable[..., Any], params: dict[str, Any], manifest: dict[str, Any]
) -> Callable[..., Any]:
    def sampler(given: Any, key: Any, labels: Any) -> Any:
        import jax

        _check_params(given, params)
        typed = hasattr(key, "dtype") and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
        if not typed or key.shape:
            raise ValueError("key is not one typed PRNG key; give jax.random.key(SEED)")
        return program(given, key, _rows("labels", labels, manifest["label_shape"], manifest["label_dtype"]))

    return sampler


def _checked_energy(
    program: Callable[..., Any], params: dict[str, Any], manifest: dict[str, Any]
) -> Callable[..., Any]:
    def energy(given: Any, images: Any, labels: Any) -> Any:
        _check_params(given, params)
        images = _rows("images", images, manifest["event_shape"], "float32")
        labels = _rows("labels", labels, manifest["label_shape"], manifest["label_dtype"])
        if images.shape[0] != labels.shape[0]:
            raise ValueError(f"{labels.shape[0]} labels for {images.shape[0]} images; give one for each")
        return program(given, images, labels)

    return energy


def _check_params(given: Any, params: dict[str, Any]) -> None:
    if _shapes(given) != _shapes(params):
        raise ValueError("params are not this model's; give the params that load gave, or a tree of the same shapes")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def _rows(name: str, given: Any, event_shape: list[int], dtype: str) -> Any:
    """An array [n, *event_shape] of this type, n >= 1, from any type of the same kind."""
    import jax.numpy as jnp

    wanted = "x".join(["n", *map(str, event_shape)])
    kind = jnp.floating if np.dtype(dtype).kind == "f" else jnp.integer
    if not hasattr(given, "dtype") or not jnp.issubdtype(given.dtype, kind):
        cure = "; for uint8 pixels give images / 255" if name == "images" else ""
        raise ValueError(
            f"{name} are of {getattr(given, 'dtype', type(given).__name__)}; give an array of {dtype}{cure}"
        )
    if given.ndim < 1 or tuple(given.shape[1:]) != tuple(event_shape) or given.shape[0] == 0:
        raise ValueError(f"{name} of shape {tuple(given.shape)} do not fit this model; give {wanted}, n at least 1")
    return jnp.asarray(given, dtype)


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


def _content(path: Path, max_bytes: int) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path} is no file; copy the folder anew")
        if found.st_size > max_bytes:
            raise ValueError(
                f"{path} has {found.st_size:,} bytes, of which at most {max_bytes:,} are read; max_bytes raises that"
            )
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); copy the folder anew") from error


def _manifest(path: Path, max_bytes: int) -> dict[str, Any]:
    try:
        manifest = json.loads(_content(path, min(max_bytes, LARGEST_MANIFEST)))
        version = manifest["format"]
        [manifest["files"][name] for name in (PARAMS, SAMPLER, ENERGY)]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the manifest of an export; copy the folder anew") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, this reader has {FORMAT}; use the load.py exported with it")
    return manifest


def _program(path: Path, manifest: dict[str, Any], max_bytes: int) -> Callable[..., Any]:
    """The program of a .bin file; raises ValueError if the installed jax cannot read it, and says why.

    A call back into Python has the address of a function in the memory of whoever exported it: here it would be any.
    """
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
        exported = export.deserialize(bytearray(_content(path, max_bytes)))
        program = exported.mlir_module()  # parses it: a newer jax's operations fail here and not in the first call
    except Exception as error:  # flatbuffers, MLIR and JAX each raise their own
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:120]}"
        raise ValueError(f"{path} cannot be read ({reason}); {here}, it was {made}") from error
    calls = re.findall(r'(?:custom_call @|call_target_name = ")([^\s("]+)', program)
    if called := [name for name in calls if "callback" in name.lower()]:
        raise ValueError(f"{path} calls back into Python ({called[0][:60]}), which no export of this project does")
    return exported.call
