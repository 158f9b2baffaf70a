"""Laws that chains start from: easy to draw from, with a known density on a known set."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ebm_jax import random
from ebm_jax.sampling.kernel import Project, unbounded, unit_box
from ebm_jax.types import EnergyFn, Images, PRNGKey


class Base(NamedTuple):
    """A law on a set. Chains of training, sampling and annealed importance sampling start from it and stay in it."""

    energy_fn: EnergyFn
    """U₀ = -log density, [b], with the normaliser included: ∫ exp(-U₀(x)) dx = 1."""
    sample: Callable[[PRNGKey, int], Images]
    """(key, n) -> [n, *event]"""
    project: Project
    """Moves points onto the law's set."""
    centre: float = 0.5
    """The mean of every coordinate."""
    scale: float = 1.0
    """The length, in pixel values, that is 1 for the law: its standard deviation, where it is a normal law."""
    finish: Project = unbounded
    """Moves the end of a chain onto the set of images."""


def uniform(event_shape: tuple[int, ...]) -> Base:
    """The uniform law on [0, 1]^d: density 1."""

    def energy_fn(x: Images) -> Array:
        return jnp.zeros(x.shape[0], x.dtype)

    return Base(energy_fn, _in_rows(random.uniform, event_shape), unit_box)


def normal(event_shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> Base:
    """N(mean, std² I) on R^d."""
    log_normaliser = math.prod(event_shape) * math.log(std * math.sqrt(2 * math.pi))
    standard = _in_rows(random.normal, event_shape)

    def energy_fn(x: Images) -> Array:
        return 0.5 * jnp.square((x - mean) / std).sum(tuple(range(1, x.ndim))) + log_normaliser

    return Base(energy_fn, lambda key, n: mean + std * standard(key, n), unbounded, mean, std)


def centred_normal(event_shape: tuple[int, ...]) -> Base:
    """N(½, ¼ I): the standard normal law of pixels 2 x - 1 in [-1, 1]. Its chains are free, and end in the unit box."""
    return normal(event_shape, 0.5, 0.5)._replace(finish=unit_box)


def _in_rows(draw: Callable[..., Array], event_shape: tuple[int, ...]) -> Callable[[PRNGKey, int], Images]:
    """Draw rows, then reshape: a replay buffer keeps rows, and a TPU would pad [n, h, w, c] to whole tiles."""
    return lambda key, n: draw(key, (n, math.prod(event_shape))).reshape(n, *event_shape)


BASES = {"uniform": uniform, "normal": normal, "centred_normal": centred_normal}
WORDS = {"uniform": "uniform noise", "normal": "standard normal noise", "centred_normal": "normal noise"}
