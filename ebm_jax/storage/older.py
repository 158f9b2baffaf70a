"""Where the checkpoints of older versions of this project have the parts of today's state."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array


class Older(NamedTuple):
    """The changes that later versions made to the tree of a state. Paths are as in `fingerprint.named_leaves`."""

    moved: Mapping[str, str]
    """The beginning of a path today -> its beginning in an older checkpoint."""
    added: Mapping[str, Callable[[Any], Array]]
    """A leaf that older checkpoints lack -> from its shape and type, the value that older runs had without it."""


OLDER = Older(
    moved={
        "memory/0/": "buffer/",  # for contrastive divergence as the first of several summed methods
        "memory/": "buffer/",
    },
    added={},
)
"""A checkpoint of commit a7536e2 or older has `buffer`, not `memory`.

It lists its fingerprint in the order of the state's leaves. So fields of the state may be renamed and added, but the
fields of a7536e2 must keep their order.
"""


def sources(paths: Collection[str], saved: Collection[str], older: Older = OLDER) -> dict[str, str | None]:
    """The path of each leaf of a state -> its path in a checkpoint, or None if `older.added` gives its value.

    Raises:
      ValueError: a leaf is neither saved nor added, or a saved one belongs nowhere.
    """
    found = {path: _source(path, saved, older) for path in paths}
    if left := set(saved) - set(found.values()):
        raise ValueError(f"the tree structures do not match: {min(left)} has no place")
    return found


def _source(path: str, saved: Collection[str], older: Older) -> str | None:
    before = [was + path.removeprefix(now) for now, was in older.moved.items() if path.startswith(now)]
    for candidate in (path, *before):
        if candidate in saved:
            return candidate
    if path not in older.added:
        raise ValueError(f"the tree structures do not match: {path} was not saved")
    return None


def made(value_of: Callable[[Any], Any], leaf: Any) -> Array:
    """The array of a leaf that was not saved, with the leaf's sharding."""
    return jax.jit(lambda: value_of(leaf), out_shardings=leaf.sharding)()
