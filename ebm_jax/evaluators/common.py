"""What an evaluator is given, a run and evidence, and what it gives back: numbers, their origin, and pictures."""

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
    """By name, with its unit where it has one, such as "log Z, nats"; of names "row / column" a grid is shown."""
    protocol: dict[str, str]
    """How they came about, each fact in words: sample sizes, sets and their hashes, chain steps, seeds."""
    pictures: dict[str, Draw]
    """By name: a function that draws to the path of a .png."""


class Evidence(NamedTuple):
    """What an evaluator said that it needs, and nothing else; made once for all metrics of an evaluation."""

    data: Mapping[str, Dataset]
    """All images of a split of the run's own data, with the data's labels, by the config's key: "eval.split"."""
    drawn: Samples | None = None
    shared: Any = None
    """What the evaluator's `shared` gave."""
    note: Note = lambda words: None

    @property
    def samples(self) -> Samples:
        """`eval.num_samples` samples of the model, as `eval.samples` says: of fresh chains, or the training buffer."""
        if self.drawn is None:
            raise BadInput("this metric did not say that it needs samples; add 'samples' to the needs of its Evaluator")
        return self.drawn


Needs = tuple[str, ...]


class Evaluator(NamedTuple):
    """One metric."""

    check: Callable[[Config], None]
    """Refuses, before anything is measured, a config that the metric cannot be measured with."""
    measure: Callable[[TrainedRun, Evidence], Outcome]
    needs: Needs | Callable[[Config], Needs]
    """"samples", and the config's keys of splits, such as "eval.split"; or a function that tells them from a config."""
    shared: Callable[[TrainedRun, Evidence], Any] | None = None
    """A measurement that other metrics are made of too: it is made once, from what the first of them needs."""

    def needed(self, config: Config) -> Needs:
        """What the metric needs of a run of this config."""
        return self.needs(config) if callable(self.needs) else self.needs


def unchecked(config: Config) -> None:
    """The check of a metric that any run has."""
    del config


def key_of(config: Config, number: int) -> PRNGKey:
    """The key of all randomness of one evaluator, by `eval.seed` and the evaluator's own number; 0 is the samples'."""
    return jax.random.fold_in(jax.random.key(config.eval.seed), number)


def described(config: Config, split: str, images: np.ndarray) -> str:
    """A split in words, for a protocol: its name, size and SHA-256."""
    size = "x".join(map(str, images.shape[1:]))
    return f"{config.data.name} {split}, {len(images):,} images of {size}, SHA-256 {sha256(images)}"


def chosen_rows(length: int, count: int, seed: int) -> np.ndarray:
    """`count` different random rows of 0..length-1, or all of fewer, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(length)[:count])


def sha256(array: np.ndarray) -> str:
    """The hash of an array's shape, type and values in hexadecimal digits."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
