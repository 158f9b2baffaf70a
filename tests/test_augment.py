"""Changes of chains at their draw from the buffer: crops, mirror images, colours, and which chains undergo them."""

import colorsys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from test_step import BATCH, SHAPE, STILL, apply, batch_for, contrastive_divergence, params_for

from configs import density2d, digits, digits_contrastive
from ebm_jax import assemble, checks
from ebm_jax.methods.method import Model
from ebm_jax.sampling import augment
from ebm_jax.types import BadInput

N, SIDE = 400, 12


def ramp():
    """[N, SIDE, SIDE, 1]: the column of each pixel, as a share."""
    row = (jnp.arange(SIDE) + 0.5) / SIDE
    return jnp.broadcast_to(row[None, None, :, None], (N, SIDE, SIDE, 1))


def test_a_crop_of_a_ramp_is_a_ramp_of_less_slope_somewhere_within():
    whole = np.asarray(augment.cropped(jax.random.key(0), ramp(), 0.25), np.float64)[..., 0]
    assert whole.min() >= 0.5 / SIDE - 1e-6
    assert whole.max() <= 1 - 0.5 / SIDE + 1e-6
    np.testing.assert_allclose(whole, whole[:, :1] + np.zeros((1, SIDE, 1)), atol=1e-5)
    inner = whole[:, 0, 3:-3]  # beyond the outermost pixels' centres an image is constant
    slope = np.diff(inner, axis=1) * SIDE
    width = slope.mean(1)
    np.testing.assert_allclose(slope, np.broadcast_to(width[:, None], slope.shape), atol=2e-4)
    assert np.sqrt(0.25 / (4 / 3)) - 1e-3 <= width.min() < 0.6
    assert 0.95 < width.max() <= 1 + 1e-4
    start = inner[:, 0] - width * 3.5 / SIDE
    assert start.min() > -1e-4
    assert (start + width).max() < 1 + 1e-4
    assert start.std() > 0.05, "crops lie at different places"


def test_the_whole_image_is_its_own_crop():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 9, 9, 3)), jnp.float32)
    start, side = jnp.zeros((8, 2)), jnp.ones((8, 2))
    np.testing.assert_allclose(jax.vmap(augment._part)(x, start, side), x, atol=1e-6)


def test_a_part_is_the_stated_rectangle():
    rows, columns = np.meshgrid((np.arange(SIDE) + 0.5) / SIDE, (np.arange(SIDE) + 0.5) / SIDE, indexing="ij")
    image = jnp.asarray(np.stack([rows, columns], -1), jnp.float32)
    start, side = np.array([0.1, 0.4]), np.array([0.8, 0.5])
    found = np.asarray(augment._part(image, jnp.asarray(start, jnp.float32), jnp.asarray(side, jnp.float32)))
    np.testing.assert_allclose(found, start + side * np.stack([rows, columns], -1), atol=1e-5)


def test_areas_of_crops_go_from_the_least_to_the_whole():
    across = np.asarray(augment.cropped(jax.random.key(1), ramp(), 0.9), np.float64)[:, 0, 3:-3, 0]
    width = (np.diff(across, axis=1) * SIDE).mean(1)
    assert width.min() >= np.sqrt(0.9 * 3 / 4) - 1e-3, "nine tenths at least"


def test_half_of_the_images_are_mirrored():
    found = np.asarray(augment.mirrored(jax.random.key(0), ramp()))
    turned = (found[:, 0, 0, 0] > 0.5).mean()
    assert abs(turned - 0.5) < 5 * 0.5 / np.sqrt(N)
    np.testing.assert_array_equal(found[found[:, 0, 0, 0] > 0.5][0], np.asarray(ramp())[0, :, ::-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_all_changes_together_stay_in_the_box_and_differ_from_image_to_image(channels):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(64, SIDE, SIDE, channels)), jnp.float32)
    found = np.asarray(augment.strong(jax.random.key(0), x, least_area=0.08))
    assert found.shape == x.shape
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= 1).all()
    means = found.mean((1, 2))
    assert means[:, 0].std() > 0.1
    if channels == 3:
        gray = np.ptp(means, axis=1) < 1e-5
        assert 0.05 < gray.mean() < 0.4, "a fifth is gray"


def test_colours_of_an_even_gray_image_change_by_the_brightness_alone():
    x = jnp.full((2000, 2, 2, 1), 0.5)
    found = np.asarray(augment.coloured(jax.random.key(0), x), np.float64)[:, 0, 0, 0]
    left = found == 0.5
    assert abs(left.mean() - 0.2) < 5 * 0.4 / np.sqrt(2000)
    assert abs(found[~left].mean() - 0.5) < 0.03
    assert 0.1 - 1e-6 <= found.min() < 0.15
    assert 0.85 < found.max() <= 0.9 + 1e-6


def test_a_turned_hue_is_that_of_the_standard_library():
    """Random colours, grays and the six corners, against `colorsys`."""
    corners = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (0, 0, 0), (0.3, 0.3, 0.3)]
    colours = np.concatenate([np.random.default_rng(0).uniform(size=(56, 3)), corners])
    turns = np.array([-0.4, 0.0, 0.13, 1 / 3])
    x = jnp.asarray(np.broadcast_to(colours.reshape(1, 8, 8, 3), (4, 8, 8, 3)), jnp.float32)
    found = np.asarray(augment.turned(x, jnp.asarray(turns, jnp.float32))).reshape(4, 64, 3)
    for turn, row in zip(turns, found, strict=True):
        hsv = [colorsys.rgb_to_hsv(*colour) for colour in colours]
        expected = [colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value) for hue, saturation, value in hsv]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_colours_turn_either_way_by_up_to_two_fifths_of_the_circle():
    """The changes before it leave the hue of an orange that is nowhere cut, so what colorsys sees is the turn."""
    x = jnp.broadcast_to(jnp.asarray([0.5, 0.35, 0.2]), (2000, 2, 2, 3))
    seen = np.asarray(augment.coloured(jax.random.key(5), x))[:, 0, 0]
    hues = np.array([colorsys.rgb_to_hsv(*colour)[0] for colour in seen if np.ptp(colour) > 0.02])
    turns = (hues - colorsys.rgb_to_hsv(0.5, 0.35, 0.2)[0] + 0.5) % 1.0 - 0.5
    assert -0.41 < turns.min() < -0.38
    assert 0.38 < turns.max() < 0.41


def test_of_the_drawn_chains_new_ones_stay_and_the_stated_share_of_the_others_changes():
    method = contrastive_divergence(STILL, augment=augment.some(lambda key, x: x + 10.0, 0.5))
    buffer = method.init(jax.random.key(7))
    old = jnp.arange(BATCH) % 4 != 0
    buffer = buffer._replace(visits=old.astype(jnp.int32))
    moved, drawn = 0, 0
    batch = jax.tree.map(jnp.asarray, batch_for())
    step = jax.jit(lambda key: method.loss(key, Model(apply, params_for()), batch, buffer)[1][0])
    for seed in range(40):
        after = step(jax.random.key(seed))
        far = np.asarray(after.images[:, : int(np.prod(SHAPE))] > 5.0).all(1)
        assert not far[~np.asarray(old)].any(), "new chains"
        moved, drawn = moved + far.sum(), drawn + int(old.sum())
    assert abs(moved / drawn - 0.5) < 5 * 0.5 / np.sqrt(drawn)


def test_the_config_says_which_share_and_how_large_crops_are():
    assert assemble.make_augment(digits_contrastive.get_config()) is None
    config = changed(digits_contrastive.get_config(), **{"buffer.augment": 1.0, "buffer.least_area": 0.5})
    made, x = (
        assemble.make_augment(config),
        jnp.asarray(np.random.default_rng(0).uniform(size=(5, 8, 8, 1)), jnp.float32),
    )
    key = jax.random.key(3)
    inner = jax.random.split(key)[1]
    expected = partial(augment.strong, least_area=0.5)(inner, x)
    np.testing.assert_array_equal(made(jax.random.clone(key), x), expected)


@pytest.mark.parametrize("config", [digits.get_config(), density2d.get_config()])
def test_chains_that_are_no_images_of_the_box_are_refused(config):
    with pytest.raises(BadInput, match=r"buffer.augment 0.5 crops and colours images in \[0, 1\], and"):
        checks.check(changed(config, **{"buffer.augment": 0.5}), 1)
