"""The classifier distance: a Fréchet distance in the features of a small classifier of the data; it is no FID."""

import hashlib
import json
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ebm_jax.data.memory import Dataset
from ebm_jax.evaluators.common import Evidence, Outcome, Value, sha256
from ebm_jax.evaluators.features import noted, require_covariance, require_same_shape
from ebm_jax.metrics import classifier, features, frechet, score
from ebm_jax.metrics.features import Summary
from ebm_jax.pixels import quantised
from ebm_jax.storage import archive, bucket
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, Params


def check(config: Config) -> None:
    """Refuse a distance of too few samples.

    Raises:
      BadInput: there are no more samples than features.
    """
    require_covariance("classifier_distance", "eval.num_samples", config.eval.num_samples, classifier.NUM_FEATURES)


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Metric `classifier_distance`: distance, score and class coverage of samples and of as many unseen images.

    Raises:
      BadInput: the data have no classes; there are too few images; the sets differ in shape.
    """
    config, images = run.config, quantised(evidence.samples.images)
    reference, unseen = evidence.data["eval.reference_split"], evidence.data["eval.split"]
    require_same_shape(images, reference.images)
    params, words = trained(run, evidence)
    feature_fn = features.make_feature_fn(
        partial(classifier.apply, reference.num_classes), params, run.mesh, config.eval.batch_size
    )
    rows = np.linspace(0, len(unseen.images) - 1, min(len(images), len(unseen.images))).round().astype(np.int64)

    def summary(what: str, of: np.ndarray, num_groups: int) -> Summary:
        require_covariance("classifier_distance", f"images of {what}", len(of), classifier.NUM_FEATURES)
        fn = noted(evidence.note, what, feature_fn, len(of))
        return features.summarise(fn, of, num_groups=num_groups, keep=0)

    of_reference = summary("the reference", reference.images, 1)
    of_samples = summary("samples", images, config.eval.splits)
    of_unseen = summary("unseen images", unseen.images[rows], config.eval.splits)
    law, classes = frechet.gaussian(of_reference.moments[0]), of_reference.classes[0]
    values = {
        f"{name} / {column}": value
        for name, found in (("samples", of_samples), (f"{config.eval.split} images", of_unseen))
        for column, value in {
            "classifier distance": Value(*frechet.jackknifed_distance(found.moments, law)),
            "classifier score": Value(*score.score_over_splits(found.classes)),
            "class coverage": Value(score.class_overlap(reduce(score.merge, found.classes), classes)),
        }.items()
    }
    accuracy = (feature_fn(unseen.images)[1].argmax(1) == unseen.labels).mean()
    protocol = {
        "features": f"{classifier.NUM_FEATURES} of the project's own classifier, no Inception: a classifier distance "
        "is comparable with others of the same classifier only, and never with an FID",
        "classifier": f"{words}; accuracy {accuracy:.4f} on {config.eval.split}",
        "images": "levels floor(256 x) of samples x, as training's data have",
        "compared": f"{len(images):,} samples, and {len(rows):,} evenly spaced images of {config.eval.split}, each "
        f"with all {len(reference.images):,} images of {config.eval.reference_split}",
        "score": "exp of the mean KL(p(y|x) || p(y)), from 1 to the number of classes",
        "class coverage": "Σ over classes of the smaller of its shares among samples and reference, as the classifier "
        "tells them; 1: all classes as often as in the reference",
        "standard error": f"distance: jackknife over {config.eval.splits} groups of consecutive images; score: over "
        "those groups; of their sampling, not of the reference's, nor of training",
    }
    return Outcome(values, protocol, {})


def trained(run: TrainedRun, evidence: Evidence) -> tuple[Params, str]:
    """The classifier of the run's training split, kept for later evaluations, and its description.

    Raises:
      BadInput: the data have no classes; the kept classifier is damaged.
    """
    config, dataset = run.config, evidence.data["data.split"]
    _require_classes(config, dataset)
    recipe = {
        "classifier": classifier.VERSION,
        "images": sha256(dataset.images),
        "labels": sha256(dataset.labels),
        "classes": str(dataset.num_classes),
        "steps": str(config.eval.classifier_distance.steps),
        "seed": str(config.eval.classifier_distance.seed),
    }
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    kept = config.eval.classifier_distance.dir
    folder = bucket.folder_of(kept, "eval.classifier_distance.dir") if kept else run.folder
    path = folder / "classifier" / f"{name}.npz"
    if not path.exists():
        evidence.note(f"training the classifier, {config.eval.classifier_distance.steps:,} steps")
        params = classifier.train(
            config.eval.classifier_distance.seed,
            dataset.images,
            dataset.labels,
            num_classes=dataset.num_classes,
            num_steps=config.eval.classifier_distance.steps,
        )
        archive.write(path, {key: np.asarray(leaf) for key, leaf in _flat(params).items()}, recipe)
    saved = archive.read(path, named=False)
    params = traverse_util.unflatten_dict({key: jnp.asarray(leaf) for key, leaf in saved.arrays.items()}, sep="/")
    words = (
        f"trained for {recipe['steps']} steps from seed {recipe['seed']} on {config.data.name} {config.data.split}, "
        f"{path.name}, SHA-256 {saved.digest}"
    )
    return params, words


def _flat(params: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def _require_classes(config: Config, dataset: Dataset) -> None:
    if dataset.labels.ndim != 1 or dataset.num_classes < 2:
        raise BadInput(
            f"classifier_distance needs images of classes, and those of {config.data.name} have "
            f"{'vectors' if dataset.labels.ndim != 1 else 'none'}; leave it out of eval.metrics"
        )
