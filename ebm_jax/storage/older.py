"""How today's state is found in the checkpoints of older versions of this project."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array


class Older(NamedTuple):
    """What later versions changed in the tree of a state. Paths are those of `fingerprint.named_leaves`."""

    moved: Mapping[str, str]
    """The beginning of a path today, and its beginning in an older checkpoint."""
    added: Mapping[str, Callable[[Any], Array]]
    """A leaf that older checkpoints lack: from its shape and type, the value that an older run had without it."""


OLDER = Older(
    moved={
        "memory/0/": "buffer/",  # of contrastive divergence as the first of several summed methods
        "memory/": "buffer/",
    },
    added={},
)
"""A checkpoint of commit a7536e2 or older has `buffer`, not `memory`.

Those have their fingerprint as a list in the order of the state's leaves. A field of the state may get another name,
and new ones may be added, but those that it had at a7536e2 keep their order.
"""


def sources(paths: Collection[str], saved: Collection[str], older: Older = OLDER) -> dict[str, str | None]:
    """For the path of each leaf of a state its path in a checkpoint; None if `older.added` gives its value.

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
    """An array for a leaf that was not saved, where it lies on the devices."""
    return jax.jit(lambda: value_of(leaf), out_shardings=leaf.sharding)()
