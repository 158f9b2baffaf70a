"""The stream of the continual benchmark brings each class in its own task, and a softmax classifier forgets on it."""

import argparse

import numpy as np
import pytest

from benchmarks import continual
from ebm_jax.data import memory

STEPS, SIZE = 60, 32
TRAIN, TEST = memory.digits("train"), memory.digits("test")


def test_each_task_brings_its_two_classes_alone_and_all_their_images():
    parts = [continual.of_task(TRAIN, task) for task in range(continual.TASKS)]
    batch_at = continual.stream(parts, 3, SIZE, 10)
    for step in range(50):
        assert set(np.unique(batch_at(step).labels)) == {2 * (step // 10), 2 * (step // 10) + 1}
    assert sum(len(part.images) for part in parts) == len(TRAIN.images)
    seen = np.concatenate([batch_at(step).images for step in range(8)])  # an epoch of 312 images has nine batches
    assert len(np.unique(seen.reshape(len(seen), -1), axis=0)) > 8 * SIZE - 5, "two digits may be equal, batches not"


def test_seeds_see_the_same_tasks_in_another_order():
    parts = [continual.of_task(TRAIN, task) for task in range(continual.TASKS)]
    one, other = (continual.stream(parts, seed, SIZE, 10)(17) for seed in (0, 1))
    assert set(np.unique(one.labels)) == set(np.unique(other.labels)) == {2, 3}
    assert (one.images != other.images).any()


@pytest.mark.slow
def test_a_softmax_classifier_knows_the_first_task_until_the_others_come():
    words = argparse.Namespace(
        data_dir="",
        width=8,
        chain_steps=2,
        capacity=64,
        relabel_prob=1.0,
        label_weight=0.0,
        label_margin=0.02,
        wrong_labels="batch",
        seeds=1,
        batch_size=SIZE,
        learning_rate=3e-3,
    )
    config = continual.configured("digits", words)
    parts = [continual.of_task(TRAIN, task) for task in range(continual.TASKS)]
    streams = [continual.stream(parts, 0, SIZE, 3 * STEPS)]
    right = continual.make_right(config)
    score = continual.scores(continual.softmax_learner(config), streams, 3 * STEPS, continual.TASKS, TEST, right)
    assert score.by_task.shape == (5, 1, 5)
    assert score.by_task[0, 0, 0] > 0.9
    assert score.by_task[4, 0, 0] < 0.3
    assert score.overall[0] == pytest.approx(np.average(score.by_task[-1, 0], weights=np.bincount(TEST.labels // 2)))
    assert continual.table({"it": score}).startswith("it: ")
