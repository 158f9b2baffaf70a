"""Networks made elsewhere, as objects with `init` and `apply`: Flax nnx, Equinox, a function with its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from ebm_jax import registry
from ebm_jax.arguments import shapes_of
from ebm_jax.models.energy import takes
from ebm_jax.types import BadInput, Params


class Outside(NamedTuple):
    """A network whose parameters exist already: `init` gives them, whatever its key."""

    init: Callable[..., Params]
    """(key, images) -> parameters, float32, by names"""
    apply: Callable[..., Any]
    """(parameters, images) or (parameters, images, labels) -> energies"""


def name_of(net: Any, params: Any = None) -> str:
    """The name that a config has for a network of Python, from now on in this process; a name stays as it is.

    Raises:
      BadInput: as `as_init_and_apply`.
    """
    if isinstance(net, str):
        return net
    made = as_init_and_apply(net, params)
    return registry.keep(net if params is None else (net, shapes_of(params)), lambda: made)


def as_init_and_apply(net: Any, params: Any = None) -> Any:
    """The network as a Flax linen module, or as an object with `init` and `apply`.

    Args:
      net: a Flax linen or nnx module, or an object with `init` and `apply`: of a batch of images, and of labels where
        it takes them. An Equinox module, of one image. With `params`, a function (params, images) or (params, images,
        labels) -> energies.
      params: any tree of arrays.

    Raises:
      BadInput: it is none of these; an nnx module keeps other variables than parameters, which nothing here updates.
    """
    if isinstance(net, type) and (issubclass(net, nn.Module | nnx.Module) or _is_equinox(net)):
        raise BadInput(f"net is the class {net.__name__}; give a network made from it, such as {net.__name__}()")
    if params is not None:
        if not callable(net):
            raise BadInput(f"net is of the type {type(net).__name__}; with params give a function (params, images)")
        return _outside(params, lambda tree: lambda *inputs: net(tree, *inputs), takes(net, 3))
    if isinstance(net, nnx.Module):
        return _of_nnx(net)
    if isinstance(net, nn.Module) or all(callable(getattr(net, name, None)) for name in ("init", "apply")):
        return net
    if callable(net) and _is_equinox(net):
        return _outside(net, lambda tree: jax.vmap(tree), takes(net, 2))
    raise BadInput(
        f"net is of the type {type(net).__name__}; give a Flax or Equinox module, an object with init and apply, the "
        "name of a network such as unet, or a function (params, images) with params=..."
    )


def _of_nnx(net: nnx.Module) -> Outside:
    graph, params, others = nnx.split(net, nnx.Param, ...)
    if beside := sorted(
        {
            type(one).__name__
            for one in jax.tree.leaves(others, is_leaf=lambda one: isinstance(one, nnx.Variable))
            if isinstance(one, nnx.BatchStat)
        }
    ):
        raise BadInput(
            f"{type(net).__name__} keeps {', '.join(beside)} beside its parameters, which nothing here updates; use "
            "layers without such a state"
        )
    return _outside(params, lambda tree: nnx.merge(graph, tree, others), takes(net, 2))  # pyright: ignore[reportArgumentType]  # a module that is no function fails at its call


def _outside(tree: Any, callable_of: Callable[[Any], Callable[..., Any]], takes_labels: bool) -> Outside:
    """A network of the floating-point arrays of a tree; its other leaves stay as they are.

    Args:
      callable_of: from such a tree to the function of images and labels.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in paths]
    moved = {_name(place, path): place for place, (path, leaf) in enumerate(paths) if _is_floating(leaf)}
    if not moved:
        raise BadInput("net has no floating-point arrays, and so nothing to learn")

    def init(key: Any, images: Any) -> Params:
        del key, images
        return {name: jnp.asarray(leaves[place], jnp.float32) for name, place in moved.items()}

    def rebuilt(params: Params) -> Any:
        given = {place: params[name] for name, place in moved.items()}
        return jax.tree.unflatten(structure, [given.get(place, leaf) for place, leaf in enumerate(leaves)])

    def with_labels(params: Params, images: Any, labels: Any) -> Any:
        return callable_of(rebuilt(params))(images, labels)

    return Outside(init, with_labels if takes_labels else lambda params, images: callable_of(rebuilt(params))(images))


def _name(place: int, path: Any) -> str:
    """A name of a leaf that checkpoints can take: with its number, without dots and slashes."""
    words = jax.tree_util.keystr(path, simple=True, separator="_")
    return f"{place}_{''.join(c if c.isalnum() else '_' for c in words)}"


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_equinox(net: Any) -> bool:
    """Whether it is an Equinox module, without importing Equinox."""
    return any(one.__module__.partition(".")[0] == "equinox" for one in type(net).__mro__)
