"""The classifier of colour images is a function of its seed, sees each image alone, and learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax.metrics import residual

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 11, 8, 3), np.uint8)  # sides that differ, and one that is odd
LABELS = (np.arange(24) % 3).astype(np.int32)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(residual, "WIDTHS", (4, 8, 8))


def trained(seed=0, num_steps=2):
    return residual.train(seed, IMAGES, LABELS, num_classes=3, num_steps=num_steps)


@pytest.mark.whole
def test_it_is_a_function_of_its_seed_alone_which_chooses_its_start_and_its_draws(monkeypatch):
    one, same, other = (jax.tree.leaves(trained(seed)) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
    init = residual.init
    monkeypatch.setattr(residual, "init", lambda seed, classes: init(0, classes))
    drawn = jax.tree.leaves(trained(1))
    assert any((a != b).any() for a, b in zip(one, drawn, strict=True)), "it sees the images in another order"
    assert any((a != b).any() for a, b in zip(other, drawn, strict=True)), "and it began elsewhere"


@pytest.mark.whole
def test_an_image_has_the_same_features_in_any_company():
    params, images = trained(), jnp.asarray(IMAGES / np.float32(255))
    together, probabilities = residual.apply(3, params, images)
    alone = np.concatenate([residual.apply(3, params, one[None])[0] for one in images[:3]])
    np.testing.assert_allclose(together[:3], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert together.shape == (24, residual.NUM_FEATURES)
    assert np.ptp(np.asarray(together), 0).max() > 0, "images differ"


def test_training_hands_over_the_mean_and_the_variance_that_its_batches_had():
    """One batch of all images at a rate of 0: the features of the stem have mean 0 and variance 1 on that batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "LEARNING_RATE", 0.0)
        patch.setattr(residual, "augmented", lambda rng, images: images)
        params = trained(num_steps=3)
    squares = residual._as_channels(jnp.asarray(IMAGES / np.float32(255) * 4 - 2))
    convolved = residual._convolution(squares, params["stem"]["kernel"])
    stem = np.asarray(convolved * params["stem"]["scale"] + params["stem"]["bias"])
    np.testing.assert_allclose(stem.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(stem.var((0, 1, 2)), 1, rtol=1e-3)


def test_augmented_images_are_windows_of_mirrored_ones_and_half_of_them_are_flipped():
    images = RNG.integers(0, 256, (400, 16, 32, 3), np.uint8)
    made, flipped, shifts = residual.augmented(np.random.default_rng(1), images), 0, set()
    for image, one in zip(images[:60], made, strict=False):
        padded = np.pad(image, ((1, 1), (2, 2), (0, 0)), "reflect")
        windows = {
            (i, j, flip): padded[i : i + 16, j : j + 32][:, ::flip]
            for i in range(3)
            for j in range(5)
            for flip in (1, -1)
        }
        ((i, j, flip),) = (place for place, window in windows.items() if (window == one).all())
        flipped, shifts = flipped + (flip == -1), shifts | {(i, j)}
    assert 15 < flipped < 45, "30 on average, standard deviation 3.9"
    assert len(shifts) > 10, "of 15"


def test_the_rate_rises_to_its_peak_after_a_quarter_of_the_steps_and_falls_to_nothing():
    params = {"a": {"kernel": jnp.ones((1, 1))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residual, "WEIGHT_DECAY", 0.0)
        patch.setattr(residual, "MOMENTUM", 0.0)
        optimizer = residual._optimizer(params, 100)
        state, rates = optimizer.init(params), []
        for _ in range(100):
            update, state = optimizer.update({"a": {"kernel": jnp.ones((1, 1))}}, state, params)
            rates.append(-float(update["a"]["kernel"][0, 0]))
    assert max(rates) == rates[24] == pytest.approx(residual.LEARNING_RATE)
    assert rates[0] == pytest.approx(residual.LEARNING_RATE / 25)
    assert rates[99] == pytest.approx(residual.LEARNING_RATE / 75)


@pytest.mark.whole
def test_it_learns_to_tell_colours():
    labels = np.arange(96) % 3
    images = RNG.integers(0, 60, (96, 8, 8, 3), np.uint8)
    images[np.arange(96), :, :, labels] += 120
    params = residual.train(0, images[:48], labels[:48].astype(np.int32), num_classes=3, num_steps=120)
    found = residual.apply(3, params, jnp.asarray(images[48:] / np.float32(255)))[1].argmax(1)
    assert (found == labels[48:]).mean() > 0.9
