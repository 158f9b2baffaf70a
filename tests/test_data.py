"""Batches, and the bundled digits."""

import itertools

import numpy as np
import pytest

from ebm_jax.data import memory
from ebm_jax.types import BadInput


def test_an_epoch_is_every_image_once_and_the_next_epoch_another_order():
    epochs = [
        np.concatenate([memory.batch_rows(3, 10 * epoch + step, 8, 83) for step in range(10)]) for epoch in (0, 1)
    ]
    for rows in epochs:
        assert len(set(rows)) == 80, "an epoch repeats an image"
    assert (epochs[0] != epochs[1]).any()


def test_batches_are_a_function_of_seed_and_step_alone():
    rows = memory.batch_rows(0, 7, 16, 100)
    memory.batch_rows(0, 50, 16, 100)
    memory.batch_rows(1, 7, 16, 100)
    np.testing.assert_array_equal(memory.batch_rows(0, 7, 16, 100), rows)
    assert (memory.batch_rows(1, 7, 16, 100) != rows).any()


def test_orders_of_neighbouring_seeds_and_epochs_have_as_many_places_in_common_as_chance_gives():
    n = 1000
    orders = np.array([memory.batch_rows(seed, epoch, n, n) for seed in range(3, 8) for epoch in range(5)])
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(n), (25, 1)), err_msg="each image once")
    common = np.array([(one == other).sum() for one, other in itertools.combinations(orders, 2)])
    assert common.max() < 8, "of 300 Poisson numbers of mean 1 one is 8 or more with probability 0.003"
    assert abs(common.mean() - 1) < 5 / np.sqrt(len(common))


def test_batches_of_points_of_neighbouring_seeds_and_steps_have_none_in_common():
    def draw(rng, n):
        return rng.random((n, 2), np.float32)

    batches = [memory.sampled_batches(draw, seed, 8)(step).images for seed in range(3, 8) for step in range(5)]
    assert len(np.unique(np.concatenate(batches), axis=0)) == 25 * 8


def test_in_an_epoch_processes_get_different_images_and_all_of_them_together():
    rows = np.arange(84, dtype=np.int32)
    dataset = memory.Dataset(np.zeros((84, 1, 1, 1), np.uint8), rows, 84)
    shares = []
    for process in range(4):
        batch_at = memory.make_batches(dataset, 5, 12, process, 4)
        shares.append(np.concatenate([batch_at(step).labels for step in range(7, 14)]))
    assert [len(share) for share in shares] == [21] * 4
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), rows)


def test_processes_share_the_global_batch_in_order():
    digits = memory.digits("train")
    whole = memory.make_batches(digits, 5, 24)(11)
    parts = [memory.make_batches(digits, 5, 24, process, 3)(11) for process in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)


def test_images_keep_their_labels():
    digits = memory.digits("train")
    label_of = {image.tobytes(): label for image, label in zip(digits.images, digits.labels, strict=True)}
    batch = memory.make_batches(digits, 0, 64)(30)
    assert [label_of[np.asarray(image).tobytes()] for image in batch.images] == list(batch.labels)


def test_digits_are_scikit_learns_and_train_and_test_are_disjoint():
    from sklearn.datasets import load_digits

    train, test = memory.digits("train"), memory.digits("test")
    assert len(train.images) + len(test.images) == 1797
    np.testing.assert_allclose(test.images[0, :, :, 0] * (16 / 255), load_digits().images[4], atol=0.5 * 16 / 255)
    assert test.labels[0] == load_digits().target[4]


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(BadInput, match=r"train.batch_size 2000 is larger than the data set of 1438 images"):
        memory.make_batches(memory.digits("train"), 0, 2000)
