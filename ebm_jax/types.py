"""The shapes and names that every other module shares, and the sign convention: low energy means likely.

An energy-based model is q(x) = exp(-U(x)) / Z. `U` is an `EnergyFn`: a batch of images in, one energy for each out.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

Images = Float[Array, "b *event"]
Energies = Float[Array, " b"]
Labels = Int[Array, " b"] | Float[Array, "b k"]  # classes, or soft labels and continuous conditions
Unlabelled = Callable[[Labels], Labels]  # labels -> as many labels that stand for no class
Places = Int[Array, " b"]
PRNGKey = Key[Array, ""]
MembersKey = Key[Array, "*members"]  # one key, or one for each of several models
Scalar = Float[Array, ""]
Params = PyTree[Float[Array, "..."]]
Metrics = dict[str, Float[Array, "*members"]]

Given = Any
"""An argument that the function checks itself, with one line of `BadInput`; its docstring says what it takes."""

EnergyFn = Callable[[Images], Energies]
Shape = tuple[int, int, int]  # height, width, channels of an image

Folder = Path | epath.Path  # on this machine, or in a bucket (storage/bucket.py)
Config = Any  # an ml_collections.ConfigDict; a type checker does not know its attributes


class Batch(NamedTuple):
    """One batch of data: uint8 pixels, or float values already in [0, 1], and labels (0 where unconditional)."""

    images: UInt8[Array, "b *event"] | Images
    labels: Labels


def printable(text: str, but: str = "") -> str:
    """The text with control characters, line breaks and other unprintable characters escaped, except those in `but`.

    A name from outside may hold any of them, and a terminal obeys some.
    """
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text)


class BadInput(ValueError):
    """What the user gave cannot be used; the message is one line with the value, the limit and the cure.

    Whatever a name in the message holds, a terminal shows it and does not obey it.
    """

    everywhere = False
    """Whether all processes of the run raise it together."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, but="\n\t"))
