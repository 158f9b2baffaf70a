"""Checks of what a caller gives a Python function: one line with the argument, its value, the limit and the cure.

They look at shapes and types, which JAX knows while it traces. So they cost a compiled program nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax.kinds import shown
from ebm_jax.types import BadInput, Given, Images

HALF_FLOATS = (jnp.bfloat16, jnp.float16)
Shapes = Mapping[str, tuple[int, ...]]  # of the leaves of a tree, by their names "a/b/kernel"


def check_whole(name: str, given: Given, least: int) -> None:
    """Refuse a number that is not whole, or below `least`.

    Raises:
      BadInput: with the number and the limit.
    """
    whole = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
    if not whole or given < least:
        raise BadInput(f"{name} {shown(given)} is out of range; give a whole number, {least} or more")


def check_key(name: str, given: Given) -> None:
    """Refuse what is not one typed PRNG key, such as a seed, a key of `jax.random.PRNGKey`, or several keys.

    Raises:
      BadInput: with what was given instead.
    """
    if not is_array(given):
        seed = given if isinstance(given, int) else 0
        raise BadInput(f"{name} {shown(given)} is no PRNG key; give jax.random.key({seed})")
    if not jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        raise BadInput(
            f"{name} is {given.dtype} of shape {given.shape}, no typed PRNG key; give jax.random.key(SEED), or "
            "jax.random.wrap_key_data of a key that jax.random.PRNGKey made"
        )
    if given.shape:
        raise BadInput(f"{name} has the shape {given.shape}: it is several keys; give one, or use jax.vmap")


def check_images(name: str, given: Given, event_shape: tuple[int, ...] | None = None) -> None:
    """Refuse what is no batch [b, *event] of floats, b >= 1.

    Args:
      event_shape: the shape of one image; None: any.

    Raises:
      BadInput: with the type or shape, and what to do.
    """
    if not is_array(given):
        raise BadInput(f"{name} is of the type {type(given).__name__}; give an array of JAX or NumPy")
    wanted = f"[n, {', '.join(map(str, event_shape))}]" if event_shape else "[n, ...]"
    shape = tuple(given.shape)
    if not shape or shape == event_shape:
        raise BadInput(f"{name} of shape {shape} has no batch axis; give {wanted}, one image as {name}[None]")
    if event_shape and shape[1:] != event_shape:
        raise BadInput(f"{name} of shape {shape} does not fit this model's {wanted}; {_cure(name, shape, event_shape)}")
    if shape[0] == 0:
        raise BadInput(f"{name} of shape {shape} is an empty batch; give 1 or more")
    if not jnp.issubdtype(given.dtype, jnp.floating):
        pixels = given.dtype == np.uint8
        cure = f"{name} / 255, or ebm_jax.random.dequantise(key, {name}) as in training" if pixels else "floats"
        raise BadInput(f"{name} is of {given.dtype}; an energy takes floats, pixels being in [0, 1]: give {cure}")


def _cure(name: str, shape: tuple[int, ...], event_shape: tuple[int, ...]) -> str:
    if len(event_shape) == 3 and shape[1:] == (event_shape[2], *event_shape[:2]):
        return f"channels come last: give {name}.transpose(0, 2, 3, 1)"
    if shape[1:] == event_shape[:-1] and event_shape[-1] == 1:
        return f"give {name}[..., None]"
    return "resize them, or use a run of that data.shape"


def as_floats(given: Images) -> Images:
    """A start of chains as an array of JAX: bfloat16 and float16 become float32, float32 and float64 stay."""
    x = jnp.asarray(given)
    return x.astype(jnp.float32) if x.dtype in HALF_FLOATS else x


def check_params(given: Given, expected: Shapes) -> None:
    """Refuse a tree of parameters whose names or shapes are not the expected ones.

    Raises:
      BadInput: with the first leaf that differs, and what to give.
    """
    if (
        isinstance(given, Mapping)
        and set(given) == {"params"}
        and not any(name.startswith("params/") for name in expected)
    ):
        raise BadInput('params is a tree {"params": ...}; give what is inside, params["params"]')
    found = shapes_of(given)
    for name in sorted(found.keys() | expected.keys()):
        there, here = found.get(name, "absent"), expected.get(name, "absent")
        if there != here:
            raise BadInput(
                f"params are of another network than the config's: {name} is {there} there and {here} here; give those "
                "that ebm_jax.load or init_params made for this config"
            )


def shapes_of(tree: Any) -> dict[str, Any]:
    """The shape of each leaf by its name; the type of what is no array of floats."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _shape(leaf) for path, leaf in leaves}


def _shape(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"of {getattr(leaf, 'dtype', type(leaf).__name__)}"
    return tuple(leaf.shape)


def is_array(given: Given) -> bool:
    """Whether it is an array of JAX, traced or not, or of NumPy."""
    return isinstance(given, (jax.Array, np.ndarray, np.generic))
