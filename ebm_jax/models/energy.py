"""From a network to an energy: a function of images alone, which is all that a sampler sees."""

from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from ebm_jax.models.spectral import HEAD
from ebm_jax.types import Energies, EnergyFn, Images, Labels, Params, PRNGKey

ApplyFn = Callable[..., Energies]


def from_module(module: nn.Module, dtype: DTypeLike = jnp.float32) -> ApplyFn:
    """The pure function `apply(params, images, labels=None, dropout_key=None) -> energies` of a Flax network.

    Dropout acts only where a `dropout_key` is given.

    Args:
      dtype: the type that the network computes in up to its head. Parameters, images, energies and their gradients are
        float32 outside of it.
    """

    def apply(
        params: Params, images: Images, labels: Labels | None = None, dropout_key: PRNGKey | None = None
    ) -> Energies:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        inside = {"params": _in_dtype(params, dtype)}
        energies = module.apply(inside, images.astype(dtype), labels, training=dropout_key is not None, rngs=rngs)
        return cast(Energies, energies)

    return apply


def _in_dtype(params: Params, dtype: DTypeLike) -> Params:
    """The parameters of all layers but the head in `dtype`."""
    return {
        name: layer if name == HEAD else jax.tree.map(lambda leaf: leaf.astype(dtype), layer)
        for name, layer in params.items()
    }


def bind(apply: ApplyFn, params: Params, labels: Labels | None = None, dropout_key: PRNGKey | None = None) -> EnergyFn:
    """The energy of images under fixed parameters, one fixed label an image where given, and one fixed dropout mask."""
    return lambda images: apply(params, images, labels, dropout_key=dropout_key)
