"""The shapes and names that every other module shares, and the sign convention: low energy means likely.

An energy-based model is q(x) = exp(-U(x)) / Z. `U` is an `EnergyFn`: a batch of images in, one energy for each out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from ebm_jax.given import BadInput as BadInput
from ebm_jax.given import Config as Config
from ebm_jax.given import printable as printable
from ebm_jax.paths import Folder as Folder

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


class Along(NamedTuple):
    """An `EnergyFn` that changes along a descent from noise; by itself it is the energy at the data."""

    at: Callable[[float | Scalar], EnergyFn]
    """From the share γ of data in the images, in [0, 1], to the energy there."""

    def __call__(self, images: Images) -> Energies:
        return self.at(1.0)(images)


def at_share(energy_fn: EnergyFn, share: float | Scalar) -> EnergyFn:
    """The energy at the share γ of data; one that does not change along a descent is itself everywhere."""
    return energy_fn.at(share) if isinstance(energy_fn, Along) else energy_fn


Shape = tuple[int, int, int]  # height, width, channels of an image


class Batch(NamedTuple):
    """One batch of data: uint8 pixels, or float values already in [0, 1], and labels (0 where unconditional)."""

    images: UInt8[Array, "b *event"] | Images
    labels: Labels
