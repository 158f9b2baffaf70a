"""What labels can say, and labels to sample under where nobody gives any.

Each function maps places [n], 0, 1, 2 ... in a picture, and the length k of a label to labels: classes [n], or vectors
[n, k]. Those of dSprites run through the factor's values in the data set as the release conditions on them (data.py:
DSprites).
"""

import jax.numpy as jnp
import numpy as np

from ebm_jax.types import Labels, Places


def classes(places: Places, k: int) -> Labels:
    """The k classes in turn."""
    return places % k


def one_hot(places: Places, k: int) -> Labels:
    """The k corners of the simplex in turn."""
    return jnp.eye(k)[places % k]


def size(places: Places, k: int) -> Labels:
    """The six scales 0.5, 0.6 ... 1.0; k is 1."""
    return 0.5 + 0.1 * (places % 6).astype(jnp.float32)[:, None]


def position(places: Places, k: int) -> Labels:
    """The points (x, y) of an 8x8 lattice on the unit square, row by row; k is 2."""
    return jnp.stack([places % 8, places // 8 % 8], -1) / 7.0


def rotation(places: Places, k: int) -> Labels:
    """(cos, sin) of 40 angles around the circle; k is 2."""
    angles = 2 * np.pi / 40 * (places % 40).astype(jnp.float32)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
