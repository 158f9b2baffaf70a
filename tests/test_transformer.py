"""Attention and the transformer head against the same in NumPy, in float64, with their second derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_networks import count, in_words, multiply_adds

from ebm_jax.models.layers import SelfAttention, leaky_relu
from ebm_jax.models.transformer import TransformerHead
from ebm_jax.types import BadInput

SIZE, PATCH, WIDTH, HEADS, SCALE = 4, 2, 6, 2, 10.0


def head(**changes):
    fields = {"patch": PATCH, "width": WIDTH, "layers": 2, "heads": HEADS, "scale": SCALE, "dropout": 0.0}
    return TransformerHead(**fields | {"dtype": jnp.float32} | changes)


def drawn(module, *inputs):
    """Parameters far from where they start."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def images(n=2, size=SIZE, channels=3):
    return jnp.asarray(np.random.default_rng(1).normal(size=(n, size, size, channels)), jnp.float32)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def normalised(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attended(p, x):
    """Of one image's tokens [n, features]."""
    query, key, value = (np.split(linear(p[name], x), HEADS, 1) for name in ("query", "key", "value"))
    mixed = [softmax(q @ k.T / math.sqrt(WIDTH / HEADS)) @ v for q, k, v in zip(query, key, value, strict=True)]
    return linear(p["out"], np.concatenate(mixed, 1))


def energy_by_numpy(p, f):
    gelu = np.vectorize(lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))))
    found = []
    for image in f:
        corners = [(i, j) for i in range(0, SIZE, PATCH) for j in range(0, SIZE, PATCH)]
        x = np.stack([image[i : i + PATCH, j : j + PATCH].ravel() for i, j in corners])
        x = linear(p["token"], x) + p["places"][0]
        for index in range(2):
            layer = p[f"layer{index}"]
            x = normalised(layer["norm1"], x + attended(layer["attention"], x))
            x = normalised(layer["norm2"], x + linear(layer["back"], gelu(linear(layer["hidden"], x))))
        found.append(SCALE * linear(p["head"], x.mean(0))[0])
    return np.array(found)


def pixels_attended_by_numpy(activation):
    def energy(p, x):
        rows = x.reshape(len(x), -1, x.shape[-1])
        query, key, value = (linear(p[name], rows) for name in ("query", "key", "value"))
        mixed = softmax(query @ key.swapaxes(1, 2)) @ activation(value)
        return np.square(rows + p["gamma"] * mixed).sum((1, 2))

    return energy


def assert_equal_with_second_derivatives(energy, by_numpy, params, x):
    """Energies, and the derivative of <∇U, v> along a way of the parameters, by differences in float64."""
    np.testing.assert_allclose(energy(params, x), by_numpy(in_float64(params), in_float64(x)), rtol=1e-5)
    rng = np.random.default_rng(2)
    v = rng.normal(size=x.shape)
    ways = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    def moved(a, b):
        there = jax.tree.map(lambda leaf, way: leaf + a * way, in_float64(params), ways)
        return by_numpy(there, in_float64(x) + b * v).sum()

    h = 1e-4
    expected = (moved(h, h) - moved(-h, h) - moved(h, -h) + moved(-h, -h)) / (4 * h * h)

    def slope(params):
        return jnp.vdot(jax.grad(lambda x: energy(params, x).sum())(x), jnp.asarray(v, jnp.float32))

    gradient = jax.jit(jax.grad(slope))(params)
    found = sum(np.vdot(leaf, way) for leaf, way in zip(*map(jax.tree.leaves, (gradient, ways)), strict=True))
    np.testing.assert_allclose(found, expected, rtol=5e-3)


@pytest.mark.whole
def test_the_head_is_that_of_numpy_in_both_orders():
    module, f = head(), images()
    params = drawn(module, f, f)
    assert_equal_with_second_derivatives(
        lambda params, f: module.apply({"params": params}, f, f), energy_by_numpy, params, f
    )


def test_a_clamp_keeps_energies_softly_within_it():
    f = images()
    params = drawn(head(), f, f)
    plain = np.asarray(head().apply({"params": params}, f, f))
    clamped = head(clamp=2.0).apply({"params": params}, f, f)
    np.testing.assert_allclose(clamped, 2.0 * np.tanh(plain / 2.0), rtol=1e-5)
    assert (np.abs(plain) > 1.0).any(), "the case would say nothing"


@pytest.mark.parametrize("linear_values", [False, True])
def test_attention_of_one_head_is_that_of_numpy_in_both_orders(linear_values):
    activation = (lambda v: v) if linear_values else leaky_relu
    module, x = SelfAttention(2, jax.nn.initializers.zeros, activation), images(channels=3)
    params = drawn(module, x)

    def energy(params, x):
        return jnp.square(module.apply({"params": params}, x)).sum((1, 2, 3))

    by_numpy = pixels_attended_by_numpy(activation if linear_values else lambda v: np.maximum(v, 0.2 * v))
    assert_equal_with_second_derivatives(energy, by_numpy, params, x)


def test_the_published_head_has_14_24_million_parameters_and_0_93_billion_multiply_adds():
    module, f = head(patch=4, width=384, layers=8, heads=4), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), f, f)["params"]
    assert in_words(count(shapes), "14.24 M") == "14.24 M"
    work = multiply_adds(lambda params, f: module.apply({"params": params}, f, f), shapes, f)
    assert in_words(work, "0.93 G") == "0.93 G"


@pytest.mark.whole
def test_squares_of_an_image_may_change_places_only_where_places_are_equal():
    module, f = head(), images(1)
    params = drawn(module, f, f)
    other = jnp.concatenate([f[:, PATCH:], f[:, :PATCH]], 1)

    def change(params):
        return float(jnp.abs(module.apply({"params": params}, f, f) - module.apply({"params": params}, f, other))[0])

    assert change(params) > 1e-2
    assert change(params | {"places": jnp.zeros_like(params["places"])}) < 1e-3


def test_dropout_acts_only_where_it_has_a_random_stream():
    module, f = head(dropout=0.5), images()
    params = drawn(module, f, f)
    plain = module.apply({"params": params}, f, f)
    np.testing.assert_array_equal(plain, head().apply({"params": params}, f, f))
    seen = [module.apply({"params": params}, f, f, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert min(np.abs(seen[0] - seen[2]).max(), np.abs(seen[0] - plain).max()) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, r"^images of 4x4 pixels do not divide into squares of model.unet.transformer.patch 3; use"),
        ({"heads": 4}, r"^model.unet.transformer.width 6 is not divisible by model.unet.transformer.heads 4; use"),
    ],
)
def test_what_does_not_divide_is_refused_in_one_line(changes, message):
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(head(**changes).init, jax.random.key(0), images(), images())
