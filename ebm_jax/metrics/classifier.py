"""A small classifier, trained on the data itself; its features serve to compare sets of small images.

A Fréchet distance in these features is a "classifier distance". It is no FID: features and numbers differ.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from ebm_jax.types import Images, Params, Scalar

VERSION = "1"  # raise it when anything below changes: distances of two versions do not compare
WIDTH = 32  # channels of the first layer
NUM_FEATURES = 128
BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # of Adam, falling to 0 as a cosine
NOTED = 50  # steps between two notes on how far training is
HIGHEST = lax.Precision.HIGHEST  # TPUs round float32 to bfloat16 elsewhere


class Classifier(nn.Module):
    """Maps images [b, h, w, c] in [0, 1] to features [b, 128], after ReLU, and logits [b, num_classes].

    There is no pooling, so the features tell where in the image something is.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images: Images) -> tuple[Float[Array, "b 128"], Float[Array, "b classes"]]:
        x = 2.0 * images - 1.0
        for features in (WIDTH, 2 * WIDTH):
            x = nn.relu(nn.Conv(features, (4, 4), (2, 2), precision=HIGHEST)(x))
        x = x.reshape(x.shape[0], -1)
        features = nn.relu(nn.Dense(NUM_FEATURES, precision=HIGHEST)(x))
        return features, nn.Dense(self.num_classes, precision=HIGHEST)(features)


def apply(num_classes: int, params: Params, images: Images) -> tuple[Float[Array, "b 128"], Float[Array, "b classes"]]:
    """Features [b, 128] and class probabilities [b, num_classes] of images [b, h, w, c] in [0, 1]."""
    features, logits = _outputs(num_classes, params, images)
    return features, jax.nn.softmax(logits)


def _outputs(num_classes: int, params: Params, images: Images) -> Any:
    return Classifier(num_classes).apply({"params": params}, images)


def init(seed: int, num_classes: int, shape: tuple[int, ...]) -> Params:
    """Untrained parameters for images of this shape, height by width by channels."""
    return Classifier(num_classes).init(jax.random.key(seed), jnp.zeros((1, *shape)))["params"]


def train(
    seed: int,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    num_steps: int,
    note: Callable[[int], None] = lambda done: None,
) -> Params:
    """Parameters after `num_steps` steps of cross-entropy on images uint8 [n, h, w, c] with classes int32 [n].

    They depend on the arguments alone: training uses one device, however many there are, and permutations from the
    seed.

    Args:
      note: takes how many steps are done, at every `NOTED`-th.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))
    params = init(seed, num_classes, images.shape[1:])
    state = (params, optimizer.init(params))

    def loss(params: Params, pixels: UInt8[Array, "b h w c"], labels: Int[Array, " b"]) -> Scalar:
        _, logits = _outputs(num_classes, params, pixels.astype(jnp.float32) / 255.0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(state, pixels, labels):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, pixels, labels), moments)
        return optax.apply_updates(params, updates), moments

    rng, order, size = np.random.default_rng(seed), np.empty(0, np.int64), min(BATCH_SIZE, len(images))
    for number in range(num_steps):
        if number % NOTED == 0:
            jax.block_until_ready(state)
            note(number)
        if len(order) < size:
            order = rng.permutation(len(images))
        rows, order = order[:size], order[size:]
        state = step(state, images[rows], labels[rows])
    return state[0]
