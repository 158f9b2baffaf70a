"""The parts of the networks: strided convolutions, pooling, class-conditional tables, the residual block.

A layer keeps its parameters in float32. It casts them to its input's type and computes in that type.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ebm_jax import random
from ebm_jax.models.convolution import Features, Kernel, convolution
from ebm_jax.types import Labels, PRNGKey

Activation = Callable[[Array], Array]
Convolve = Any  # the function (x, kernel, padding) -> y of models/convolution.py or models/products.py
SECOND = "conv2"  # the name of a residual block's second convolution


def lecun_third(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """U(-1, 1) / sqrt(fan in): a third of LeCun's variance."""
    return nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")(key, shape, dtype)


def uniform(bound: float) -> Callable:
    """The initialiser U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: (bound * (2.0 * random.uniform(key, shape) - 1.0)).astype(dtype)


def dense(features: int, fan_in: int, **fields) -> nn.Dense:
    """A linear layer that starts as PyTorch's do: kernel and bias at U(-1, 1) / sqrt(fan in)."""
    return nn.Dense(features, kernel_init=lecun_third, bias_init=uniform(fan_in**-0.5), **fields)


def space_to_depth(x: Features, block: int = 2) -> Features:
    """Turn each square of block x block pixels into one pixel with block² times the channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Features, block: int = 2) -> Features:
    """Turn each pixel into a square of block x block pixels: the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, block * h, block * w, c // block**2)


def enlarged(x: Features) -> Features:
    """Twice as many pixels a side: each pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def convolution_same(x: Features, kernel: Kernel, convolve: Convolve = convolution) -> Features:
    """Stride-1 convolution with SAME padding."""
    return convolve(x, kernel, tuple(((size - 1) // 2, size // 2) for size in kernel.shape[:2]))


def convolution_half(x: Features, kernel: Kernel, convolve: Convolve = convolution) -> Features:
    """4x4 convolution of stride 2 with SAME padding, as a 2x2 convolution after space-to-depth.

    The arithmetic is equal; the stride-1 form keeps the fast input gradient of `convolution`.
    """
    _, _, c_in, c_out = kernel.shape
    pads = [(1, 1 + size % 2) for size in x.shape[1:3]]
    x = space_to_depth(jnp.pad(x, ((0, 0), *pads, (0, 0))))
    kernel = kernel.reshape(2, 2, 2, 2, c_in, c_out).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c_in, c_out)
    return convolve(x, kernel, ((0, 0), (0, 0)))


def convolution_second(x: Features, kernel: Kernel, convolve: Convolve = convolution) -> Features:
    """3x3 convolution of every second pixel, with one row and column of zeros beyond each border, as PyTorch's."""
    return convolution_half(x, jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))), convolve)


def average_pool(x: Features) -> Features:
    """2x2 average pooling; it drops an odd last row or column."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def leaky_relu(x: Array) -> Array:
    """LeakyReLU with slope 0.2, the release's default (TensorFlow's)."""
    return jax.nn.leaky_relu(x, 0.2)


ACTIVATIONS: dict[str, Activation] = {"leaky_relu": leaky_relu, "swish": nn.swish}


def class_rows(table: Float[Array, "classes c"], labels: Labels | None, neutral: float) -> Float[Array, "_ 1 1 c"]:
    """The row of a class-conditional table for each label, to broadcast over height and width.

    An integer label takes its row. A label out of range takes NaN, which nobody overlooks; plain indexing would clamp
    it to another class. A table of one class gives its row to all images, whatever their integer labels. A soft label
    l, a vector, takes neutral + Σ l_k (row_k - neutral): the row for a one-hot vector, the mean of rows for
    probabilities, and `neutral` for a vector of zeros. (The release multiplies the table by the vector alone, so a
    vector of zeros makes its gain vanish; utils.py: conv_block.)

    Args:
      neutral: the value that does nothing, 0 for a bias, 1 for a gain.

    Raises:
      ValueError: there are no labels, and the table has several classes.
    """
    if labels is not None and jnp.issubdtype(labels.dtype, jnp.floating):
        rows = neutral + labels.astype(table.dtype) @ (table - neutral)
        return rows[:, None, None, :]
    if table.shape[0] == 1:
        return table[:, None, None, :]
    if labels is None:
        raise ValueError(f"this energy is conditional on {table.shape[0]} classes: give one label for each image")
    rows = table.at[labels].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return rows[:, None, None, :]


class ClassBias(nn.Module):
    """Adds a class-conditional bias to every channel; it starts at 0."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        table = self.param("table", nn.initializers.zeros, (self.num_classes, x.shape[-1]), jnp.float32)
        return x + class_rows(table.astype(x.dtype), labels, 0.0)


class ClassGain(nn.Module):
    """Multiplies every channel by a class-conditional gain; it starts at 1."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        table = self.param("table", nn.initializers.ones, (self.num_classes, x.shape[-1]), jnp.float32)
        return x * class_rows(table.astype(x.dtype), labels, 1.0)


class ClassShift(nn.Module):
    """Adds a row to every channel: that of the label, or one of its own for "no class"; all start at 0.

    "No class" is the label `num_classes`, a vector of NaN, or no labels. A vector l takes Σ l_k row_k. A network of one
    class has the row for "no class" alone.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        soft = labels is not None and jnp.issubdtype(labels.dtype, jnp.floating)
        conditional = soft or self.num_classes > 1
        rows = self.num_classes + 1 if conditional else 1
        table = self.param("table", nn.initializers.zeros, (rows, x.shape[-1]), jnp.float32).astype(x.dtype)
        if labels is None or not conditional:
            return x + table[-1:, None, None]
        if not soft:
            return x + class_rows(table, labels, 0.0)
        without = jnp.isnan(labels).any(1, keepdims=True)
        of_vectors = jnp.where(without, 0.0, labels).astype(x.dtype) @ table[:-1]
        return x + jnp.where(without, table[-1:], of_vectors)[:, None, None, :]


class Conv(nn.Module):
    """Convolution without bias: 3x3 of stride 1, or 4x4 of stride 2 if `half`."""

    features: int
    kernel_init: Callable
    half: bool = False
    convolve: Convolve = convolution
    """Either form of the stride-1 convolution: of models/convolution.py, or of models/products.py."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        size = 4 if self.half else 3
        kernel = self.param("kernel", self.kernel_init, (size, size, x.shape[-1], self.features), jnp.float32)
        if self.convolve is convolution:
            kernel = kernel.astype(x.dtype)  # the other form casts itself, and adds gradients up in float32
        return (convolution_half if self.half else convolution_same)(x, kernel, self.convolve)


def dropout(key: PRNGKey, x: Array, rate: float) -> Array:
    """Set each element to 0 with probability `rate`, and divide the others by 1 - rate."""
    return jnp.where(random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0)


class ResidualBlock(nn.Module):
    """The paper's residual block (release utils.py: smart_res_block), with a class-conditional bias and gain.

    h = conv1(x + b1[y]); h = act(dropout(h)); h = conv2(h + b2[y]) * g2[y]; s = x, or conv3x3(x) if the channels
    change; out = act(h + s), average-pooled before the activation if `downsample`. Dropout acts only if the module has
    the random stream "dropout".
    """

    features: int
    num_classes: int
    activation: Activation
    kernel_init: Callable
    second_kernel_init: Callable
    downsample: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        h = ClassBias(self.num_classes, name="bias1")(x, labels)
        h = Conv(self.features, self.kernel_init, name="conv1")(h)
        if self.dropout and self.has_rng("dropout"):
            h = dropout(self.make_rng("dropout"), h, self.dropout)
        h = ClassBias(self.num_classes, name="bias2")(self.activation(h), labels)
        h = Conv(self.features, self.second_kernel_init, name=SECOND)(h)
        h = ClassGain(self.num_classes, name="gain2")(h, labels)
        if x.shape[-1] != self.features:
            x = Conv(self.features, self.kernel_init, name="skip")(x)
        return self.activation(average_pool(h + x) if self.downsample else h + x)


class SelfAttention(nn.Module):
    """Self-attention over all pixels (release utils.py: attention), added with a weight γ that starts at 0.

    q = Q x + q0, k = K x + k0, v = activation(V x); out = x + γ softmax(q kᵀ) v. The release drops logits out in one
    network (ResNet32Wider, keeping 0.9); ours does not.
    """

    keys: int
    kernel_init: Callable
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, h, w, c = x.shape
        rows = x.reshape(b, h * w, c)
        dense = partial(nn.Dense, kernel_init=self.kernel_init, dtype=x.dtype)
        query = dense(self.keys, name="query")(rows)
        key = dense(self.keys, name="key")(rows)
        value = self.activation(dense(c, use_bias=False, name="value")(rows))
        logits = jnp.einsum("bqk,bpk->bqp", query, key, preferred_element_type=jnp.float32)
        attention = jax.nn.softmax(logits).astype(x.dtype)
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32).astype(x.dtype)
        return x + gamma * jnp.einsum("bqp,bpc->bqc", attention, value).reshape(x.shape)
