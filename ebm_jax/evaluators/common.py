"""The types of an evaluator: it takes a run and evidence, and gives numbers, their protocol, and pictures."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ebm_jax.data.memory import Dataset
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey

Draw = Callable[[Path], None]
SAMPLES = "samples"  # in an evaluator's needs, beside the keys of splits


class Samples(NamedTuple):
    """Images that the model made."""

    images: np.ndarray
    """float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n] or float32 [n, k]: the label of each sample."""
    origin: str
    """In words: fresh chains with the number of their steps and of noise-free steps, or a buffer."""


class Value(NamedTuple):
    """One number of an evaluation."""

    number: float
    standard_error: float | None = None
    """The protocol states what it is taken over; None: there is none."""


class Outcome(NamedTuple):
    """What an evaluator found."""

    values: dict[str, Value]
    """By name, with the unit if there is one, such as "log Z, nats"; names "row / column" make a grid."""
    protocol: dict[str, str]
    """How the values came about, each fact in words: sample sizes, sets and their hashes, chain steps, seeds."""
    pictures: dict[str, Draw]
    """By name: a function that draws to the path of a .png."""
    verdicts: tuple[str, ...] = ()
    """What the numbers say: sentences with the number, what it is compared with, and the source of a threshold."""


class Evidence(NamedTuple):
    """What an evaluator needs, and nothing else; made once for all metrics of an evaluation."""

    data: Mapping[str, Dataset]
    """From a split's key, such as "eval.split", to all images of it in the run's own data, with the data's labels."""
    drawn: Samples | None = None
    shared: Any = None
    """What the evaluator's `shared` gave."""
    note: Note = lambda words: None

    @property
    def samples(self) -> Samples:
        """`eval.num_samples` samples of the model, from fresh chains or the training buffer (`eval.samples`).

        Raises:
          BadInput: the evaluator does not list samples in its needs.
        """
        if self.drawn is None:
            raise BadInput("this metric did not say that it needs samples; add 'samples' to the needs of its Evaluator")
        return self.drawn


Needs = tuple[str, ...]


class Evaluator(NamedTuple):
    """One metric."""

    check: Callable[[Config], None]
    """Refuses a config that the metric cannot work with, before anything is measured."""
    measure: Callable[[TrainedRun, Evidence], Outcome]
    needs: Needs | Callable[[Config], Needs]
    """"samples", and the config's keys of splits, such as "eval.split"; or a function from a config to these."""
    shared: Callable[[TrainedRun, Evidence], Any] | None = None
    """A measurement that several metrics use: it is made once, from the evidence of the first of them."""

    def needed(self, config: Config) -> Needs:
        """What the metric needs of a run of this config."""
        return self.needs(config) if callable(self.needs) else self.needs


def unchecked(config: Config) -> None:
    """The check of a metric that fits any run."""
    del config


def key_of(config: Config, number: int) -> PRNGKey:
    """The key of all randomness of one evaluator, from `eval.seed` and the evaluator's number; the samples have 0."""
    return jax.random.fold_in(jax.random.key(config.eval.seed), number)


def described(config: Config, split: str, images: np.ndarray) -> str:
    """A split in words, for a protocol: its name, size and SHA-256."""
    size = "x".join(map(str, images.shape[1:]))
    return f"{config.data.name} {split}, {len(images):,} images of {size}, SHA-256 {sha256(images)}"


def chosen_rows(length: int, count: int, seed: int) -> np.ndarray:
    """`count` different random rows of 0..length-1, or all if fewer, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(length)[:count])


def sha256(array: np.ndarray) -> str:
    """The hash of an array's shape, type and values in hexadecimal digits."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
