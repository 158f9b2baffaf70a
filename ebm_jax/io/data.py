"""Data sets as arrays in memory, and batches as a pure function of (seed, step, process)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ebm_jax.types import BadInput, Batch


class Dataset(NamedTuple):
    """Images uint8 [n, h, w, c] with labels int32 [n] in 0..num_classes-1."""

    images: np.ndarray
    labels: np.ndarray
    num_classes: int


def digits(split: str) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8x1, 17 gray levels spread over 0..255; every fifth is for testing."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    is_test = np.arange(len(bunch.target)) % 5 == 4
    check_split("digits", split, ["train", "test"])
    rows = is_test if split == "test" else ~is_test
    images = np.rint(bunch.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return Dataset(images, bunch.target[rows].astype(np.int32), 10)


def check_split(name: str, split: str, known: list[str]) -> None:
    """Raises `BadInput` for a split that is not among the known ones."""
    if split not in known:
        raise BadInput(f"data.split '{split}' is not a split of {name}; use one of {', '.join(known)}")


def batch_rows(seed: int, step: int, batch_size: int, num_images: int) -> np.ndarray:
    """The rows [batch_size] of training step `step` >= 0: epochs are permutations, an incomplete last batch is dropped.

    A pure function of its arguments, so a resumed run goes on exactly where it stopped.
    """
    epoch, batch = divmod(step, num_images // batch_size)
    return _permutation(seed, epoch, num_images)[batch * batch_size : (batch + 1) * batch_size]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def make_batches(
    dataset: Dataset, seed: int, batch_size: int, process: int = 0, num_processes: int = 1
) -> Callable[[int], Batch]:
    """The function step -> this process's rows of the global batch, as NumPy arrays [batch_size / num_processes, ...].

    Raises:
      BadInput: the data set is smaller than one batch.
    """
    num_images = len(dataset.images)
    if num_images < batch_size:
        raise BadInput(f"train.batch_size {batch_size} is larger than the data set of {num_images} images")
    share = batch_size // num_processes

    def batch_at(step: int) -> Batch:
        rows = batch_rows(seed, step, batch_size, num_images)[process * share : (process + 1) * share]
        return Batch(dataset.images[rows], dataset.labels[rows])  # pyright: ignore[reportArgumentType]

    return batch_at
