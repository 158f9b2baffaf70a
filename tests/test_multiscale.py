"""The network of three resolutions: its layers counted, what each part sees, its second derivative."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mixed_derivatives
from test_networks import abstract_params, conv, count, dense, energies, multiply_adds, random_images, random_params

from ebm_jax.methods import losses
from ebm_jax.models import energy
from ebm_jax.models.common import HEAD
from ebm_jax.models.multiscale import anti_aliased, halved, multiscale, num_groups, standardised

FLOAT32 = float(np.finfo(np.float32).eps)
made = partial(multiscale, spectral_norm=False, activation=jax.nn.swish)
CHANNELS = {32: (64, 64, 128, 256), 16: (64, 64, 128), 8: (64, 64)}
"""By the side of the image, the channels that each stage of the release's network has before its last convolution
(models.py: ResNetModel with --filter_dim=64)."""


def convolutions():
    """The side of the output and the weights of each convolution."""
    for size, channels in CHANNELS.items():
        yield size, conv(3, 3, 64)
        for stage, (before, after) in enumerate(zip(channels, (*channels[1:], 2 * channels[-1]), strict=True)):
            yield from [*4 * [(size >> stage, conv(3, before, before))], (size >> stage, conv(3, before, after))]


def test_it_has_the_convolutions_of_the_release_three_heads_and_tables_for_each_class():
    weights = sum(size for _, size in convolutions()) + dense(512 + 256 + 128, 1)
    biases = sum(64 + sum(channels[1:]) + 2 * channels[-1] for channels in CHANNELS.values())
    attention = 2 * (128 * 16 + 16) + 128 * 128 + 1  # queries, keys; values; their weight
    tables = 2 * 2 * 2 * sum(sum(channels) for channels in CHANNELS.values())  # blocks, norms, gain and bias
    for num_classes in (1, 10):
        params = abstract_params(made(64, num_classes=num_classes), (32, 32, 3))
        assert count(params) == weights + biases + attention + num_classes * tables
    plain = abstract_params(made(64, num_classes=1, attention=False), (32, 32, 3))
    assert count(plain) == weights + biases + tables
    assert 6.5e6 < count(plain) < 6.6e6


def test_its_multiply_adds_are_those_of_its_layers():
    network, image = made(64, num_classes=1), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    attention = 64 * (2 * 128 * 16 + 128 * 128) + 64 * 64 * (16 + 128)
    expected = sum(side**2 * size for side, size in convolutions()) + 512 + 256 + 128 + attention
    assert multiply_adds(network.apply, {"params": abstract_params(network, (32, 32, 3))}, image) == expected


@pytest.mark.parametrize(
    "shape", [(28, 28, 1), *(pytest.param((side, side, 3), marks=pytest.mark.whole) for side in (32, 64))]
)
def test_images_of_any_of_these_sizes_have_an_energy_that_every_pixel_moves(shape):
    network = made(2, num_classes=1)
    params, images = random_params(network, shape), random_images(1, shape)
    grad = jax.jit(jax.grad(lambda images: energy.from_module(network)(params, images)[0]))(images)
    assert np.isfinite(grad).all()
    assert (np.abs(grad) > 0).mean() > 0.99


def filtered(x, taps, mode):
    """Every second pixel of the filter, in NumPy, one by one."""
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)), mode)
    window = np.outer(taps, taps)[None, :, :, None]
    rows, columns = (range(0, size, 2) for size in x.shape[1:3])
    at = [[(window * padded[:, i : i + 3, j : j + 3]).sum((1, 2)) for j in columns] for i in rows]
    return np.asarray(at).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("size", [(8, 8), (7, 4), (5, 9)])
def test_halving_is_the_mean_of_3x3_pixels_with_zeros_beyond_the_border_or_the_binomial_of_mirrored_ones(size):
    x = random_images(2, (*size, 3))
    np.testing.assert_allclose(halved(x), filtered(x, [1 / 3] * 3, "constant"), atol=4 * FLOAT32)
    np.testing.assert_allclose(anti_aliased(x), filtered(x, [0.25, 0.5, 0.25], "reflect"), atol=4 * FLOAT32)


def test_the_energy_is_the_sum_of_three_of_which_two_do_not_see_what_averaging_takes_away():
    network, shape = made(2, num_classes=1), (16, 16, 3)
    params, images = random_params(network, shape), random_images(3, shape)
    unseen = np.array([-1, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1], np.float32)  # every mean of three is 0
    moved = images + 0.1 * jnp.asarray(unseen)[None, :, None, None]
    np.testing.assert_allclose(halved(moved), halved(images), atol=4 * FLOAT32)
    bias = float(params[HEAD]["bias"][0])
    parts, changes = [], []
    for rows in (slice(0, 16), slice(16, 24), slice(24, 28)):
        head = jnp.zeros((28, 1)).at[rows].set(params[HEAD]["kernel"][rows])
        alone = params | {HEAD: params[HEAD] | {"kernel": head}}
        parts.append(energies(network, alone, images) - bias)
        changes.append(np.abs(energies(network, alone, moved) - bias - parts[-1]).min())
    whole = energies(network, params, images)
    np.testing.assert_allclose(sum(parts) + bias, whole, atol=20 * FLOAT32 * np.abs(parts).max())
    assert changes[0] > 1e-2 * np.abs(parts[0]).max()
    assert max(changes[1:]) < 1e-4 * np.abs(parts[1:]).min()


def test_kernels_of_blocks_count_up_to_a_scale_and_a_shift():
    network, shape = made(2, num_classes=1), (16, 16, 3)
    params, images = random_params(network, shape), random_images(2, shape)

    def other(path, leaf):
        return 3.0 * leaf + 0.5 if "convolution" in jax.tree_util.keystr(path) else leaf

    changed = jax.tree_util.tree_map_with_path(other, params)
    expected = energies(network, params, images)
    np.testing.assert_allclose(energies(network, changed, images), expected, rtol=1e-3)
    kernel = np.asarray(standardised(params["scale0"]["block0a"]["convolution1"]["kernel"]))
    np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.std((0, 1, 2), ddof=1), 1, rtol=1e-4)


@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (128, 128), (256, 32), (512, 32), (200, 8)])
def test_up_to_128_channels_are_normalised_alone_and_more_in_32_groups_or_fewer(channels, groups):
    assert num_groups(channels) == groups


@pytest.mark.whole
@pytest.mark.parametrize("antialias", [False, True])
def test_the_gradient_of_its_slope_is_the_slope_of_its_gradient_with_attention_too(antialias):
    network, shape = made(2, num_classes=1, antialias=antialias), (16, 16, 3)
    params, images = random_params(network, shape), random_images(2, shape)
    params["scale0"]["attention"] = jax.tree.map(lambda leaf: 6.0 * leaf, params["scale0"]["attention"])
    pair = mixed_derivatives(energy.from_module(network), params, images, random_images(2, shape) - 0.5)
    found, expected = (jax.tree.map(np.asarray, one) for one in pair)
    largest = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected))
    assert np.linalg.norm(expected["scale0"]["attention"]["query"]["kernel"]) > 1e-3 * largest
    for actual, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.linalg.norm(actual - wanted) <= 0.02 * np.linalg.norm(wanted) + 1e-4 * largest


def test_contrastive_divergence_of_the_sum_is_three_times_the_release_s_of_three_equal_energies():
    one_data, one_samples = random_images(2, (50,))
    three = [jnp.stack([one] * 3, 1) for one in (one_data, one_samples)]
    release = three[0].mean() - three[1].mean() + jnp.square(three[0]).mean() + jnp.square(three[1]).mean()
    ours = losses.regularised(losses.OBJECTIVES["cd"], 1 / 3, losses.PENALTIES["sum"])
    np.testing.assert_allclose(ours(three[0].sum(1), three[1].sum(1)), 3 * release, rtol=1e-5)
