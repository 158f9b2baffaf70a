"""What the package asks of a network, and how a Flax module or a user's own object answers.

A network is a Flax linen module, called as `module.apply({"params": params}, images, labels, rngs=...)`, or any object
with `init(key, images, labels) -> params` and `apply(params, images, labels) -> energies`. Images are [b, *event] in
float32, energies [b] in float32, and parameters nested dicts of arrays. A network without classes may leave labels out.

A network may say how spectral normalisation treats each leaf of two or more dimensions: `spectral_form(path)` is
"normalised", "bounded" or None. The path is the tuple of the leaf's names in the tree of parameters. A network without
such a function has all these leaves normalised.

A network may have an energy for images of no class: `unlabelled(labels)` gives the labels that ask for it. By a true
`loops_well` it may say that its gradients are as fast inside a loop as outside, on a CPU too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ebm_jax.models import energy, spectral
from ebm_jax.models.energy import ApplyFn
from ebm_jax.types import BadInput, Images, Labels, Params, PRNGKey, Unlabelled


class Network(NamedTuple):
    """A network as two pure functions, and what it says of its kernels."""

    init: Callable[[PRNGKey, Any, Any], Params]
    """(key, images, labels) -> parameters; only shapes and types of images and labels count"""
    apply: ApplyFn
    """(params, images, labels=None, dropout_key=None) -> energies"""
    spectral_form: spectral.FormOf
    takes_labels: bool
    unlabelled: Unlabelled | None = None
    """Labels -> as many labels that stand for no class; None if the network has none."""
    loops_well: bool = False
    """Whether on a CPU its gradients are as fast inside a loop as outside: then several steps of a call are a loop."""


def as_network(made: Any) -> Network:
    """A Flax module, or an object with `init` and `apply`, as a `Network`.

    Raises:
      BadInput: it is neither.
    """
    form_of = getattr(made, "spectral_form", spectral.every_matrix)
    also = getattr(made, "unlabelled", None), bool(getattr(made, "loops_well", False))
    if isinstance(made, nn.Module):
        takes_labels = energy.takes(made.__call__, 2)
        return Network(_init_of_module(made, takes_labels), energy.from_module(made), form_of, takes_labels, *also)
    if callable(getattr(made, "init", None)) and callable(getattr(made, "apply", None)):
        takes_labels = energy.takes(made.apply, 3)
        return Network(_init_of_object(made), _apply_of_object(made), form_of, takes_labels, *also)
    raise BadInput(
        f"a {type(made).__name__} is no network; give a Flax linen module, or an object with init(key, images, labels) "
        "and apply(params, images, labels)"
    )


def _init_of_module(module: nn.Module, takes_labels: bool) -> Callable:
    def init(key: PRNGKey, images: Any, labels: Any) -> Params:
        variables = module.lazy_init(key, images, labels) if takes_labels else module.lazy_init(key, images)
        if beside := sorted(set(variables) - {"params"}):
            raise BadInput(
                f"{type(module).__name__} keeps {', '.join(beside)} beside its parameters, which nothing here updates; "
                "use layers without such a state"
            )
        return variables["params"]

    return init


def _init_of_object(made: Any) -> Callable:
    takes_labels = energy.takes(made.init, 3)

    def init(key: PRNGKey, images: Any, labels: Any) -> Any:
        inputs = (images, labels) if takes_labels else (images,)
        return made.init(key, *(jnp.zeros(like.shape, like.dtype) for like in inputs))

    return init


def _apply_of_object(made: Any) -> ApplyFn:
    takes_labels = energy.takes(made.apply, 3)

    def apply(params: Params, images: Images, labels: Labels | None = None, dropout_key: PRNGKey | None = None):
        del dropout_key
        return made.apply(params, images, labels) if takes_labels else made.apply(params, images)

    return apply


def check(network: Network, images: jax.ShapeDtypeStruct, labels: jax.ShapeDtypeStruct, conditional: bool) -> None:
    """Refuse a network that does not give one energy for each image; this computes nothing.

    Args:
      images, labels: shapes and types of a batch.
      conditional: whether the energies depend on the labels.

    Raises:
      BadInput: `init` or `apply` fails; the network is conditional and takes no labels; its parameters are not nested
        dicts of floating-point arrays; its energies are not float32 of shape [b].
    """
    if conditional and not network.takes_labels:
        raise BadInput(
            "it takes images alone; let it take labels too, or use model.num_classes=1 and data.condition=class"
        )
    params = _traced("init", images, network.init, jax.random.key(0), images, labels)
    if not _is_nested(params):
        raise BadInput("its parameters are no nested dicts of floating-point arrays, with names free of '.' and '/'")
    energies = _traced("apply", images, network.apply, params, images, labels)
    one_each = jax.ShapeDtypeStruct(images.shape[:1], jnp.float32)
    if energies != one_each:
        raise BadInput(
            f"its energies of {images.shape[0]} images are {energies}; return {one_each}, one for each image"
        )


def _traced(name: str, images: jax.ShapeDtypeStruct, fn: Callable, *args: Any) -> Any:
    """The shapes that `fn` returns; `name` is its name in messages."""
    try:
        return jax.eval_shape(fn, *args)
    except BadInput:
        raise
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"its {name} fails for images {images.shape} ({type(error).__name__}: {reason})") from error


def _is_nested(tree: Any) -> bool:
    """Whether checkpoints and exports can name every array, and the optimiser can move it."""
    if type(tree) is not dict:
        return hasattr(tree, "dtype") and jnp.issubdtype(tree.dtype, jnp.floating)
    named = (isinstance(name, str) and not {".", "/"} & set(name) and _is_nested(part) for name, part in tree.items())
    return bool(tree) and all(named)
