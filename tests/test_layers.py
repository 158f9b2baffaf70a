"""Inputs are small integers, so that every sum is exact in float32 and equality needs no tolerance."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from test_convolution import assert_identical, integers, lax_convolution, value_and_gradients

from ebm_jax.models import layers

FLOAT32 = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (2, 5)])
def test_convolution_same_equals_same_padding_of_lax(size):
    x, kernel = integers(2, 6, 7, 3), integers(*size, 3, 4, seed=1)
    assert_identical(layers.convolution_same(x, kernel), lax_convolution(x, kernel, "SAME"))


@pytest.mark.parametrize("sides", [(28, 28), (14, 14), (7, 7), (6, 9)])
def test_convolution_half_equals_4x4_of_stride_2_with_same_padding(sides):
    x, kernel = integers(2, *sides, 3), integers(4, 4, 3, 5, seed=1)
    ours = value_and_gradients(layers.convolution_half, x, kernel)
    assert_identical(ours, value_and_gradients(lambda x, kernel: lax_convolution(x, kernel, "SAME", 2), x, kernel))


@pytest.mark.parametrize("sides", [(6, 4), (7, 7), (5, 8)])
def test_average_pool_equals_flax_with_valid_padding(sides):
    x = integers(2, *sides, 3, largest=100)
    ours = value_and_gradients(layers.average_pool, x)
    assert_identical(ours, value_and_gradients(lambda x: nn.avg_pool(x, (2, 2), (2, 2), "VALID"), x))


@pytest.mark.parametrize("block", [2, 3])
def test_space_to_depth_keeps_each_square_as_one_pixel(block):
    x = integers(2, 2 * block, 3 * block, 4, largest=1000)
    deep = np.asarray(layers.space_to_depth(x, block))
    back = np.full(x.shape, np.nan)
    for index, channels in enumerate(np.split(deep, block**2, axis=-1)):
        back[:, index // block :: block, index % block :: block] = channels
    np.testing.assert_array_equal(back, x)


def test_leaky_relu_has_slope_one_fifth_below_zero():
    x = integers(50, largest=20) / 4
    np.testing.assert_allclose(layers.leaky_relu(x), np.where(x < 0, x / 5, x), rtol=2 * FLOAT32)


def test_class_rows_picks_the_row_of_each_label():
    table, labels = integers(3, 5, largest=1000), np.array([2, 0, 2, 1])
    rows = layers.class_rows(table, jnp.asarray(labels), 0.0)
    np.testing.assert_array_equal(
        rows + jnp.zeros((4, 2, 2, 5)), np.asarray(table)[labels, None, None] + np.zeros((4, 2, 2, 5))
    )


def test_class_rows_of_one_class_ignores_labels():
    table = integers(1, 5, largest=1000)
    for labels in (None, jnp.array([0, 7, 3])):
        np.testing.assert_array_equal(layers.class_rows(table, labels, 0.0), np.asarray(table)[:, None, None])


def test_class_rows_of_several_classes_refuses_missing_labels():
    with pytest.raises(ValueError, match="conditional on 3 classes"):
        layers.class_rows(integers(3, 5), None, 0.0)


@pytest.mark.parametrize("neutral", [0.0, 1.0])
def test_a_soft_label_means_its_rows_and_the_neutral_value_for_what_it_leaves_out(neutral):
    table = np.array([[4.0, -2.0], [8.0, 6.0], [0.0, 2.0]], np.float32)
    labels = np.array([[0, 1, 0], [0.25, 0.75, 0], [0, 0, 0], [0, 0.5, 0]], np.float32)
    half = (table[1] + neutral) / 2
    expected = np.array([table[1], (table[0] + 3 * table[1]) / 4, [neutral, neutral], half])
    rows = layers.class_rows(jnp.asarray(table), jnp.asarray(labels), neutral)
    np.testing.assert_array_equal(rows[:, 0, 0], expected)


def test_self_attention_is_its_equation():
    keys, c, x = 3, 2, np.random.default_rng(0).normal(size=(2, 2, 3, 2)).astype(np.float32)
    generator, shapes = np.random.default_rng(1), {"query": (c, keys), "key": (c, keys), "value": (c, c)}
    params = {name: {"kernel": jnp.asarray(generator.normal(size=shape))} for name, shape in shapes.items()}
    params["query"]["bias"], params["key"]["bias"] = jnp.asarray(generator.normal(size=(2, keys)), jnp.float32)
    params["gamma"] = jnp.float32(0.7)
    expected = np.empty(x.shape)
    for image, out in zip(x.reshape(2, 6, c).astype(np.float64), expected.reshape(2, 6, c), strict=True):
        q, k, v = (image @ np.asarray(params[name]["kernel"], np.float64) for name in shapes)
        q, k = q + np.asarray(params["query"]["bias"]), k + np.asarray(params["key"]["bias"])
        v = np.where(v < 0, v / 5, v)
        for pixel in range(6):
            weights = np.exp([q[pixel] @ k[other] for other in range(6)])
            out[pixel] = image[pixel] + 0.7 * sum(w * row for w, row in zip(weights, v, strict=True)) / weights.sum()
    block = layers.SelfAttention(keys, nn.initializers.zeros)
    np.testing.assert_allclose(block.apply({"params": params}, jnp.asarray(x)), expected, rtol=1e2 * FLOAT32)


@pytest.mark.parametrize(("features", "downsample"), [(2, False), (2, True), (3, False), (3, True)])
def test_residual_block_is_its_equation(features, downsample):
    channels, num_classes, labels = 2, 3, np.array([1, 0, 2, 1])
    x = integers(4, 5, 6, channels)
    kernels = {"conv1": (channels, features), "conv2": (features, features), "skip": (channels, features)}
    kernels = {name: integers(3, 3, *shape, seed=seed) for seed, (name, shape) in enumerate(kernels.items())}
    widths = {"bias1": channels, "bias2": features, "gain2": features}
    tables = {name: integers(num_classes, width, seed=seed) for seed, (name, width) in enumerate(widths.items(), 5)}

    def rows(name):
        return np.asarray(tables[name])[labels][:, None, None]

    def conv3x3(x, name):
        return np.asarray(lax_convolution(x, kernels[name], "SAME"))

    h = conv3x3(x + rows("bias1"), "conv1")
    h = np.maximum(h, 0)
    h = conv3x3(h + rows("bias2"), "conv2") * rows("gain2")
    out = h + (np.asarray(x) if features == channels else conv3x3(x, "skip"))
    if downsample:
        out = sum(out[:, i:4:2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    out = np.maximum(out, 0)

    used = kernels if features != channels else {name: kernels[name] for name in ("conv1", "conv2")}
    params = {name: {"table": table} for name, table in tables.items()}
    params |= {name: {"kernel": kernel} for name, kernel in used.items()}
    zeros = nn.initializers.zeros
    block = layers.ResidualBlock(features, num_classes, nn.relu, zeros, zeros, downsample)
    assert_identical(block.apply({"params": params}, x, jnp.asarray(labels)), out)
