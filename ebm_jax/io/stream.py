"""Batches of a set that does not fit in memory: decoded ahead by threads, resumed at any step with nothing stored."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grain
import numpy as np

from ebm_jax.io import data
from ebm_jax.io.source import Source, stored_label
from ebm_jax.types import Batch

BATCHES_AHEAD = 2


@contextmanager
def open_batches(
    source: Source, seed: int, batch_size: int, workers: int, process: int = 0, num_processes: int = 1
) -> Iterator[Callable[[int], Batch]]:
    """What `data.make_batches` gives for the same images in memory, bit for bit, while they stay where they are.

    The value is a function, step -> this process's rows of the global batch, as NumPy arrays
    [batch_size / num_processes, ...]. Steps in sequence come from images read ahead; any other step starts the reading
    anew there. The threads end with the context. One thread at a time may call it.

    Args:
      workers: the threads that read and decode, at least 1.

    Raises:
      BadInput: the data set is smaller than one batch; and, from the function, whatever `source.read` raises.
    """
    data.check_length(source.length, batch_size)
    share = batch_size // num_processes
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(workers, BATCHES_AHEAD * share))
    lock = threading.Lock()

    def read(element: int) -> tuple[np.ndarray, Any]:
        step, offset = divmod(element, share)
        with lock:  # else each thread would draw the permutation of a new epoch
            row = data.batch_rows(seed, step, batch_size, source.length)[process * share + offset]
        image, label = source.read(int(row))
        return image, stored_label(label)

    def start(step: int) -> Any:
        elements = grain.MapDataset.range(step * share, sys.maxsize).map(read)
        return iter(elements.to_iter_dataset(options).batch(share))

    reading, upcoming = start(0), 0

    def batch_at(step: int) -> Batch:
        nonlocal reading, upcoming
        if step != upcoming:
            reading.close()
            reading = start(step)
        upcoming = -1  # where an error leaves it: the next call starts anew
        batch = Batch(*next(reading))
        upcoming = step + 1
        return batch

    try:
        yield batch_at
    finally:
        reading.close()
