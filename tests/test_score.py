"""The Inception Score and the overlap of classes against closed forms and the definition."""

import numpy as np
import pytest
from scipy.special import softmax

from ebm_jax.metrics import score
from ebm_jax.metrics.score import class_overlap, inception_score, score_over_splits
from ebm_jax.types import BadInput


def sums_of(probabilities):
    return score.update(score.empty(probabilities.shape[1]), probabilities)


def test_score_of_certain_and_evenly_spread_classes_is_their_number():
    assert inception_score(sums_of(np.eye(7).repeat(3, 0))) == pytest.approx(7)


@pytest.mark.parametrize("row", [np.full(5, 0.2), np.array([1.0, 0, 0, 0, 0]), np.array([0.5, 0.5, 0, 0, 0])])
def test_score_of_images_that_look_alike_is_one(row):
    assert inception_score(sums_of(np.tile(row, (9, 1)))) == pytest.approx(1)


def test_score_is_the_exponential_of_the_mean_divergence_from_the_marginal():
    probabilities = softmax(np.random.default_rng(0).normal(size=(50, 4)), 1)
    marginal = probabilities.mean(0)
    divergences = [(p * (np.log(p) - np.log(marginal))).sum() for p in probabilities]
    gathered = score.update(score.update(score.empty(4), probabilities[:13]), probabilities[13:])
    assert inception_score(gathered) == pytest.approx(np.exp(np.mean(divergences)), rel=1e-12)


def test_score_over_splits_is_their_mean_and_the_error_of_that_mean():
    splits = [sums_of(np.eye(4)[classes]) for classes in ([0, 1], [2, 2], [0, 1, 2, 3])]
    mean, error = score_over_splits(splits)  # of scores 2, 1 and 4
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(np.std([2, 1, 4], ddof=1) / np.sqrt(3))


def test_overlap_of_classes_is_one_less_their_total_variation():
    a, b = sums_of(np.eye(4)[[0, 0, 1, 2]]), sums_of(np.eye(4)[[0, 1, 1, 3, 3, 3, 3, 3]])
    variation = np.abs(np.array([1 / 2, 1 / 4, 1 / 4, 0]) - np.array([1 / 8, 1 / 4, 0, 5 / 8])).sum() / 2
    assert class_overlap(a, b) == pytest.approx(1 - variation)
    assert class_overlap(a, a) == 1
    assert class_overlap(sums_of(np.eye(4)), sums_of(np.eye(4)[[2] * 5])) == pytest.approx(1 / 4)


def test_no_images_and_a_single_split_are_refused_in_one_line():
    with pytest.raises(BadInput, match=r"^an Inception Score of no images.*$"):
        inception_score(score.empty(3))
    with pytest.raises(BadInput, match=r"^a standard error needs at least 2 splits.*$"):
        score_over_splits([sums_of(np.eye(3))])
    with pytest.raises(BadInput, match=r"^the classes of no images.*$"):
        class_overlap(sums_of(np.eye(3)), score.empty(3))
