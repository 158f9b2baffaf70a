"""A network's weights in a folder that can be given away: one safetensors file, of which nothing is executed.

The layout is that of model hubs: model.safetensors, config.json, and a README.md that is the model's card.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from ebm_jax.shipped import WEIGHTS
from ebm_jax.storage import bucket, sizes
from ebm_jax.types import BadInput, Folder, Params

CARD = "README.md"
TYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16), "float16": np.dtype(np.float16)}
"""The types that weights are stored in, by name."""
KINDS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors names them
FORMAT = "ebm_jax"


class Published(NamedTuple):
    """The weights of a folder."""

    arrays: dict[str, np.ndarray]
    """float32, by the path in the tree of parameters, such as "Conv_0/kernel"."""
    step: int
    """The training step that they are of."""
    members: int
    """More than 1: an ensemble, of which every array has one more axis, the first."""
    weights: str
    """`sample.weights`: "ema" or "raw"."""
    dtype: str
    """A name of `TYPES`: the type in the file."""
    license: str
    """The SPDX name of the weights' licence; empty: none is stated."""
    notes: str
    """What whoever gave them away says of them and their data; may be empty."""


def lies_in(folder: Folder) -> bool:
    """Whether the folder has an energy to give away."""
    return WEIGHTS in bucket.names(folder)


def packed(params: Params, dtype: str, **facts: str | int) -> bytes:
    """The content of model.safetensors.

    Args:
      params: any tree of arrays; of an ensemble, each [members, ...].
      dtype: a name of `TYPES`.
      facts: the other fields of `Published`.

    Raises:
      BadInput: there is no such type, or a weight is infinite, or becomes so in it.
    """
    if dtype not in TYPES:
        raise BadInput(f"dtype {dtype} is unknown; use one of {', '.join(TYPES)}")
    kind = TYPES[dtype]
    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(np.asarray(array).astype(kind)) for name, array in by_path(params).items()}
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise BadInput(f"{name} has weights that are not finite as {dtype}; use dtype='float32', or another run")
    metadata = {"format": FORMAT} | {name: str(fact) for name, fact in facts.items()}
    return safetensors.numpy.save(arrays, metadata=metadata)


def read(folder: Folder) -> Published:
    """The weights in the folder.

    Raises:
      BadInput: the file cannot be read, is damaged or too large, or was not written by `packed`.
    """
    path = folder / WEIGHTS
    try:
        sizes.require_file(path)
        content = path.read_bytes()
        tensors = dict(safetensors.deserialize(content))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']}, not {FORMAT}")
        kinds = {tensor["dtype"] for tensor in tensors.values()}
        if len(kinds) != 1 or not kinds <= KINDS.keys():
            raise ValueError(f"types {', '.join(sorted(kinds))}, not one of {', '.join(KINDS)}")
        dtype = KINDS[kinds.pop()]
        arrays = {name: _array(tensor, TYPES[dtype]) for name, tensor in tensors.items()}
        words = header["weights"], dtype, header["license"], header["notes"]
        return Published(arrays, int(header["step"]), int(header["members"]), *words)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({bucket.reason(error)}); restore it from a copy") from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is damaged, or not from ebm_jax ({error}); restore it from a copy") from error


def as_params(found: Published, like: Any, folder: Folder) -> Params:
    """The weights as a tree like another one, of one network; an ensemble's have one more axis.

    Args:
      like: a tree of arrays or of their shapes.

    Raises:
      BadInput: the weights are of another network.
    """
    extra = (found.members,) if found.members > 1 else ()
    expected = {name: (*extra, *leaf.shape) for name, leaf in by_path(like).items()}
    for name in sorted(expected.keys() | found.arrays.keys()):
        here = found.arrays[name].shape if name in found.arrays else "absent"
        there = expected.get(name, "absent")
        if here != there:
            raise BadInput(
                f"{folder / WEIGHTS} is of another network than its config.json: {name} is {here} and should be "
                f"{there}; restore both from one copy"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(found.arrays[name]) for name in by_path(like)])


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, such as "Conv_0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _array(tensor: dict[str, Any], kind: np.dtype) -> np.ndarray:
    return np.frombuffer(tensor["data"], kind).reshape(tensor["shape"]).astype(np.float32)
