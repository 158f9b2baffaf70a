"""The project's own classifier tells digits apart, is a function of its seed, and sees where things are in an image."""

from functools import partial

import jax
import numpy as np
import pytest

from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.metrics import classifier, features
from ebm_jax.metrics.frechet import frechet_distance, gaussian

pytestmark = pytest.mark.whole

TRAIN, TEST = memory.digits("train"), memory.digits("test")


def trained(seed=0, num_steps=100):
    return classifier.train(seed, TRAIN.images, TRAIN.labels, num_classes=10, num_steps=num_steps)


def feature_fn(params):
    return features.make_feature_fn(partial(classifier.apply, 10), params, parallel.device_mesh(), 400)


@pytest.fixture(scope="module")
def fn():
    return feature_fn(trained())


def test_it_tells_unseen_digits_as_well_as_a_linear_classifier_at_least(fn):
    from sklearn.linear_model import LogisticRegression

    flat = [split.images.reshape(len(split.images), -1) / 255 for split in (TRAIN, TEST)]
    linear = LogisticRegression(max_iter=200).fit(flat[0], TRAIN.labels).score(flat[1], TEST.labels)
    found, probabilities = fn(TEST.images)
    assert found.shape == (359, 128)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == TEST.labels).mean() > linear - 0.02, "two standard errors of 359 are 0.02"


def test_it_is_a_function_of_its_seed_alone(monkeypatch):
    one, same, other = (jax.tree.leaves(trained(seed, num_steps=3)) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
    first, second = (jax.tree.leaves(classifier.init(seed, 10, (8, 8, 1))) for seed in (0, 1))
    assert any((a != b).any() for a, b in zip(first, second, strict=True)), "it begins elsewhere"
    init = classifier.init
    monkeypatch.setattr(classifier, "init", lambda seed, *shape: init(0, *shape))
    ordered = jax.tree.leaves(trained(1, num_steps=3))
    assert any((a != b).any() for a, b in zip(one, ordered, strict=True)), "and sees the images in another order"


def test_its_distance_is_zero_of_equal_sets_and_orders_halves_shifts_and_noise(fn):
    def distance(images, others):
        return frechet_distance(
            *(gaussian(features.summarise(fn, part, num_groups=1, keep=0).moments[0]) for part in (images, others))
        )

    noise = np.random.default_rng(0).integers(0, 256, TRAIN.images.shape, np.uint8)
    halves = distance(TRAIN.images[::2], TRAIN.images[1::2])
    shifted, to_noise = (distance(TRAIN.images, other) for other in (np.roll(TRAIN.images, 1, 2), noise))
    assert distance(TRAIN.images, TRAIN.images) < 1e-6 * halves
    assert 5 * halves < shifted, "a shift by one pixel in the preprocessing is caught"
    assert shifted < to_noise
