"""What an evaluator is given, a trained run, and what it gives back: numbers, how they came about, and pictures."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ebm_jax import build
from ebm_jax.io.data import Dataset
from ebm_jax.models import energy
from ebm_jax.types import Config, EnergyFn, Labels, Params, PRNGKey

Draw = Callable[[Path], None]


class Samples(NamedTuple):
    """Images that the model made."""

    images: np.ndarray
    """float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n] or float32 [n, k]: what each was sampled under."""
    origin: str
    """In words: fresh chains of how many steps, how many of them noise-free, or the training buffer."""


class Value(NamedTuple):
    """One number of an evaluation."""

    number: float
    standard_error: float | None = None
    """Over what is stated in the protocol; None where there is none."""


class Outcome(NamedTuple):
    """What an evaluator found."""

    values: dict[str, Value]
    """By name, with its unit where it has one, such as "log Z, nats"."""
    protocol: dict[str, str]
    """How they came about, each fact in words: sample sizes, sets and their hashes, chain steps, seeds."""
    pictures: dict[str, Draw]
    """By name: a function that draws to the path of a .png."""


class Subject:
    """A trained run under evaluation; what is costly is made once, when it is first asked for.

    Args:
      params: of the network, or of several, stacked, which are an ensemble.
      step: of the checkpoint that they are from.
      folder: of the run, for what an evaluator keeps.
    """

    def __init__(self, config: Config, params: Params, mesh: Mesh, step: int, folder: Path) -> None:
        self.config, self.params, self.mesh, self.step, self.folder = config, params, mesh, step, folder

    @property
    def key(self) -> PRNGKey:
        """The key of all randomness of an evaluation; each evaluator folds its own number in."""
        return jax.random.key(self.config.eval.seed)

    def energy_fn(self, labels: Labels | None = None) -> EnergyFn:
        """The energy of images under these labels [b] or [b, k]; None for an unconditional model."""
        return energy.bind(energy.of_members(build.make_apply(self.config)), self.params, labels)

    def data(self, split: str) -> Dataset:
        """All images uint8 of a split of the run's own data, preprocessed as in training, with their labels."""
        raise NotImplementedError

    @cached_property
    def samples(self) -> Samples:
        """`eval.num_samples` samples of the model, as `eval.samples` says: of fresh chains, or the training buffer."""
        raise NotImplementedError


Evaluator = Callable[[Subject], Outcome]
