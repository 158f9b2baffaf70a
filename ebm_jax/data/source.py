"""Sources of images, read one by one in any order; images that cannot be read are named, counted and skipped."""

import hashlib
import itertools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ebm_jax.data.decode import Unreadable
from ebm_jax.types import BadInput

Label = Any  # an integer in 0..num_classes-1, or a soft label, a float vector [num_classes]


class Found(NamedTuple):
    """What a source came upon, as far as it knows: for one line at the start of a run, and for the run's data.json."""

    class_names: tuple[str, ...] = ()
    """In the order of their labels; empty: the classes have no names."""
    class_sizes: tuple[int, ...] = ()
    """Images of each class, in the same order; empty: not counted."""
    passed_over: tuple[tuple[str, int], ...] = ()
    """(Reason in words, such as "hidden", and how many files it kept out), only where there are some."""
    values: tuple[float, float] | None = None
    """The smallest and largest stored value; None: not measured."""
    measured: int = 0
    """Images that `values` was measured over."""
    splits: tuple[str, ...] | None = None
    """The names of all splits that there are, as `data.split` takes them; None: the source does not know."""
    notes: tuple[str, ...] = ()
    """Further sentences that a person has to know, such as a scale that was taken for the values."""
    digest: Callable[[], str] | None = None
    """A SHA-256 in hexadecimal digits that depends on the data, not on where they lie; None: there is none."""
    id_of: Callable[[int], str] | None = None
    """Row -> a name of the image that stays the same when others come or the data move; None: the row's number."""


class Source(NamedTuple):
    """Images that can be read one by one, in any order, by several threads at once."""

    length: int
    read: Callable[[int], tuple[np.ndarray, Label]]
    """Row -> (uint8 [h, w, c], label). Raises `decode.Unreadable`."""
    name: Callable[[int], str]
    """Row -> a name by which a person finds the image: a path, or a record of a file."""
    num_classes: int
    """Number of classes, or length of a soft label."""
    found: Found = Found()


def class_sizes(labels: np.ndarray, num_classes: int) -> tuple[int, ...]:
    """The number of images of each class from their labels [n]; empty for soft ones [n, k]."""
    return tuple(np.bincount(labels, minlength=num_classes).tolist()) if labels.ndim == 1 else ()


def digest_of(*arrays: np.ndarray) -> str:
    """A SHA-256 of the arrays' shapes, types and values, in hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def stored_label(label: Label) -> np.ndarray | np.int32:
    """A label as batches carry it: int32, or float32 [num_classes] for a soft one."""
    return np.int32(label) if np.ndim(label) == 0 else np.asarray(label, np.float32)


def tolerant(source: Source, limit: int, warn: Callable[[str], None]) -> Source:
    """The source with the next readable image in the place of each unreadable one.

    The image at a row depends on the row and the files alone, whatever the number of threads and their order.

    Args:
      limit: the number of unreadable images to accept, each counted once.
      warn: takes one line that names an unreadable image, at the first meeting with it.

    The returned source's `read` raises:
      BadInput: one more than `limit` is unreadable, or all are.
    """
    unreadable: set[int] = set()
    lock = threading.Lock()

    def count(row: int, reason: Unreadable) -> None:
        what = f"{source.name(row)} {reason}"
        with lock:
            if row in unreadable:  # another thread met it too
                return
            if len(unreadable) == limit:
                raise BadInput(
                    f"{what}; {limit + 1} unreadable images of {source.length} so far are more than the limit of "
                    f"{limit}; mend or delete the files, or raise data.max_unreadable"
                )
            unreadable.add(row)
            warn(f"{what}; skipped, {len(unreadable)} so far, limit {limit}")

    def read(row: int) -> tuple[np.ndarray, Label]:
        for candidate in itertools.chain(range(row, source.length), range(row)):
            if candidate in unreadable:
                continue
            try:
                return source.read(candidate)
            except Unreadable as reason:
                count(candidate, reason)
        raise BadInput(f"none of the {source.length} images can be read, the first is {source.name(0)}; mend the files")

    return source._replace(read=read)
