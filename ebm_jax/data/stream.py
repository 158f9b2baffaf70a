"""Batches of a set that does not fit in memory: threads decode ahead, and any step can resume without stored state."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grain
import numpy as np

from ebm_jax.data import memory
from ebm_jax.data.source import Source, stored_label
from ebm_jax.types import Batch

BATCHES_AHEAD = 2
PIECE = 16  # images that a thread reads in one go, at most: Grain costs 0.1 ms for each piece


@contextmanager
def open_batches(
    source: Source, seed: int, batch_size: int, workers: int, process: int = 0, num_processes: int = 1
) -> Iterator[Callable[[int], Batch]]:
    """The batches that `memory.make_batches` gives for the same images in memory, bit for bit.

    The value is a function, step -> this process's rows of the global batch, as NumPy arrays
    [batch_size / num_processes, ...]. Steps in sequence come from images read ahead; any other step starts the reading
    anew there. The threads end with the context. One thread at a time may call the function.

    Args:
      workers: the threads that read and decode, at least 1.

    Raises:
      BadInput: the data set is smaller than one batch; and, from the function, whatever `source.read` raises.
    """
    memory.check_length(source.length, batch_size)
    share = batch_size // num_processes
    pieces = -(-share // PIECE)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(workers, BATCHES_AHEAD * pieces))
    lock = threading.Lock()

    def read(element: int) -> Batch:
        step, piece = divmod(element, pieces)
        with lock:  # else each thread would draw the permutation of a new epoch
            rows = memory.batch_rows(seed, step, batch_size, source.length)[process * share : (process + 1) * share]
        examples = [source.read(int(row)) for row in np.array_split(rows, pieces)[piece]]
        return _batch(np.stack, [(image, stored_label(label)) for image, label in examples])

    def start(step: int) -> Any:
        elements = grain.MapDataset.range(step * pieces, sys.maxsize).map(read)
        return iter(elements.to_iter_dataset(options).batch(pieces, batch_fn=partial(_batch, np.concatenate)))

    reading, upcoming = start(0), 0

    def batch_at(step: int) -> Batch:
        nonlocal reading, upcoming
        if step != upcoming:
            reading.close()
            reading = start(step)
        upcoming = -1  # after an error the next call starts anew
        batch = next(reading)
        upcoming = step + 1
        return batch

    try:
        yield batch_at
    finally:
        reading.close()


def _batch(join: Callable[[list], np.ndarray], parts: Iterable[Iterable]) -> Batch:
    """Pairs of image and label, or shorter batches, as one batch."""
    images, labels = (join(list(column)) for column in zip(*parts, strict=True))
    return Batch(images, labels)  # pyright: ignore[reportArgumentType]
