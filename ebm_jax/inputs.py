"""What the Python functions of one config take, checked as the command line checks it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ebm_jax import arguments, checks
from ebm_jax.assemble import abstract_params, labels_for
from ebm_jax.models.energy import Stacked
from ebm_jax.types import Config, Given, Images, Labels


class Inputs(NamedTuple):
    """The checked config of some functions, and the shapes of what they take. All checks raise BadInput in one line."""

    config: Config
    """Locked, under present names: later changes of the caller's config have no effect."""
    shapes: arguments.Shapes
    """Of one network's parameters, by name."""

    def check_params(self, given: Given) -> None:
        """Refuse parameters of another network; stacked ones are an ensemble's."""
        if isinstance(given, Stacked):
            first = next(iter(arguments.shapes_of(given.params).values()), None)
            members = first[:1] if isinstance(first, tuple) else ()
            arguments.check_params(given.params, {name: (*members, *shape) for name, shape in self.shapes.items()})
        else:
            arguments.check_params(given, self.shapes)

    def images(self, given: Given, name: str = "images") -> Images:
        """The images [b, *event] as float32."""
        arguments.check_images(name, given, tuple(self.config.data.shape))
        return jnp.asarray(given, jnp.float32)

    def labels(self, given: Given, number: Any = None) -> Labels:
        """The labels int32 [b] or float32 [b, k]; if none are given, zeros or those of no class (`labels_for`)."""
        return labels_for(self.config, given, number)


def of(config: Config) -> Inputs:
    """What the functions of this config take.

    Raises:
      BadInput: the config cannot work, or names a network that is none.
    """
    config = checks.usable(config)
    return Inputs(config, arguments.shapes_of(abstract_params(config)))
