"""Accuracy, calibration error and likelihood of a classifier against scikit-learn and closed forms."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, log_loss

from ebm_jax.metrics import calibration


@pytest.fixture(scope="module")
def predictions():
    """Logits of 3,000 images, with labels drawn from softmax(logits / 2): the logits are too confident."""
    rng = np.random.default_rng(0)
    logits = 3.0 * rng.normal(size=(3_000, 5))
    probabilities = np.exp(log_softmax(logits / 2.0, axis=1))
    labels = (probabilities.cumsum(1) < rng.uniform(size=(len(logits), 1))).sum(1)
    return logits, np.minimum(labels, 4)


def test_accuracy_and_likelihood_are_those_of_scikit_learn(predictions):
    logits, labels = predictions
    report = calibration.report(logits, labels)
    assert report.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert report.nll == pytest.approx(log_loss(labels, np.exp(log_softmax(logits, axis=1))))


def test_standard_errors_are_the_spread_over_many_sets_of_images(predictions):
    logits, labels = predictions
    report, rng = calibration.report(logits, labels), np.random.default_rng(1)
    drawn = [rng.integers(0, len(labels), len(labels)) for _ in range(400)]
    each = [calibration.report(logits[rows], labels[rows]) for rows in drawn]
    for name in ("accuracy", "nll"):
        spread = np.std([getattr(one, name) for one in each])
        assert abs(getattr(report, f"{name}_error") / spread - 1) < 5 / np.sqrt(2 * 400)  # the spread's own error


def test_calibration_error_is_that_of_scikit_learns_bins(predictions):
    logits, labels = predictions
    confidence, right = np.exp(log_softmax(logits, axis=1)).max(1), logits.argmax(1) == labels
    accuracies, confidences = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    count, _ = np.histogram(confidence, 15, (0.0, 1.0))
    expected = (count[count > 0] * np.abs(accuracies - confidences)).sum() / len(labels)
    assert calibration.report(logits, labels).calibration_error == pytest.approx(expected)
    assert expected > 0.1


def test_calibration_error_of_one_confidence_is_its_distance_from_the_accuracy():
    logits = np.log(np.tile([0.8, 0.2], (10, 1)))
    labels = np.array([0] * 6 + [1] * 4)
    report = calibration.report(logits, labels)
    assert report.calibration_error == pytest.approx(0.2)
    assert report.bins.count.sum() == report.bins.count[11] == 10  # 0.8 is in ](11)/15, 12/15]


def test_a_confidence_at_the_border_of_two_bins_is_in_the_lower_one():
    confidence = np.array([0.0, 0.25, 0.5, 0.75, 1.0])  # exact, as are borders of quarters
    assert calibration.bins(confidence, np.ones(5, bool), 4).count.tolist() == [2, 1, 1, 1]


def test_the_fitted_temperature_is_the_one_that_the_labels_were_drawn_with(predictions):
    logits, labels = predictions
    temperature = calibration.fitted_temperature(logits, labels)
    assert abs(temperature - 2.0) < 0.2  # 3,000 labels determine it to about 3 %
    before, after = (calibration.report(logits / t, labels) for t in (1.0, temperature))
    assert after.calibration_error < 0.03 < before.calibration_error  # 15 bins of 200 each: 0.02 of chance
    assert calibration.fitted_temperature(1e-4 * logits, labels) == pytest.approx(1e-4 * temperature, rel=1e-3)


def test_a_fit_that_only_stopped_at_its_bound_says_so_and_one_inside_does_not(predictions):
    assert calibration.bound_reached(calibration.fitted_temperature(*predictions)) == ""
    labels = np.arange(100) % 2
    right = np.where(labels[:, None] == np.arange(2), 1.0, -1.0)  # the smaller T the better, without end
    assert "the smaller T, the likelier the labels" in calibration.bound_reached(
        calibration.fitted_temperature(right, labels)
    )
    assert "the larger T, the likelier the labels" in calibration.bound_reached(
        calibration.fitted_temperature(-right, labels)
    )


def test_energies_that_differ_by_less_than_a_float32_softmax_keeps_still_count():
    energies = np.array([[20.0, 20.0 - 2e-6], [20.0, 20.0 + 2e-6]], np.float32)
    assert calibration.report(-energies, np.array([1, 0])).accuracy == 1.0
    sure = calibration.report(np.array([[20.0, 0.0]], np.float32), np.array([0]))
    assert sure.nll == pytest.approx(np.log1p(np.exp(-20)), rel=1e-6)  # 2e-9; a float32 softmax gives 0


def test_no_predictions_have_no_accuracy():
    with pytest.raises(ValueError, match="0 predictions"):
        calibration.report(np.zeros((0, 3)), np.zeros(0, int))
