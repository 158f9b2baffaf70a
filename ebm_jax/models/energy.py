"""From a network to an energy: a function of images alone, which is all that a sampler sees."""

from collections.abc import Callable
from typing import cast

import flax.linen as nn

from ebm_jax.types import Energies, EnergyFn, Images, Labels, Params, PRNGKey

ApplyFn = Callable[..., Energies]


def from_module(module: nn.Module) -> ApplyFn:
    """The pure function `apply(params, images, labels=None, dropout_key=None) -> energies` of a Flax network.

    Dropout acts only where a `dropout_key` is given: in the loss of a training step, never in a chain.
    """

    def apply(
        params: Params, images: Images, labels: Labels | None = None, dropout_key: PRNGKey | None = None
    ) -> Energies:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        training = dropout_key is not None
        return cast(Energies, module.apply({"params": params}, images, labels, training=training, rngs=rngs))

    return apply


def bind(apply: ApplyFn, params: Params, labels: Labels | None = None) -> EnergyFn:
    """The energy of images under fixed parameters, and under one fixed label an image where `labels` [b] are given."""
    return lambda images: apply(params, images, labels)
