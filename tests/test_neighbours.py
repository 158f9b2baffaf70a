"""Nearest images against all distances, and the share of copies against the sizes of the sets."""

import numpy as np
import pytest

from ebm_jax.metrics.neighbours import memorisation, nearest_neighbours
from ebm_jax.types import BadInput


def test_nearest_neighbours_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    images, reference = rng.uniform(size=(7, 6, 5, 3)), rng.uniform(size=(90, 6, 5, 3))
    images[2] = reference[41]
    rows, distances = nearest_neighbours(images, reference, 4)
    all_distances = np.sqrt(np.square(images[:, None] - reference[None]).sum((2, 3, 4)))
    np.testing.assert_array_equal(rows, np.argsort(all_distances, axis=1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(all_distances, axis=1)[:, :4], atol=1e-5)
    assert rows[2, 0] == 41


def test_samples_of_the_law_are_nearer_to_train_than_to_test_as_often_as_the_sizes_say():
    rng = np.random.default_rng(0)
    train, test, samples = (rng.normal(size=(n, 2, 2, 1)) for n in (300, 100, 4_000))
    found = memorisation(samples, train, test)
    assert found.expected == 0.75
    # The 4,000 samples share one draw of the sets: a test image's cell has a relative spread of about 1/2 in 4-D
    spread_of_sets = 0.75 * 0.25 * np.sqrt(1 / 300 + 1 / 100)
    assert abs(found.share - 0.75) < 5 * np.hypot(found.standard_error, spread_of_sets)
    assert found.copies(0.05) < 0.1


def test_copies_of_training_images_are_found_and_their_pairs_named():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(60, 3, 3, 1)), rng.normal(size=(60, 3, 3, 1))
    samples = np.concatenate(
        [train[[7, 3, 7]] + 0.01 * rng.normal(size=(3, 3, 3, 1)), 3 * rng.normal(size=(7, 3, 3, 1))]
    )
    found = memorisation(samples, train, test)
    np.testing.assert_array_equal(found.train_rows[:3], [7, 3, 7])
    assert (found.to_train[:3] < 0.1).all()
    assert found.copies(0.0) == 0.3, "no other sample is nearer than the nearest test image"
    everything = memorisation(train, train, test)
    assert everything.share == 1.0
    assert (everything.share - everything.expected) / everything.standard_error > 7


def test_the_yardstick_is_test_against_train():
    train, test = np.zeros((2, 1, 1, 1)), np.array([3.0, 4.0]).reshape(2, 1, 1, 1)
    found = memorisation(np.full((1, 1, 1, 1), 1.0), train, test)
    np.testing.assert_allclose(found.yardstick, [3, 4])
    np.testing.assert_allclose([found.to_train[0], found.to_test[0]], [1, 2])


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: nearest_neighbours(np.zeros((2, 3)), np.zeros((5, 4)), 1), r"\(3,\) and.*\(4,\) differ"),
        (lambda: nearest_neighbours(np.zeros((2, 3)), np.zeros((5, 3)), 6), "6 neighbours of 5 .* 1 to 5"),
        (lambda: nearest_neighbours(np.zeros((2, 3)), np.zeros((5, 3)), 0), "0 neighbours of 5"),
        (lambda: memorisation(np.zeros((2, 3)), np.zeros((5, 3)), np.zeros((0, 3))), "0 test images have no"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, line):
    with pytest.raises(BadInput, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
