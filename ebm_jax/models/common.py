"""What the networks share: how their kernels start, their last layer, and the fields they all have.

Where the release normalises spectrally, kernels start at N(0, 1) and second convolutions at N(0, 1e-10), as in its
utils.py: get_weight. Without spectral normalisation they start at Glorot uniform and at zero. All layers but the head
compute in `dtype`. The head computes in float32, so that energies keep their digits. Parameters, images and energies
are float32.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ebm_jax import random
from ebm_jax.models.layers import SECOND, Activation
from ebm_jax.models.spectral import Form
from ebm_jax.types import Energies, Labels, PRNGKey, Unlabelled

HEAD = "head"  # the name of the last layer


def spectral_form(path: tuple[str, ...]) -> Form:
    """Normalise every kernel but the head's; never enlarge second convolutions (release utils.py)."""
    if HEAD in path or path[-1] != "kernel":
        return None
    return "bounded" if SECOND in path else "normalised"


def glorot(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Glorot uniform: U(-1, 1) sqrt(6 / (fan in + fan out)), of kernels [..., c_in, c_out]."""
    fans = (shape[-2] + shape[-1]) * math.prod(shape[:-2])
    return (math.sqrt(6 / fans) * (2 * random.uniform(key, shape) - 1)).astype(dtype)


def gaussian(std: float) -> Callable:
    """The initialiser N(0, std²)."""
    return lambda key, shape, dtype=jnp.float32: (std * random.normal(key, shape)).astype(dtype)


def kernel_inits(spectral_norm: bool) -> tuple[Callable, Callable]:
    """Initialisers of ordinary kernels and of second convolutions."""
    if spectral_norm:
        return gaussian(1.0), gaussian(1e-10)
    return glorot, nn.initializers.zeros


def head(h: Float[Array, "b features"], logits: int = 0, labels: Labels | None = None) -> Energies:
    """The last layer: linear, in float32, not spectrally normalised. Call it inside a Flax module.

    Args:
      logits: 0: one output, the energy. Else the number of classes: one logit f_y a class, and the energies of a
        classifier (Grathwohl et al. 2020, arXiv 1912.03263), U(x, y) = -f_y and U(x) = -log Σ exp f_y.
      labels: of `logits` classes; "no class" is the label `logits`, or no labels.
    """
    outputs = nn.Dense(max(logits, 1), kernel_init=glorot, dtype=jnp.float32, name=HEAD)(h)
    if not logits:
        return outputs[:, 0]
    of_all = jax.nn.logsumexp(outputs, axis=1, keepdims=True)
    if labels is None:
        return -of_all[:, 0]
    return -jnp.take_along_axis(jnp.concatenate([outputs, of_all], 1), labels[:, None], 1, mode="fill")[:, 0]


class Net(nn.Module, kw_only=True):
    """The fields that all networks but the U-Net have, and the energies that their last layer gives."""

    num_classes: int
    spectral_norm: bool
    activation: Activation = nn.swish
    dtype: DTypeLike = jnp.float32
    logits: bool = False
    """Whether the last layer has a logit for each class; then no other layer depends on the class."""
    spectral_form = staticmethod(spectral_form)

    @property
    def layer_classes(self) -> int:
        """The number of classes that layers before the last one depend on."""
        return 1 if self.logits else self.num_classes

    @property
    def unlabelled(self) -> Unlabelled | None:
        """Labels -> as many that stand for no class; None without logits."""
        return (lambda labels: jnp.full_like(labels, self.num_classes)) if self.logits else None

    def energies(self, h: Float[Array, "b features"], labels: Labels | None) -> Energies:
        """`head` of the last features; call it inside a compact method."""
        return head(h, self.num_classes if self.logits else 0, labels)
