"""Data sets as arrays in memory, and batches as a pure function of (seed, step, process)."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ebm_jax.data.source import Found, Label, Source, class_sizes, digest_of, stored_label
from ebm_jax.types import BadInput, Batch

CHUNK = 256  # images that a thread reads in one go


class Dataset(NamedTuple):
    """Images uint8 [n, h, w, c] with labels int32 [n] in 0..num_classes-1, or soft ones float32 [n, num_classes]."""

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] = ()


def digits(split: str) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8x1, 17 gray levels spread over 0..255; every fifth is for testing."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    is_test = np.arange(len(bunch.target)) % 5 == 4
    check_split("digits", split, ["train", "test"])
    rows = is_test if split == "test" else ~is_test
    images = np.rint(bunch.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return Dataset(images, bunch.target[rows].astype(np.int32), 10, tuple("0123456789"))


def noise(shape: tuple[int, ...], num_classes: int, *, soft: bool) -> Dataset:
    """Uniform random images uint8 of `shape` [n, h, w, c] and labels, for a run that only tests that it runs."""
    rng = np.random.default_rng(0)
    images, n = rng.integers(0, 256, shape, np.uint8), shape[0]
    labels = rng.random((n, num_classes), np.float32) if soft else rng.integers(0, num_classes, n).astype(np.int32)
    return Dataset(images, labels, num_classes)


def as_source(dataset: Dataset, name: str, splits: tuple[str, ...] | None = None) -> Source:
    """Arrays in memory as a source; `splits` as in `Found`."""
    images, labels, num_classes, class_names = dataset

    def read(row: int) -> tuple[np.ndarray, Label]:
        return images[row], labels[row]

    found = Found(
        class_names, class_sizes(labels, num_classes), splits=splits, digest=lambda: digest_of(images, labels)
    )
    return Source(len(images), read, lambda row: f"{name} image {row}", num_classes, found)


def load(source: Source, workers: int) -> Dataset:
    """Read all images of a source into memory, with `workers` threads.

    Raises:
      BadInput: as `source.read` does.
    """
    image, label = source.read(0)
    label = stored_label(label)
    images = np.empty((source.length, *image.shape), np.uint8)
    labels = np.empty((source.length, *label.shape), label.dtype)

    def read_chunk(start: int) -> None:
        for row in range(start, min(start + CHUNK, source.length)):
            images[row], labels[row] = source.read(row)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(read_chunk, range(0, source.length, CHUNK)):  # the loop raises the threads' errors
            pass
    return Dataset(images, labels, source.num_classes, source.found.class_names)


def check_split(name: str, split: str, known: list[str]) -> None:
    """Raise BadInput for a split that is not among `known`."""
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


def check_length(num_images: int, batch_size: int) -> None:
    """Raise BadInput if the data set is smaller than one batch."""
    if num_images < batch_size:
        raise BadInput(f"train.batch_size {batch_size} is larger than the data set of {num_images} images")


def make_batches(
    dataset: Dataset, seed: int, batch_size: int, process: int = 0, num_processes: int = 1
) -> Callable[[int], Batch]:
    """The function step -> this process's rows of the global batch, as NumPy arrays [batch_size / num_processes, ...].

    Raises:
      BadInput: the data set is smaller than one batch.
    """
    num_images = len(dataset.images)
    check_length(num_images, batch_size)
    share = batch_size // num_processes

    def batch_at(step: int) -> Batch:
        rows = batch_rows(seed, step, batch_size, num_images)[process * share : (process + 1) * share]
        return Batch(dataset.images[rows], dataset.labels[rows])  # pyright: ignore[reportArgumentType]

    return batch_at


def sampled_batches(
    sample: Callable[[np.random.Generator, int], np.ndarray],
    seed: int,
    batch_size: int,
    process: int = 0,
    num_processes: int = 1,
) -> Callable[[int], Batch]:
    """The function step -> this process's rows of a global batch that is drawn anew from a law; labels are 0.

    Args:
      sample: (rng, n) -> float32 [n, *event] in [0, 1].
    """
    share = batch_size // num_processes

    def batch_at(step: int) -> Batch:
        points = sample(np.random.default_rng([seed, step]), batch_size)[process * share : (process + 1) * share]
        return Batch(points, np.zeros(share, np.int32))  # pyright: ignore[reportArgumentType]

    return batch_at
