"""One pass of a network over a set of images: all distances use its sums and the few features that it keeps."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from ebm_jax.distributed import parallel
from ebm_jax.metrics import moments, score
from ebm_jax.metrics.moments import Moments
from ebm_jax.metrics.score import ClassSums
from ebm_jax.types import BadInput, Images, Params

BLOCK = 1024  # images between two updates of the sums; an update takes several passes over a [d, d] matrix

Outputs = tuple[Float[Array, "b d"], Float[Array, "b classes"]]
ApplyFn = Callable[[Params, Images], Outputs]
FeatureFn = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Summary(NamedTuple):
    """A set of images as its distances need it: sums over disjoint groups, in order, and some features."""

    moments: list[Moments]
    """One for each group."""
    classes: list[ClassSums]
    """One for each group."""
    kept: np.ndarray
    """float32 [m, d]: features of evenly spaced images."""

    @property
    def count(self) -> int:
        """The number of images."""
        return sum(group.count for group in self.moments)


def make_feature_fn(apply: ApplyFn, params: Params, mesh: Mesh, batch_size: int) -> FeatureFn:
    """The function from images uint8 [n, h, w, c] to features float32 [n, d] and class probabilities [n, classes].

    It takes a batch at a time, spread over all devices of the mesh, and fills the last batch up with its last row.

    Args:
      apply: takes images in [0, 1].
      batch_size: images over all devices; rounded up to a multiple of their number.
    """
    size = -(-batch_size // mesh.size) * mesh.size

    def of_pixels(params: Params, pixels: UInt8[Array, "b h w c"]) -> Outputs:
        return apply(params, pixels.astype(jnp.float32) / 255.0)

    specs = (parallel.REPLICATED, parallel.SHARDED)
    compiled = partial(parallel.over_devices(of_pixels, mesh, specs, parallel.SHARDED), params)

    def feature_fn(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for start in range(0, len(images), size):
            rows = images[start : start + size]
            filled = np.concatenate([rows, rows[-1:].repeat(size - len(rows), 0)])
            outputs = parallel.on_host(compiled(parallel.place_batch(mesh, filled)))
            parts.append([output[: len(rows)] for output in outputs])
        features, probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
        return features, probabilities

    return feature_fn


def summarise(feature_fn: FeatureFn, images: np.ndarray, *, num_groups: int, keep: int) -> Summary:
    """One pass over images uint8 [n, h, w, c] in memory that does not grow with n, but for `keep` features.

    Args:
      num_groups: the number of disjoint groups.
      keep: the number of images, evenly spaced, to keep the features of; at most n are kept.

    Raises:
      BadInput: there are fewer images than groups.
    """
    if len(images) < num_groups:
        raise BadInput(f"{len(images)} images make no {num_groups} groups; use more images, or fewer splits")
    kept_rows = np.linspace(0, len(images) - 1, min(keep, len(images))).round().astype(np.int64)
    groups, classes, kept = [], [], []
    for rows in np.array_split(np.arange(len(images)), num_groups):
        group, sums = None, None
        for block in np.array_split(rows, -(-len(rows) // BLOCK)):
            features, probabilities = feature_fn(images[block[0] : block[-1] + 1])
            group = moments.update(group or moments.empty(features.shape[1]), features)
            sums = score.update(sums or score.empty(probabilities.shape[1]), probabilities)
            kept.append(features[np.isin(block, kept_rows, assume_unique=True)])
        groups.append(group)
        classes.append(sums)
    return Summary(groups, classes, np.concatenate(kept))
