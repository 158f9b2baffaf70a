"""The metrics in features of --mode=evaluate: on equal sets, on shifted ones, saved and refused."""

import hashlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from test_configs import config_of

from ebm_jax.data import memory, sources
from ebm_jax.distributed import parallel
from ebm_jax.evaluate import gathered
from ebm_jax.evaluators import EVALUATORS
from ebm_jax.evaluators.common import Samples, sha256
from ebm_jax.evaluators.features import compare
from ebm_jax.metrics import classifier, inception, moments, residual
from ebm_jax.metrics.frechet import gaussian, jackknifed_distance
from ebm_jax.storage import archive, weights
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput

OF_INCEPTION = ("fid", "inception_score", "kid", "precision_recall", "density_coverage")
TEST = memory.digits("test").images


class SmallInception(nn.Module):
    """Stands for the real network, which takes a second for each image."""

    @nn.compact
    def __call__(self, images):
        features = nn.Dense(16, use_bias=False)(images.reshape(images.shape[0], -1))
        return features, jax.nn.softmax(features[:, :10])


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A user's file of weights for a network of 16 features."""
    kernel = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    monkeypatch.setattr(inception, "NUM_FEATURES", 16)
    monkeypatch.setattr(inception, "Inception", SmallInception)
    monkeypatch.setattr(inception, "params_of", lambda state: {"Dense_0": {"kernel": jnp.asarray(state["kernel"])}})
    np.savez(tmp_path / "weights.npz", kernel=kernel)
    return tmp_path / "weights.npz"


def judged(folder, images=TEST, **changes):
    """An untrained run and what an evaluation of it has made so far: these samples."""
    config = config_of("digits_contrastive").copy_and_resolve_references().unlock()
    config.eval.num_samples, config.eval.inception.sha256 = len(images), ""
    config.eval.kid.subset_size, config.eval.kid.subsets, config.eval.splits = 50, 20, 2
    config = changed(config, **{f"eval__{key}": value for key, value in changes.items()})
    samples = Samples(images.astype(np.float32) / 255, np.zeros(len(images), np.int32), "made up")
    return TrainedRun(config, {}, parallel.device_mesh(), 1, folder, {}), {"samples": samples}


def outcome_of(name, judged):
    of_run, made = judged
    evaluator = EVALUATORS[name]
    return evaluator.measure(of_run, gathered(of_run, evaluator, evaluator.needed(of_run.config), made))


def measured(judged, *names):
    for name in names:
        EVALUATORS[name].check(judged[0].config)
    return {key: value for name in names for key, value in outcome_of(name, judged).values.items()}


def test_a_set_compared_with_itself_and_shifted_by_one_pixel(small, tmp_path):
    options = {"inception__weights": str(small), "reference_split": "test"}
    same = measured(judged(tmp_path, **options), *OF_INCEPTION)
    assert set(same) == {"FID", "Inception Score", "KID", "precision", "recall", "density", "coverage"}
    assert same["FID"].number < 1e-6
    assert abs(same["KID"].number) < 5 * same["KID"].standard_error
    assert [same[name].number for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    shifted = measured(judged(tmp_path, np.roll(TEST, 1, 2), **options), *OF_INCEPTION)
    assert shifted["FID"].number > 5 * shifted["FID"].standard_error
    assert shifted["KID"].number > 10 * shifted["KID"].standard_error
    assert all(shifted[name].number < 1 for name in ("precision", "recall", "coverage"))
    kernel = np.load(small)["kernel"].astype(np.float64)
    of_test, of_shifted = (images.reshape(-1, 64) / 255 @ kernel for images in (TEST, np.roll(TEST, 1, 2)))
    groups = [moments.of(rows) for rows in np.array_split(of_shifted, 2)]  # eval.splits
    expected = jackknifed_distance(groups, gaussian(moments.of(of_test)))
    np.testing.assert_allclose(shifted["FID"], expected, rtol=1e-3)


def test_samples_of_one_class_are_precise_and_recall_little(small, tmp_path):
    zeros = TEST[memory.digits("test").labels == 0]
    found = measured(judged(tmp_path, zeros, inception__weights=str(small), reference_split="test"), "precision_recall")
    assert found["precision"].number == 1
    assert found["recall"].number < 0.5


def test_all_metrics_of_an_evaluation_share_one_pass(small, tmp_path, monkeypatch):
    passes = []
    original = inception.params_of
    monkeypatch.setattr(inception, "params_of", lambda state: passes.append(1) or original(state))
    of_run, made = judged(tmp_path, inception__weights=str(small))
    measured((of_run, made), *OF_INCEPTION)
    assert len(passes) == 1
    assert set(made) == {"samples", ("split", "train"), compare}


def test_a_saved_reference_gives_the_same_numbers_without_its_images(small, tmp_path, monkeypatch):
    path = tmp_path / "statistics" / "digits.npz"
    options = {"inception__weights": str(small), "inception__reference": str(path)}
    plain = measured(judged(tmp_path, inception__weights=str(small)), *OF_INCEPTION)
    made = measured(judged(tmp_path, **options), *OF_INCEPTION)
    assert path.exists()
    again = judged(tmp_path, **options)
    monkeypatch.setattr(sources, "load_dataset", None)  # nothing is read
    outcome = outcome_of("fid", again)
    assert plain == made == measured(again, *OF_INCEPTION)
    assert "read from digits.npz, SHA-256" in outcome.protocol["reference"]
    assert "digits train, 1,438 images" in outcome.protocol["reference"]


@pytest.mark.parametrize("change", ["split", "weights", "shape"])
def test_a_saved_reference_of_something_else_is_refused_in_one_line(change, small, tmp_path):
    options = {"inception__weights": str(small), "inception__reference": str(tmp_path / "saved.npz")}
    measured(judged(tmp_path, **options), "fid")
    images = TEST
    if change == "split":
        options["reference_split"] = "test"
    elif change == "weights":
        np.savez(small, kernel=np.ones((64, 16), np.float32))
    else:
        images = TEST.repeat(2, 1)
    with pytest.raises(
        BadInput, match=r"^eval.inception.reference .*saved.npz has other statistics: .* give another path.*$"
    ):
        measured(judged(tmp_path, images, **options), "fid")


def test_sets_of_different_shapes_are_refused_in_one_line(small, tmp_path):
    larger = judged(tmp_path, TEST.repeat(2, 1), inception__weights=str(small))
    for name in ("fid", "classifier_distance"):
        with pytest.raises(BadInput, match=r"^samples of 16x8x1 cannot be compared with images of 8x8x1; .*$"):
            outcome_of(name, larger)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        (
            "fid",
            {"inception__weights": ""},
            r"^fid needs the FID's Inception weights: download https.*pt_inception.*classifier_distance.*$",
        ),
        ("kid", {"inception__weights": ""}, r"^kid needs the FID's Inception weights.*$"),
        (
            "fid",
            {"num_samples": 16},
            r"^eval.num_samples 16 are too few for fid, whose covariance of 16 features needs 17;.*$",
        ),
        (
            "classifier_distance",
            {"num_samples": 128},
            r"^eval.num_samples 128 are too few for classifier_dist.* 129;.*$",
        ),
        (
            "classifier_distance",
            {"precision_recall__neighbours": 359},
            r"^eval.precision_recall.neighbours 359 .* classifier_distance of 359 samples; use at most 358$",
        ),
        ("inception_score", {"num_samples": 1}, r"^eval.splits 2 is too many.*at most 1$"),
        ("kid", {"kid__subset_size": 360}, r"^eval.kid.subset_size 360 .* use at most 359$"),
        (
            "precision_recall",
            {"inception__kept_features": 3},
            r"^eval.precision_recall.neighbours 3.*at most 2$",
        ),
        ("density_coverage", {"num_samples": 5}, r"^eval.density_coverage.neighbours 5.*at most 4$"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(name, changes, line, small, tmp_path):
    with pytest.raises(BadInput, match=line):
        EVALUATORS[name].check(judged(tmp_path, **{"inception__weights": str(small)} | changes)[0].config)


def test_weights_of_the_wrong_hash_are_refused_and_the_right_one_is_recorded(small, tmp_path):
    wrong, _ = judged(tmp_path, inception__weights=str(small), inception__sha256="6726825d")
    with pytest.raises(BadInput, match=r"^.*weights.npz has the SHA-256 [0-9a-f]{64}, not 6726825d; .*$"):
        EVALUATORS["fid"].check(wrong.config)
    digest = weights.read(small, "").digest
    protocol = outcome_of("fid", judged(tmp_path, inception__weights=str(small), inception__sha256=digest)).protocol
    assert digest in protocol["feature weights"]
    assert "align_corners=False" in protocol["images"]


@pytest.mark.whole
def test_classifier_distance_names_itself_keeps_its_classifier_and_tells_samples_from_data(tmp_path, monkeypatch):
    options = {"classifier_distance__steps": 30}
    outcome = outcome_of("classifier_distance", judged(tmp_path, **options))
    of_data, of_same = (outcome.values[f"{name} / classifier distance"].number for name in ("samples", "test images"))
    assert of_data == pytest.approx(of_same, rel=1e-9), "the samples are the test images"
    assert 0.8 < outcome.values["samples / class coverage"].number <= 1
    words = " ".join([*outcome.values, *outcome.protocol.values()])
    assert "FID" not in words.replace("never with an FID", "")
    assert of_data > 1e-3, "they are compared with the training images"
    (kept,) = (tmp_path / "classifier").iterdir()
    train = memory.digits("train")
    described = archive.read(kept).description
    assert (described["images"], described["labels"]) == (sha256(train.images), sha256(train.labels))
    assert kept.name in outcome.protocol["classifier"]
    monkeypatch.setattr(classifier, "train", None)  # another evaluation does not train
    only_ones = judged(tmp_path, TEST[memory.digits("test").labels == 1].repeat(8, 0), **options)
    ones = outcome_of("classifier_distance", only_ones)
    assert ones.values["samples / classifier distance"].number > 5 * of_data
    assert ones.values["samples / class coverage"].number < 0.3


@pytest.mark.whole
def test_another_recipe_is_another_classifier_and_a_damaged_one_is_refused(tmp_path):
    for seed in (0, 1):
        outcome_of(
            "classifier_distance", judged(tmp_path, classifier_distance__steps=2, classifier_distance__seed=seed)
        )
    kept = sorted((tmp_path / "classifier").iterdir())
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match=r"^.*\.npz .*delete it to have it made anew$"):
        outcome_of("classifier_distance", judged(tmp_path, classifier_distance__steps=2))


def test_classifier_distance_of_images_without_classes_is_refused_in_one_line(tmp_path):
    of_run, made = judged(tmp_path)
    made |= {("split", split): of_run.data(split)._replace(num_classes=1) for split in ("train", "test")}
    with pytest.raises(
        BadInput, match=r"^classifier_distance needs images of classes, and those of digits have none.*$"
    ):
        outcome_of("classifier_distance", (of_run, made))


def in_colour(of_run, made, monkeypatch):
    """The same evaluation of the digits as colour images, with a narrow classifier."""
    monkeypatch.setattr(residual, "WIDTHS", (4, 8, 8))
    images = made["samples"].images.repeat(3, 3)
    data = {("split", split): of_run.data(split) for split in ("train", "test")}
    coloured = {key: of_split._replace(images=of_split.images.repeat(3, 3)) for key, of_split in data.items()}
    config = changed(of_run.config, data__shape=(8, 8, 3))
    return of_run._replace(config=config), {"samples": made["samples"]._replace(images=images)} | coloured


@pytest.mark.whole
def test_channels_choose_the_classifier_and_its_file_is_named_by_its_recipe(tmp_path, monkeypatch):
    options = {"classifier_distance__steps": 2, "classifier_distance__colour_steps": 3}
    train = memory.digits("train")
    for name, version, steps, images in (
        ("gray", "1", 2, train.images),
        ("colour", "residual 1", 3, train.images.repeat(3, 3)),
    ):
        of_run, made = judged(tmp_path / name, **options)
        if name == "colour":
            of_run, made = in_colour(of_run, made, monkeypatch)
        outcome = outcome_of("classifier_distance", (of_run, made))
        recipe = {
            "classifier": version,
            "images": sha256(images),
            "labels": sha256(train.labels),
            "classes": "10",
            "steps": str(steps),
            "seed": "0",
        }
        (kept,) = (tmp_path / name / "classifier").iterdir()
        assert archive.read(kept).description == recipe
        assert kept.stem == hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        assert f"trained for {steps} steps" in outcome.protocol["classifier"]


@pytest.mark.whole
def test_a_second_judge_sees_gray_images_as_the_same_ones_in_three_channels(tmp_path, monkeypatch):
    options = {"classifier_distance__steps": 2, "classifier_distance__colour_steps": 3}
    colour = outcome_of("classifier_distance", in_colour(*judged(tmp_path / "colour", **options), monkeypatch))
    second = judged(tmp_path / "gray", classifier_distance__network="residual", **options)
    assert outcome_of("classifier_distance", second).values == colour.values
    plain = in_colour(*judged(tmp_path / "plain", classifier_distance__network="plain", **options), monkeypatch)
    assert outcome_of("classifier_distance", plain).values != colour.values


@pytest.mark.whole
def test_agreement_is_the_share_of_samples_of_the_class_that_they_were_made_under(tmp_path):
    of_run, made = judged(tmp_path, classifier_distance__steps=2)
    conditional = of_run._replace(config=changed(of_run.config, model__num_classes=10))
    digits = memory.digits("test")
    made["samples"] = made["samples"]._replace(labels=digits.labels)
    right = outcome_of("classifier_distance", (conditional, made)).values
    own = "test images / agreement with the asked class"
    accuracy, error = right["samples / agreement with the asked class"]
    assert (accuracy, error) == tuple(right[own]), "the samples are the test images"
    assert error == pytest.approx((accuracy * (1 - accuracy) / 359) ** 0.5)
    made["samples"] = made["samples"]._replace(labels=(digits.labels + 1) % 10)
    wrong = outcome_of("classifier_distance", (conditional, made)).values
    assert wrong["samples / agreement with the asked class"].number <= 1 - accuracy
    assert wrong[own].number == accuracy
    assert not any("agreement" in name for name in outcome_of("classifier_distance", (of_run, made)).values)


@pytest.mark.whole
def test_precision_and_recall_are_those_of_the_classifiers_features(tmp_path):
    options = {"classifier_distance__steps": 2, "reference_split": "test"}
    same = outcome_of("classifier_distance", judged(tmp_path, **options))
    assert [same.values[f"samples / {name}"].number for name in ("precision", "recall")] == [1, 1]
    assert same.protocol["precision and recall"].startswith(
        "3 neighbours, among 359 evenly spaced samples and 359 images of the reference"
    )
    of_run, made = judged(tmp_path, TEST[memory.digits("test").labels == 0].repeat(5, 0), **options)
    few = outcome_of("classifier_distance", (of_run, made)).values
    assert few["samples / precision"].number == 1
    assert few["samples / recall"].number < 0.5
