import math
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equations

from ebm_jax.models import convolution, energy, layers, networks
from ebm_jax.models.common import HEAD

FLOAT32 = float(np.finfo(np.float32).eps)


def conv(size, c_in, c_out):
    return size * size * c_in * c_out


def dense(features_in, features_out):
    return features_in * features_out + features_out


def three_stages(width, stem):
    """Three blocks at each of three widths; the first of each width halves the image after its convolutions."""
    before = stem
    for side, features in ((32, width), (16, 2 * width), (8, 4 * width)):
        yield from [(side, conv(3, before, features)), (side, conv(3, features, features))]
        if before != features:
            yield side, conv(3, before, features)  # on the skip
        yield from 4 * [(side // 2, conv(3, features, features))]
        before = features


class Published(NamedTuple):
    """A network of the paper, layer by layer, and the figures of its table."""

    make: Callable[..., nn.Module]
    shape: tuple[int, int, int]
    convolutions: list[tuple[int, int]]
    """Side of the output, number of weights."""
    dense: list[tuple[int, int]]
    """Features in, features out."""
    tables: int
    """Numbers in the class-conditional tables for each class."""
    parameters: str
    multiply_adds: str


PAPER = {
    "mnist": Published(
        make=partial(networks.mnist, width=64, spectral_norm=True),
        shape=(28, 28, 1),
        convolutions=[(28, conv(3, 1, 64)), (14, conv(4, 64, 64)), (7, conv(4, 64, 128)), (4, conv(4, 128, 256))],
        dense=[(4 * 4 * 256, 128), (128, 1)],
        tables=(64 + 64) + (64 + 128) + (128 + 256),  # a bias for each input channel, a gain for each output channel
        parameters="1.25 M",
        multiply_adds="28.6 M",
    ),
    "dsprites": Published(
        make=partial(networks.dsprites, width=64, spectral_norm=True),
        shape=(64, 64, 1),
        convolutions=[
            (64, conv(3, 1, 32)),
            *[(32, conv(4, 32, 64)), (16, conv(4, 64, 128)), (8, conv(4, 128, 128)), (4, conv(4, 128, 128))],
        ],
        dense=[(4 * 4 * 128, 128), (128, 1)],
        tables=(32 + 64) + (64 + 128) + 2 * (128 + 128),
        parameters="0.95 M",
        multiply_adds="89.5 M",
    ),
    "resnet32": Published(
        make=partial(networks.resnet32, width=128, spectral_norm=True),
        shape=(32, 32, 3),
        convolutions=[
            (32, conv(3, 3, 128)),
            *2 * [(32, conv(3, 128, 128))],  # a block halves the image after its convolutions
            *2 * [(16, conv(3, 128, 128))],
            *[(16, conv(3, 128, 256)), (16, conv(3, 256, 256)), (16, conv(3, 128, 256))],  # the last on the skip
            *2 * [(8, conv(3, 256, 256))],
            *2 * [(8, conv(3, 256, 256))],
            *2 * [(4, conv(3, 256, 256))],
        ],
        dense=[(256, 1)],
        tables=2 * 3 * 128 + (128 + 2 * 256) + 3 * 3 * 256,  # two biases and a gain; the first bias is on the input
        parameters="5.31 M",
        multiply_adds="0.853 G",
    ),
    "resnet32_large": Published(
        make=partial(networks.resnet32_large, width=128, spectral_norm=True, dropout=0.5),
        shape=(32, 32, 3),
        convolutions=[(32, conv(3, 3, 128)), *three_stages(128, stem=128)],
        dense=[(512, 1)],
        tables=3 * 3 * 128 + (128 + 2 * 256) + 2 * 3 * 256 + (256 + 2 * 512) + 2 * 3 * 512,
        parameters="18.6 M",
        multiply_adds="1.36 G",
    ),
    "resnet32_wider, CIFAR-10": Published(
        make=partial(networks.resnet32_wider, width=192, spectral_norm=True),
        shape=(32, 32, 3),
        convolutions=[(32, conv(3, 3, 128)), *three_stages(192, stem=128)],
        dense=[(768, 1)],
        tables=(128 + 2 * 192) + 2 * 3 * 192 + (192 + 2 * 384) + 2 * 3 * 384 + (384 + 2 * 768) + 2 * 3 * 768,
        parameters="41.9 M",
        multiply_adds="3.17 G",
    ),
    "resnet32_wider, ImageNet-32": Published(
        make=partial(networks.resnet32_wider, width=256, spectral_norm=True),
        shape=(32, 32, 3),
        convolutions=[(32, conv(3, 3, 128)), *three_stages(256, stem=128)],
        dense=[(1024, 1)],
        tables=(128 + 2 * 256) + 2 * 3 * 256 + (256 + 2 * 512) + 2 * 3 * 512 + (512 + 2 * 1024) + 2 * 3 * 1024,
        parameters="74.3 M",
        multiply_adds="5.44 G",
    ),
    "resnet128": Published(
        make=partial(networks.resnet128, width=64, spectral_norm=True, activation=nn.swish),
        shape=(128, 128, 3),
        convolutions=[
            (128, conv(3, 3, 64)),
            *2 * [(128, conv(3, 64, 64))],
            *[(64, conv(3, 64, 128)), (64, conv(3, 128, 128)), (64, conv(3, 64, 128))],
            *[(32, conv(3, 128, 256)), (32, conv(3, 256, 256)), (32, conv(3, 128, 256))],
            *[(16, conv(3, 256, 512)), (16, conv(3, 512, 512)), (16, conv(3, 256, 512))],
            *2 * [(8, conv(3, 512, 512))],
            *2 * [(4, conv(3, 512, 512))],
        ],
        dense=[(512, 1)],
        tables=3 * 64 + (64 + 2 * 128) + (128 + 2 * 256) + (256 + 2 * 512) + 2 * 3 * 512,
        parameters="15.7 M",
        multiply_adds="5.24 G",
    ),
}


@cache
def abstract_params(network, shape):
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images, jnp.zeros(1, jnp.int32))["params"]


def random_params(network, shape, scale=0.3):
    """Parameters from NumPy, the tables among them."""
    generator = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(scale * generator.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map(draw, abstract_params(network, shape))


def random_images(n, shape):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(n, *shape)), jnp.float32)


@cache
def compiled(network):
    return jax.jit(network.apply)


def energies(network, params, images, labels=None):
    return np.asarray(compiled(network)({"params": params}, images, labels))


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def multiply_adds(fn, *inputs):
    """Output elements times the terms that each sums, over all convolutions and matrix products."""

    def cost(equation):
        dimensions = equation.params["dimension_numbers"]
        left, right, out = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = dimensions
            return math.prod(out) * math.prod(left[axis] for axis in contracted)
        return math.prod(out) * math.prod(right) // right[dimensions.rhs_spec[0]]

    products = ("conv_general_dilated", "dot_general")
    found = equations(jax.make_jaxpr(fn)(*inputs))
    return sum(cost(equation) for equation in found if equation.primitive.name in products)


def in_words(number, like):
    """A number with the unit and the decimals of `like`."""
    digits, unit = like.split()
    return f"{number / {'M': 1e6, 'G': 1e9}[unit]:.{len(digits.split('.')[1])}f} {unit}"


@pytest.mark.parametrize("net", PAPER.values(), ids=PAPER)
def test_parameters_are_those_of_the_paper_and_one_set_of_tables_a_class(net):
    weights = sum(size for _, size in net.convolutions) + sum(dense(*sizes) for sizes in net.dense)
    assert in_words(weights, net.parameters) == net.parameters
    for num_classes in (1, 10):
        params = abstract_params(net.make(num_classes=num_classes), net.shape)
        assert count(params) == weights + num_classes * net.tables


@pytest.mark.parametrize("net", PAPER.values(), ids=PAPER)
def test_forward_multiply_adds_are_those_of_the_paper(net, monkeypatch):
    monkeypatch.setattr(convolution, "_forward", convolution.plain)  # Winograd has fewer than the paper
    expected = sum(side**2 * size for side, size in net.convolutions) + sum(a * b for a, b in net.dense)
    assert in_words(expected, net.multiply_adds) == net.multiply_adds
    network, image = net.make(num_classes=1), jax.ShapeDtypeStruct((1, *net.shape), jnp.float32)
    assert multiply_adds(network.apply, {"params": abstract_params(network, net.shape)}, image) == expected


@pytest.mark.parametrize(
    ("side", "convolutions", "block", "flat"),
    [
        (28, conv(4, 1, 32) + conv(4, 32, 64), 2 * conv(3, 64, 64), 7 * 7 * 64),
        (8, conv(4, 1, 32), conv(3, 32, 64) + conv(3, 64, 64) + conv(3, 32, 64), 4 * 4 * 64),
    ],
)
def test_small_net_halves_to_at_most_7_pixels_then_has_one_block_and_a_dense_head(side, convolutions, block, flat):
    weights = convolutions + block + dense(flat, 64) + dense(64, 1)
    channels = 64 if side == 28 else 32
    for num_classes in (1, 10):
        network = networks.SmallNet(width=32, num_classes=num_classes, spectral_norm=False)
        tables = channels + 2 * 64
        assert count(abstract_params(network, (side, side, 1))) == weights + num_classes * tables


NETWORKS = [
    pytest.param(networks.mnist, (12, 12, 1), id="mnist"),
    pytest.param(networks.dsprites, (16, 16, 1), id="dsprites"),
    pytest.param(networks.resnet32, (8, 8, 3), id="resnet32"),
    pytest.param(networks.resnet32_wider, (8, 8, 3), id="resnet32_wider"),
    pytest.param(networks.multiscale, (16, 16, 3), id="multiscale"),
    pytest.param(networks.SmallNet, (8, 8, 1), id="small"),
]
ATTENTIVE = {  # where the attention block stands, and the channels of its input and of its keys, for width 4
    "resnet32": (networks.resnet32, "block3", 8, 2),
    "resnet32_large": (networks.resnet32_large, "block4", 8, 4),
    "resnet32_wider": (networks.resnet32_wider, "block1", 4, 2),
    "resnet128": (networks.resnet128, "block1", 4, 2),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_stands_where_the_release_has_it_and_starts_as_nothing(name):
    make, block, channels, keys = ATTENTIVE[name]
    network = make(width=4, num_classes=1, spectral_norm=True, attention=True)
    without = abstract_params(make(width=4, num_classes=1, spectral_norm=True), (32, 32, 3))
    params = abstract_params(network, (32, 32, 3))
    assert {leaf for leaf in params if "query" in params[leaf]} == {block}
    assert params[block]["query"]["kernel"].shape == params[block]["key"]["kernel"].shape == (channels, keys)
    assert params[block]["value"]["kernel"].shape == (channels, channels)
    assert len(params) == len(without) + (name == "resnet128"), "it takes a block's place, but in ResNet128"
    initial = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None)["params"]
    assert initial[block]["gamma"] == 0


@pytest.mark.whole
@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_energy_under_a_one_hot_soft_label_is_that_under_the_class(make, shape):
    network = make(width=4, num_classes=3, spectral_norm=False)
    params, images, labels = random_params(network, shape), random_images(4, shape), jnp.array([2, 0, 1, 2])
    expected = energies(network, params, images, labels)
    soft = energies(network, params, images, jax.nn.one_hot(labels, 3))
    np.testing.assert_allclose(soft, expected, rtol=0, atol=200 * FLOAT32 * np.abs(expected).max())
    assert np.ptp(energies(network, params, images[:1].repeat(3, 0), jnp.eye(3))) > 1e3 * FLOAT32


BFLOAT16 = 2.0**-8  # relative; half the gap between neighbouring values at most


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(*each.values, id=each.id, marks=() if each.id in ("small", "mnist") else pytest.mark.slow)
        for each in NETWORKS
        if each.id != "resnet32_wider"
    ],
)
def test_bfloat16_changes_energies_and_chain_gradients_by_its_rounding_and_not_their_type(make, shape):
    # Every layer rounds its input, its kernel and its output: relative errors of 2^-8 each, independent between
    # elements. Over the layers (at most 30 here, three roundings each) their squares add up; the gradient goes through
    # the layers twice. The activation is smooth: at a kink the smallest error changes a slope by the whole jump.
    network = make(width=16, num_classes=2, spectral_norm=False, activation=nn.swish)
    params, images = random_params(network, shape, scale=0.1), random_images(8, shape)
    labels = jnp.arange(8) % 2

    def both(dtype):
        apply = energy.from_module(network.clone(dtype=dtype))
        value = jax.jit(jax.value_and_grad(lambda images: apply(params, images, labels).sum()))
        return jax.jit(apply)(params, images, labels), value(images)[1]

    (exact, exact_grad), (rounded, rounded_grad) = both(jnp.float32), both(jnp.bfloat16)
    assert rounded.dtype == rounded_grad.dtype == jnp.float32
    bound = BFLOAT16 * np.sqrt(3 * 30)
    head_bias = float(params[HEAD]["bias"][0])
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(np.asarray(exact) - head_bias)
    grad_error = np.linalg.norm(rounded_grad - exact_grad) / np.linalg.norm(exact_grad)
    assert 0 < error < bound
    assert 0 < grad_error < bound * np.sqrt(2)


def test_the_sum_over_pixels_and_the_head_are_in_float32_under_bfloat16():
    """256 equal pixels: a bfloat16 sum would have 8 bits, and the head's weights 8 more."""
    network = networks.ResNet(
        stem=1, blocks=(), num_classes=1, spectral_norm=False, activation=nn.relu, dtype=jnp.bfloat16
    )
    params = {
        "stem": {"kernel": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)},
        HEAD: {"kernel": jnp.full((1, 1), 1 + 2.0**-20), "bias": jnp.zeros(1)},
    }
    values = np.full((1, 16, 16, 1), 1.0, np.float32)
    values[0, 0, 0] += 2.0**-7
    actual = energy.from_module(network)(params, jnp.asarray(values))
    assert float(actual[0]) == np.float32((256 + 2.0**-7) * (1 + 2.0**-20))


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_energy_under_a_label_is_that_of_the_network_with_this_row_alone(make, shape):
    conditional, single = (make(width=3, num_classes=n, spectral_norm=False) for n in (3, 1))
    params, images = random_params(conditional, shape), random_images(4, shape)
    is_table = jax.tree.map(lambda a, b: a.shape != b.shape, params, abstract_params(single, shape))

    def row(k):
        return jax.tree.map(lambda leaf, table: leaf[k : k + 1] if table else leaf, params, is_table)

    alone = [energies(single, row(k), images) for k in range(3)]
    assert (np.ptp(alone, axis=0) > 1e3 * FLOAT32 * np.abs(alone).max()).all()
    labels = np.array([2, 0, 1, 2])
    expected = np.array(alone)[labels, np.arange(4)]
    actual = energies(conditional, params, images, jnp.asarray(labels))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=20 * FLOAT32 * np.abs(alone).max())


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_unconditional_energy_ignores_labels(make, shape):
    network = make(width=3, num_classes=1, spectral_norm=False)
    params, images = random_params(network, shape), random_images(4, shape)
    without = energies(network, params, images)
    assert np.ptp(without) > 0
    np.testing.assert_array_equal(energies(network, params, images, jnp.array([0, 5, 1, 0])), without)


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_images_of_a_batch_do_not_touch_each_others_energy(make, shape):
    network = make(width=3, num_classes=3, spectral_norm=False)
    params, images, labels = random_params(network, shape), random_images(4, shape), jnp.array([1, 0, 0, 2])
    together = energies(network, params, images, labels)
    one_by_one = [energies(network, params, images[i : i + 1], labels[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=20 * FLOAT32 * np.abs(together).max())


def test_resnet_energy_is_a_sum_over_pixels_and_not_a_mean():
    network = networks.ResNet(stem=3, blocks=(), num_classes=1, spectral_norm=False)
    params = random_params(network, (2, 3, 1), scale=1.0)
    kernel = params["stem"]["kernel"]
    params["stem"]["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])  # a pixel sees itself alone
    images = random_images(2, (2, 3, 1))
    pixels = energies(network, params, images.reshape(-1, 1, 1, 1)).reshape(2, -1)
    bias = float(params[HEAD]["bias"][0])
    expected = bias + (pixels - bias).sum(1)
    np.testing.assert_allclose(energies(network, params, images), expected, rtol=20 * FLOAT32)


def test_dropout_acts_only_where_it_has_a_random_stream():
    def block(dropout):
        return layers.ResidualBlock(2, 1, nn.swish, nn.initializers.ones, nn.initializers.ones, dropout=dropout)

    x = random_images(2, (4, 4, 2))
    params = random_params(block(0.0), (4, 4, 2))

    @partial(jax.jit, static_argnums=(0, 1))
    def run(dropout, stream, key):
        return block(dropout).apply({"params": params}, x, None, rngs={stream: key})

    plain = run(0.0, "dropout", jax.random.key(0))
    trained = [run(0.5, "dropout", jax.random.key(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(run(0.5, "params", jax.random.key(1)), plain)
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.abs(trained[0] - trained[2]).max() > 1e-2
    assert np.abs(trained[0] - plain).max() > 1e-2
