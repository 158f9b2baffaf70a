"""The FID's Inception: its size, its pooling, its resize, and the folding of normalisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ebm_jax.metrics import inception
from ebm_jax.types import BadInput

FLOAT32 = 1e-5  # relative, of a sum of some hundred products


def leaves():
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(inception.shapes())}


def test_number_of_parameters_is_that_of_torchvisions_with_1008_classes_and_without_its_second_head():
    second_head = 768 * 128 + 2 * 128 + 128 * 768 * 5 * 5 + 2 * 768 + 1000 * (768 + 1)
    expected = 27_161_264 - second_head + 8 * (2048 + 1)  # torchvision's own count, Inception_V3_Weights.meta
    kernels = sum(leaf.size for name, leaf in leaves().items() if "kernel" in name)
    biases = sum(leaf.size for name, leaf in leaves().items() if "bias" in name)  # each from a scale and an offset
    assert kernels + 2 * biases + 1008 == expected


def test_outputs_are_2048_features_and_1008_classes_of_any_image():
    for shape in ((3, 28, 28, 1), (2, 320, 310, 3)):
        params = inception.shapes()
        features, classes = jax.eval_shape(
            lambda params, x: inception.Inception().apply({"params": params}, x), params, jnp.zeros(shape)
        )
        assert (features.shape, classes.shape) == ((shape[0], 2048), (shape[0], 1008))


def test_pools_count_only_pixels_of_the_image():
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32) + 3
    means, maxima = np.empty_like(x), np.empty_like(x)
    for row in range(5):
        for column in range(6):
            near = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            means[:, row, column], maxima[:, row, column] = near.mean((1, 2)), near.max((1, 2))
    np.testing.assert_allclose(inception.average_pool(jnp.asarray(x)), means, rtol=FLOAT32)
    np.testing.assert_array_equal(inception.max_pool(jnp.asarray(x)), maxima)


@pytest.mark.parametrize("shape", [(8, 8), (28, 40), (299, 299)])
def test_enlarging_is_pillows_bilinear_between_pixel_centres(shape):
    image = np.random.default_rng(0).random(shape, np.float32)
    large = Image.fromarray(image).resize((299, 299), Image.Resampling.BILINEAR)
    found = np.asarray(inception.resized(jnp.asarray(image[None, :, :, None])))[0]
    for channel in range(3):
        np.testing.assert_allclose(found[:, :, channel], 2 * np.asarray(large) - 1, atol=2e-5)  # float32 positions


def test_shrinking_by_half_is_the_mean_of_four_pixels_and_blurs_no_further():
    image = np.random.default_rng(0).random((1, 598, 598, 1), np.float32)
    expected = image.reshape(299, 2, 299, 2).mean((1, 3))
    np.testing.assert_allclose(inception.resized(jnp.asarray(image))[0, :, :, 1], 2 * expected - 1, atol=2e-5)


def random_state():
    """A state dict under PyTorch's names, with the normalisations not yet folded."""
    rng, state = np.random.default_rng(0), {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008)}
    for name, leaf in leaves().items():
        layer = name.removesuffix("['conv']['kernel']").removeprefix("['").removesuffix("']").replace("']['", ".")
        if name.endswith("['conv']['kernel']"):
            height, width, c_in, c_out = leaf.shape
            state[f"{layer}.conv.weight"] = np.broadcast_to(np.float32(0.5), (c_out, c_in, height, width))
            for part in ("weight", "bias", "running_mean", "running_var"):
                state[f"{layer}.bn.{part}"] = rng.uniform(0.5, 2, c_out).astype(np.float32)
            state[f"{layer}.bn.num_batches_tracked"] = np.array(1)
    return state


STATE = random_state()


def test_folded_layer_is_the_convolution_followed_by_the_normalisation():
    rng = np.random.default_rng(1)
    layer = "Conv2d_1a_3x3"
    weight = rng.normal(size=(32, 3, 3, 3)).astype(np.float32)
    params = inception.params_of(STATE | {f"{layer}.conv.weight": weight})
    x = rng.normal(size=(1, 9, 9, 3)).astype(np.float32)
    found = inception.Layer(32, (3, 3), 2, "VALID").apply({"params": params[layer]}, jnp.asarray(x))
    scale, offset, mean, variance = (
        STATE[f"{layer}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    for row in range(4):
        for column in range(4):
            patch = x[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            plain = np.einsum("hwc,ochw->o", patch, weight)
            expected = np.maximum(scale * (plain - mean) / np.sqrt(variance + 0.001) + offset, 0)
            np.testing.assert_allclose(found[0, row, column], expected, rtol=1e-4, atol=1e-5)


def without(name):
    return {key: value for key, value in STATE.items() if key != name}


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (without("Mixed_5b.branch1x1.bn.bias"), r"^Mixed_5b.branch1x1.bn.bias is missing, .* \(64,\); .*$"),
        (STATE | {"fc.weight": np.zeros((1000, 2048))}, r"^fc.weight is of the shape \(1000, 2048\), .*$"),
        (STATE | {"AuxLogits.fc.bias": np.zeros(1000)}, r"^AuxLogits.fc.bias is no weight of the FID Inception.*$"),
        (STATE | {"fc.bias": np.full(1008, np.nan)}, r"^fc.bias has values that cannot be its.*$"),
        (
            STATE | {"Conv2d_1a_3x3.bn.running_var": np.full(32, -1.0)},
            r"^Conv2d_1a_3x3.bn.running_var has values.*$",
        ),
    ],
    ids=["missing", "torchvision's own", "second head", "not finite", "negative variance"],
)
def test_weights_of_another_network_are_refused_in_one_line(state, line):
    with pytest.raises(BadInput, match=line):
        inception.params_of(state)
