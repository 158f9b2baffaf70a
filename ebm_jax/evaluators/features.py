"""FID, Inception Score, KID, precision and recall, density and coverage: one pass of the Inception over each set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ebm_jax.evaluators.common import SAMPLES, Evidence, Needs, Outcome, Value, described
from ebm_jax.metrics import features, frechet, inception, kernel_distance, manifolds, score
from ebm_jax.metrics.features import FeatureFn, Summary
from ebm_jax.metrics.moments import Moments
from ebm_jax.paths import expanded
from ebm_jax.pixels import quantised
from ebm_jax.storage import archive, weights
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config

WEIGHTS = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
KID, SEED = 1, 2  # streams beside eval.seed


class Compared(NamedTuple):
    """The samples and the reference, seen through the Inception."""

    samples: Summary
    reference: Moments
    reference_kept: np.ndarray
    """float32 [m, 2048]."""
    protocol: dict[str, str]


def require_weights(metric: str, config: Config) -> None:
    """Refuse a metric on Inception features without the weights, or with the wrong weights.

    Raises:
      BadInput: with the way to get them and a metric that needs none; or with both hashes.
    """
    if not config.eval.inception.weights:
        raise BadInput(
            f"{metric} needs the FID's Inception weights: download {WEIGHTS} (96 MB) and name the file by "
            "--config.eval.inception.weights=FILE; or use eval.metrics=classifier_distance, which needs none and is "
            "no FID"
        )
    weights.digest_of(_weights_file(config), config.eval.inception.sha256)


def _weights_file(config: Config) -> Path:
    return expanded(config.eval.inception.weights, "eval.inception.weights")


def _reference_file(config: Config) -> Path:
    return expanded(config.eval.inception.reference, "eval.inception.reference")


def check_fid(config: Config) -> None:
    """Refuse an FID of too few samples.

    Raises:
      BadInput: as `require_weights`; or there are no more samples than features.
    """
    require_weights("fid", config)
    require_covariance("fid", "eval.num_samples", config.eval.num_samples, inception.NUM_FEATURES)


def require_covariance(metric: str, what: str, count: int, num_features: int) -> None:
    """Refuse too few samples for a covariance of full rank; their number would dominate the distance.

    Raises:
      BadInput: there are at most as many samples as features.
    """
    if count <= num_features:
        raise BadInput(
            f"{what} {count:,} are too few for {metric}, whose covariance of {num_features:,} features needs "
            f"{num_features + 1:,}; use at least those"
        )


def check_inception_score(config: Config) -> None:
    """Refuse an Inception Score of fewer samples than splits.

    Raises:
      BadInput: as `require_weights`; or with the number and the limit.
    """
    require_weights("inception_score", config)
    _require_fewer(config, "eval.splits", config.eval.splits, config.eval.num_samples + 1)


def check_kid(config: Config) -> None:
    """Refuse KID subsets that are larger than the set they are drawn from.

    Raises:
      BadInput: as `require_weights`; or with the size and the limit.
    """
    require_weights("kid", config)
    _require_fewer(config, "eval.kid.subset_size", config.eval.kid.subset_size, _kept(config) + 1)


def check_precision_recall(config: Config) -> None:
    """Refuse more neighbours than there are samples.

    Raises:
      BadInput: as `require_weights`; or with the number and the limit.
    """
    require_weights("precision_recall", config)
    _require_fewer(config, "eval.precision_recall.neighbours", config.eval.precision_recall.neighbours, _kept(config))


def check_density_coverage(config: Config) -> None:
    """Refuse more neighbours than there are samples.

    Raises:
      BadInput: as `require_weights`; or with the number and the limit.
    """
    require_weights("density_coverage", config)
    _require_fewer(config, "eval.density_coverage.neighbours", config.eval.density_coverage.neighbours, _kept(config))


def _kept(config: Config) -> int:
    return min(config.eval.num_samples, config.eval.inception.kept_features)


def _require_fewer(config: Config, key: str, value: int, limit: int) -> None:
    if value >= limit:
        raise BadInput(
            f"{key} {value} is too many for eval.num_samples {config.eval.num_samples} and "
            f"eval.inception.kept_features {config.eval.inception.kept_features}; use at most {limit - 1}"
        )


def needs(config: Config) -> Needs:
    """Samples, and the reference split unless a file has its statistics."""
    is_saved = config.eval.inception.reference and _reference_file(config).exists()
    return (SAMPLES,) if is_saved else (SAMPLES, "eval.reference_split")


def fid(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Fréchet Inception Distance of the samples from the data."""
    compared: Compared = evidence.shared
    require_covariance("fid", "images of the reference", compared.reference.count, inception.NUM_FEATURES)
    value = frechet.jackknifed_distance(compared.samples.moments, frechet.gaussian(compared.reference))
    return Outcome({"FID": Value(*value)}, compared.protocol | {"standard error": _jackknife(run.config)}, {})


def inception_score(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Inception Score of the samples: sure of one class each, and of many in all."""
    compared: Compared = evidence.shared
    error = (
        f"the mean of {run.config.eval.splits} splits of consecutive samples, and the standard error of that mean; "
        "classes by the logits without their bias"
    )
    value = Value(*score.score_over_splits(compared.samples.classes))
    return Outcome({"Inception Score": value}, compared.protocol | {"standard error": error}, {})


def kid(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Kernel Inception Distance of the samples from the data; unbiased."""
    compared: Compared = evidence.shared
    config = run.config.eval
    value = kernel_distance.kernel_distance(
        np.random.default_rng([config.seed, SEED, KID]),
        compared.samples.kept,
        compared.reference_kept,
        num_subsets=config.kid.subsets,
        subset_size=config.kid.subset_size,
    )
    protocol = {
        "kernel": "(x·y / 2048 + 1)³, unbiased estimate of MMD²; often published times 1,000",
        "standard error": f"over {config.kid.subsets} subsets of {config.kid.subset_size:,} of {_of_either(compared)}",
    }
    return Outcome({"KID": Value(*value)}, compared.protocol | protocol, {})


def precision_recall(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Improved precision and recall: samples that look real, real images covered."""
    found, protocol = _cover(evidence, run.config.eval.precision_recall.neighbours)
    return Outcome({"precision": Value(found.precision), "recall": Value(found.recall)}, protocol, {})


def density_coverage(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Density and coverage of the samples around the data; outliers weigh less."""
    found, protocol = _cover(evidence, run.config.eval.density_coverage.neighbours)
    return Outcome({"density": Value(found.density), "coverage": Value(found.coverage)}, protocol, {})


def _cover(evidence: Evidence, neighbours: int) -> tuple[manifolds.Cover, dict[str, str]]:
    compared: Compared = evidence.shared
    evidence.note("distances of all pairs of features")
    found = manifolds.cover(compared.reference_kept, compared.samples.kept, neighbours=neighbours)
    return found, compared.protocol | {"neighbours": f"{neighbours}, among {_of_either(compared)}"}


def _of_either(compared: Compared) -> str:
    return f"{len(compared.samples.kept):,} evenly spaced samples and {len(compared.reference_kept):,} of the reference"


def _jackknife(config: Config) -> str:
    return (
        f"jackknife over {config.eval.splits} groups of consecutive samples: of their sampling, not of the "
        "reference's, nor of training"
    )


def require_same_shape(samples: np.ndarray, reference: np.ndarray) -> None:
    """Refuse to compare images [n, h, w, c] and [m, h, w, c] of different shapes; networks resize these differently.

    Raises:
      BadInput: with both shapes.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise BadInput(
            f"samples of {shape_in_words(samples)} cannot be compared with images of {shape_in_words(reference)}; "
            "prepare both in one data.shape"
        )


def shape_in_words(images: np.ndarray) -> str:
    """The size of one image of [n, h, w, c], in words."""
    return "x".join(map(str, images.shape[1:]))


def compare(run: TrainedRun, evidence: Evidence) -> Compared:
    """Pass the samples and the reference through the Inception; all metrics here use this measurement.

    Raises:
      BadInput: the weights cannot be read; the sets differ in shape; the saved reference does not fit.
    """
    config, images = run.config.eval, evidence.samples.images
    if "eval.reference_split" in evidence.data:
        require_same_shape(images, evidence.data["eval.reference_split"].images)
    found = weights.read(_weights_file(run.config), config.inception.sha256)
    params = inception.params_of(found.arrays)
    apply = inception.Inception().apply
    feature_fn = features.make_feature_fn(
        lambda params, images: apply({"params": params}, images),  # pyright: ignore[reportArgumentType, reportReturnType]
        params,
        run.mesh,
        config.inception.batch_size,
    )
    reference, kept, words = _reference(run, evidence, feature_fn, found.digest)
    samples = features.summarise(
        noted(evidence.note, "samples", feature_fn, len(images)),
        quantised(images),
        num_groups=config.splits,
        keep=config.inception.kept_features,
    )
    protocol = {
        "feature weights": f"{Path(config.inception.weights).name}, SHA-256 {found.digest}",
        "images": f"levels floor(256 x) of samples x, as training's data have, {inception.CONVENTION}",
        "reference": words,
    }
    return Compared(samples, reference, kept, protocol)


def noted(note: Note, what: str, feature_fn: FeatureFn, total: int) -> FeatureFn:
    """`feature_fn`, which also notes how many of `total` images it has seen."""
    done = 0

    def fn(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal done
        note(f"features of {what}, {done:,} of {total:,}")
        done += len(images)
        return feature_fn(images)

    return fn


def _reference(
    run: TrainedRun, evidence: Evidence, feature_fn: FeatureFn, digest: str
) -> tuple[Moments, np.ndarray, str]:
    """Moments and kept features of the reference split, and their description: read from the file, or made."""
    config = run.config
    wanted = {
        "set": f"{config.data.name} {config.eval.reference_split}",
        "shape": shape_in_words(evidence.samples.images),
        "feature weights": digest,
        "images": inception.CONVENTION,
    }
    path = _reference_file(config)
    if config.eval.inception.reference and path.exists():
        return _saved_reference(path, wanted)
    images = evidence.data["eval.reference_split"].images
    fn = noted(evidence.note, "the reference", feature_fn, len(images))
    made = features.summarise(fn, images, num_groups=1, keep=config.eval.inception.kept_features)
    (found,) = made.moments
    words = described(config, config.eval.reference_split, images)
    if config.eval.inception.reference:
        arrays = {"count": np.array(found.count), "mean": found.mean, "scatter": found.scatter, "kept": made.kept}
        written = archive.write(path, arrays, wanted | {"images of the set": words})
        words += f"; saved as {path.name}, SHA-256 {written}"
    return found, made.kept, words


def _saved_reference(path: Path, wanted: dict[str, str]) -> tuple[Moments, np.ndarray, str]:
    saved = archive.read(path)
    for name, value in wanted.items():
        found = saved.description.get(name, "absent")
        if found != value:
            raise BadInput(
                f"eval.inception.reference {path} has other statistics: {name} is {found} there and {value} here; give "
                "another path, and they are made"
            )
    arrays = saved.arrays
    found = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
    words = saved.description["images of the set"]
    return found, arrays["kept"], f"{words}; read from {path.name}, SHA-256 {saved.digest}"
