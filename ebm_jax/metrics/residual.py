"""A small residual classifier of colour images, trained on the data itself; its features serve to compare sets of them.

It stands beside `metrics.classifier`, which is for gray images, under the same names. Neither gives an FID.

Everything is float32, with products at the highest precision. bfloat16 would round features by 1 in 256, in another
order on each kind of processor, and the distances of two machines would differ. At these widths it is no faster on a
CPU either: gradients of kernels take most of the time, and they wait for memory.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from ebm_jax.types import Images, Params, Scalar

VERSION = "residual 1"  # raise it when anything below changes: distances of two versions do not compare
WIDTHS = (64, 128, 256)  # channels of the stem and of each stage; each of the three halves the image's sides
NUM_FEATURES = 128
BATCH_SIZE = 128
LEARNING_RATE = 0.2  # the peak of Nesterov's SGD, after WARM of all steps; linear before and, down to 0, after
WARM = 0.25
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4  # of kernels
SMOOTHING = 0.1  # of the labels
SHIFT = 1 / 16  # of a side: how far an image is shifted at most while training
MEMORY = 0.03  # share of the newest batch in the running statistics
EPSILON = 1e-5  # added to variances
NOTED = 50  # steps between two notes on how far training is

Features = Float[Array, "_ _ _ _"]  # NHWC
Normalise = Callable[[str, Features], Features]
Statistics = dict[str, tuple[Float[Array, "1 1 1 _"], Float[Array, "1 1 1 _"]]]
"""Mean and variance of each channel, by layer."""


class Outputs(NamedTuple):
    """What the network gives for images."""

    features: Float[Array, "b 128"]
    """After ReLU."""
    logits: Float[Array, "b classes"]


def apply(num_classes: int, params: Params, images: Images) -> tuple[Float[Array, "b 128"], Float[Array, "b classes"]]:
    """Features [b, 128] and class probabilities [b, num_classes] of images [b, h, w, 3] in [0, 1].

    A row depends on its own image alone: training folded the statistics of its batches into scales and biases.
    """
    del num_classes  # the parameters have it

    def normalise(name: str, y: Features) -> Features:
        return y * params[name]["scale"] + params[name]["bias"]

    features, logits = _outputs(params, normalise, images)
    return features, jax.nn.softmax(logits)


def train(
    seed: int,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    num_steps: int,
    note: Callable[[int], None] = lambda done: None,
) -> Params:
    """Parameters after `num_steps` steps of cross-entropy on images uint8 [n, h, w, 3] with classes int32 [n].

    They depend on the arguments alone: training uses one device, however many there are, and draws permutations, shifts
    and flips from the seed. Another kind of processor, or another JAX, rounds otherwise and gives another classifier.

    Args:
      note: takes how many steps are done, at every `NOTED`-th.
    """
    params, rng = init(seed, num_classes), np.random.default_rng(seed)
    optimizer = _optimizer(params, num_steps)
    step = _make_step(optimizer)
    state = (params, optimizer.init(params), _no_statistics(params))
    order, size = np.empty(0, np.int64), min(BATCH_SIZE, len(images))
    for number in range(num_steps):
        if number % NOTED == 0:
            jax.block_until_ready(state)
            note(number)
        if len(order) < size:
            order = rng.permutation(len(images))
        rows, order = order[:size], order[size:]
        state = step(state, number, augmented(rng, images[rows]), labels[rows])
    return _folded(state[0], state[2])


def init(seed: int, num_classes: int) -> Params:
    """Untrained parameters, with a scale and a bias for each channel after normalisation."""
    keys = iter(jax.random.split(jax.random.key(seed), 2 * len(WIDTHS) + 1))

    def drawn(shape: tuple[int, ...]) -> Array:
        return jax.random.normal(next(keys), shape) * np.sqrt(2 / np.prod(shape[:-1]))

    def layer(before: int, after: int) -> dict[str, Array]:
        return {
            "kernel": drawn((3, 3, before, after)),
            "scale": jnp.ones((1, 1, 1, after)),
            "bias": jnp.zeros((1, 1, 1, after)),
        }

    def dense(before: int, after: int) -> dict[str, Array]:
        return {"kernel": drawn((before, after)), "bias": jnp.zeros((1, after))}

    params = {"stem": layer(4 * 3, WIDTHS[0])}
    for stage, (before, after) in enumerate(pairwise(WIDTHS)):
        params |= {f"stage_{stage}": layer(before, after), f"residual_{stage}": layer(after, after)}
    return params | {"features": dense(WIDTHS[-1], NUM_FEATURES), "logits": dense(NUM_FEATURES, num_classes)}


def augmented(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Images uint8 [b, h, w, c], each shifted by up to SHIFT of a side, mirrored at the borders; half are flipped."""
    b, h, w, _ = images.shape
    places = []
    for side in (h, w):
        most = round(SHIFT * side)
        place = np.arange(side) + rng.integers(-most, most + 1, (b, 1))
        places.append(np.minimum(np.abs(place), 2 * (side - 1) - np.abs(place)))
    rows, columns = places
    columns = np.where(rng.random((b, 1)) < 0.5, columns[:, ::-1], columns)
    return images[np.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _outputs(params: Params, normalise: Normalise, images: Images) -> Outputs:
    """The network, with `normalise` between convolution and ReLU."""

    def convolved(name: str, x: Features) -> Features:
        return _convolution(x, params[name]["kernel"])

    x = jax.nn.relu(normalise("stem", convolved("stem", _as_channels(4.0 * images - 2.0))))
    for stage in range(len(WIDTHS) - 1):
        down, residual = f"stage_{stage}", f"residual_{stage}"
        x = jax.nn.relu(normalise(down, convolved(down, _pooled(x))))
        x = x + jax.nn.relu(normalise(residual, convolved(residual, x)))
    features = jax.nn.relu(_dense(params["features"], x.mean((1, 2))))
    return Outputs(features, _dense(params["logits"], features))


def _convolution(x: Features, kernel: Float[Array, "3 3 _ _"]) -> Features:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, precision=lax.Precision.HIGHEST
    )


def _dense(params: Params, x: Float[Array, "b _"]) -> Float[Array, "b _"]:
    return jnp.dot(x, params["kernel"], precision=lax.Precision.HIGHEST) + params["bias"]


def _in_squares(x: Features) -> Float[Array, "_ _ 2 _ 2 _"]:
    """Rows and columns by twos; an odd last one is dropped."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _as_channels(x: Features) -> Features:
    """The four pixels of each 2x2 square as channels."""
    squares = _in_squares(x).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(*squares.shape[:3], -1)


def _pooled(x: Features) -> Features:
    """The largest value of each 2x2 square.

    The gradient goes to the first of equal values. That of `max` divides by their number, which is 0, and the gradient
    NaN, where a compiler computes x again and rounds it otherwise.
    """
    squares = _in_squares(x)
    rows = _larger(squares[:, :, 0], squares[:, :, 1])
    return _larger(rows[:, :, :, 0], rows[:, :, :, 1])


def _larger(x: Array, y: Array) -> Array:
    return jnp.where(x >= y, x, y)


def _optimizer(params: Params, num_steps: int) -> optax.GradientTransformation:
    warm = max(1, round(WARM * num_steps))

    def schedule(step: Any) -> Any:
        return LEARNING_RATE * jnp.minimum((step + 1) / warm, (num_steps - step) / max(1, num_steps - warm))

    kernels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY, kernels), optax.sgd(schedule, MOMENTUM, nesterov=True))


def _make_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The compiled function (state, step, pixels, labels) -> state; the state is parameters, moments, statistics."""

    def loss(params: Params, pixels: UInt8[Array, "b h w c"], labels: Int[Array, " b"]) -> tuple[Scalar, Statistics]:
        found: Statistics = {}

        def normalise(name: str, y: Features) -> Features:
            mean = y.mean((0, 1, 2), keepdims=True)
            found[name] = mean, jnp.square(y - mean).mean((0, 1, 2), keepdims=True)
            scale, bias = _scale_and_bias(params[name], found[name])
            return y * scale + bias

        logits = _outputs(params, normalise, pixels.astype(jnp.float32) / 255.0).logits
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), SMOOTHING)
        return optax.softmax_cross_entropy(logits, targets).mean(), found

    def step(state: Any, number: Any, pixels: UInt8[Array, "b h w c"], labels: Int[Array, " b"]) -> Any:
        params, moments, statistics = state
        gradient, found = jax.grad(loss, has_aux=True)(params, pixels, labels)
        share = jnp.maximum(MEMORY, 1.0 / (number + 1))  # at first the plain mean
        statistics = jax.tree.map(lambda old, new: old + share * (new - old), statistics, found)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, statistics

    return jax.jit(step, donate_argnums=0)


def _no_statistics(params: Params) -> Statistics:
    return {
        name: (jnp.zeros_like(layer["bias"]), jnp.zeros_like(layer["bias"]))
        for name, layer in params.items()
        if "scale" in layer
    }


def _scale_and_bias(layer: Params, statistics: Any) -> Any:
    """Normalisation as y * scale + bias."""
    mean, variance = statistics
    scale = layer["scale"] * lax.rsqrt(variance + EPSILON)
    return scale, layer["bias"] - mean * scale


def _folded(params: Params, statistics: Statistics) -> Params:
    """The same network without normalisation: its running statistics go into scales and biases."""
    folded = dict(params)
    for name, found in statistics.items():
        scale, bias = _scale_and_bias(params[name], found)
        folded[name] = params[name] | {"scale": scale, "bias": bias}
    return folded
