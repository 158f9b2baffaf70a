"""The classifier distance: a Fréchet distance in the features of a small classifier of the data; it is no FID."""

import hashlib
import json
from collections.abc import Callable
from functools import reduce
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ebm_jax.data.memory import Dataset
from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.common import Evidence, Outcome, Value, sha256
from ebm_jax.evaluators.features import noted, require_covariance, require_same_shape
from ebm_jax.metrics import calibration, classifier, features, frechet, manifolds, residual, score
from ebm_jax.metrics.features import FeatureFn
from ebm_jax.metrics.frechet import Gaussian
from ebm_jax.metrics.score import ClassSums
from ebm_jax.pixels import quantised
from ebm_jax.schema import value_of
from ebm_jax.storage import archive, bucket
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config, Folder, Images, Params

NAME = "classifier_distance"
KEPT = 10_000  # of either set, for precision and recall; their time grows with its square


class Network(NamedTuple):
    """A kind of classifier, a value of `eval.classifier_distance.network`."""

    module: ModuleType
    """Has VERSION, apply and train, as `metrics.classifier` does."""
    steps: str
    """The key of its training steps."""
    channels: int | None
    """It takes images of so many channels, and gray ones as equal channels; None: of any number."""


NETWORKS = {
    "plain": Network(classifier, "eval.classifier_distance.steps", None),
    "residual": Network(residual, "eval.classifier_distance.colour_steps", 3),
}
BY_CHANNELS = {1: "plain", 3: "residual"}


class Referee(NamedTuple):
    """A classifier and what it sees in the reference."""

    feature_fn: FeatureFn
    law: Gaussian
    """Of the features of all images of the reference."""
    classes: ClassSums
    """Of the same images."""
    kept: np.ndarray
    """float32 [m, 128]: features of at most KEPT evenly spaced images of the reference."""
    protocol: dict[str, str]


class Seen(NamedTuple):
    """What the referee finds in some images."""

    values: dict[str, Value]
    kept: np.ndarray
    """float32 [m, 128]: features of at most KEPT evenly spaced ones of the images."""
    predicted: np.ndarray
    """int64 [n]: the likeliest class of each image."""


def check(config: Config) -> None:
    """Refuse a distance of too few samples, and more neighbours than there are samples.

    Raises:
      BadInput: there are no more samples than features, or than neighbours.
    """
    number, neighbours = config.eval.num_samples, config.eval.precision_recall.neighbours
    require_enough(NAME, "eval.num_samples", number)
    if neighbours >= min(number, KEPT):
        raise BadInput(
            f"eval.precision_recall.neighbours {neighbours} is too many for {NAME} of {number} samples; use at most "
            f"{min(number, KEPT) - 1}"
        )


def require_enough(metric: str, what: str, count: int) -> None:
    """Refuse too few images for the covariance of the classifier's features.

    Raises:
      BadInput: there are no more images than features.
    """
    require_covariance(metric, what, count, classifier.NUM_FEATURES)


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """How far samples are from the data, in features of a classifier trained here.

    As many unseen images are measured too, for comparison.

    Raises:
      BadInput: as `referee`; there are too few images.
    """
    config, images, found = run.config, quantised(evidence.samples.images), evidence.shared
    unseen, note = evidence.data["eval.split"], evidence.note
    rows = evenly_spaced(len(unseen.images), len(images))
    of_unseen = f"{config.eval.split} images"
    sets = {"samples": (images, evidence.samples.labels), of_unseen: (unseen.images[rows], unseen.labels[rows])}
    values, conditional, by_set = {}, config.model.num_classes > 1, {}
    for name, (of_set, labels) in sets.items():
        seen = see(found, of_set, config.eval.splits, note, name)
        of_name = dict(seen.values)
        if conditional and (labels < config.model.num_classes).all():  # chains of a buffer may be of no class
            of_name["agreement with the asked class"] = agreement(seen, labels)
        note(f"distances of all pairs of features of {name}")
        cover = manifolds.cover(found.kept, seen.kept, neighbours=config.eval.precision_recall.neighbours)
        of_name |= {"precision": Value(cover.precision), "recall": Value(cover.recall)}
        values |= {f"{name} / {column}": value for column, value in of_name.items()}
        by_set[name] = of_name
    said = _verdicts(by_set["samples"], by_set[of_unseen], of_unseen, config.model.num_classes)
    accuracy = (found.feature_fn(unseen.images)[1].argmax(1) == unseen.labels).mean()
    protocol = found.protocol | {
        "classifier": f"{found.protocol['classifier']}; accuracy {accuracy:.4f} on {config.eval.split}",
        "compared": f"{len(images):,} samples, and {len(rows):,} evenly spaced images of {config.eval.split}, each "
        f"with all {found.classes.count:,} images of {config.eval.reference_split}",
        "precision and recall": f"{config.eval.precision_recall.neighbours} neighbours, among "
        f"{min(len(images), KEPT):,} evenly spaced samples and {len(found.kept):,} images of the reference, in the "
        "same features",
    }
    if conditional:
        protocol["agreement with the asked class"] = (
            "share of images that the classifier gives the class that they were made under; for images of "
            f"{config.eval.split} their own class: no model does better than that; binomial standard error"
        )
    return Outcome(values, protocol, {}, said)


def _verdicts(
    samples: dict[str, Value], unseen: dict[str, Value], unseen_name: str, num_classes: int
) -> tuple[str, ...]:
    """What the values of samples say beside those of unseen images."""
    said = [verdicts.distance(samples["classifier distance"], unseen["classifier distance"], unseen_name)]
    asked = "agreement with the asked class"
    if asked in samples and asked in unseen:
        said.append(verdicts.agreement(samples[asked], unseen[asked], num_classes))
    return tuple(said)


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """At most `count` of the rows 0..length-1, from the first to the last."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)


def referee(run: TrainedRun, evidence: Evidence) -> Referee:
    """The classifier of the run's training split, and its view of the reference split; all metrics here use it.

    Raises:
      BadInput: as `trained`; samples differ in shape from the reference; there are too few images.
    """
    config, reference = run.config, evidence.data["eval.reference_split"]
    if evidence.drawn is not None:
        require_same_shape(evidence.drawn.images, reference.images)
    require_enough(NAME, "images of the reference", len(reference.images))
    params, words = trained(run, evidence)
    feature_fn = _feature_fn(run, params, reference.num_classes)
    fn = noted(evidence.note, "the reference", feature_fn, len(reference.images))
    found = features.summarise(fn, reference.images, num_groups=1, keep=KEPT)
    protocol = {
        "features": f"{classifier.NUM_FEATURES} of the project's own classifier, no Inception: a classifier distance "
        "is comparable with others of the same classifier only, and never with an FID",
        "classifier": words,
        "images": "levels floor(256 x) of samples x, as training's data have",
        "score": "exp of the mean KL(p(y|x) || p(y)), from 1 to the number of classes",
        "class coverage": "Σ over classes of the smaller of its shares among samples and reference, as the classifier "
        "tells them; 1: all classes as often as in the reference",
        "standard error": f"distance: jackknife over {config.eval.splits} groups of consecutive images; score: over "
        "those groups; of their sampling, not of the reference's, nor of training",
    }
    return Referee(feature_fn, frechet.gaussian(found.moments[0]), found.classes[0], found.kept, protocol)


def _feature_fn(run: TrainedRun, params: Params, num_classes: int) -> FeatureFn:
    network = _network(run.config)

    def apply(params: Params, images: Images) -> features.Outputs:
        return network.module.apply(num_classes, params, _in_channels(network, images))

    return features.make_feature_fn(apply, params, run.mesh, run.config.eval.batch_size)


def kept(run: TrainedRun) -> Callable[[np.ndarray], np.ndarray] | None:
    """The classifier that an evaluation of this run has trained: float32 [n, h, w, c] in [0, 1] -> classes int64 [n].

    None: there is none; this trains nothing.
    """
    if not (_folder(run) / "classifier").exists():
        return None
    dataset = run.data(run.config.data.split)
    path, _ = _file(run, dataset)
    if dataset.labels.ndim != 1 or not path.exists():
        return None
    feature_fn = _feature_fn(run, _read(path)[0], dataset.num_classes)
    return lambda images: feature_fn(quantised(images))[1].argmax(1)


def see(found: Referee, images: np.ndarray, num_groups: int, note: Note, what: str) -> Seen:
    """Distance, score and class coverage of images uint8 [n, h, w, c], with errors over `num_groups` groups.

    Args:
      what: the images in words, for the progress and for messages.

    Raises:
      BadInput: there are too few images, or a feature is not finite.
    """
    require_enough(NAME, f"images of {what}", len(images))
    predicted: list[np.ndarray] = []

    def recording(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = found.feature_fn(block)
        predicted.append(outputs[1].argmax(1))
        return outputs

    summary = features.summarise(noted(note, what, recording, len(images)), images, num_groups=num_groups, keep=KEPT)
    classes = reduce(score.merge, summary.classes)
    values = {
        "classifier distance": Value(*frechet.jackknifed_distance(summary.moments, found.law)),
        "classifier score": Value(*score.score_over_splits(summary.classes)),
        "class coverage": Value(score.class_overlap(classes, found.classes)),
    }
    return Seen(values, summary.kept, np.concatenate(predicted))


def agreement(seen: Seen, labels: np.ndarray) -> Value:
    """The share of images whose likeliest class is their label, int [n], with its binomial standard error."""
    right = seen.predicted == labels
    return Value(float(right.mean()), calibration.share_error(right))


def _network(config: Config) -> Network:
    name = config.eval.classifier_distance.network
    return NETWORKS[BY_CHANNELS[config.data.shape[-1]] if name == "by_channels" else name]


def _in_channels(network: Network, images: Any) -> Any:
    """The images [n, h, w, c] as the network takes them, gray ones [n, h, w, 1] repeated over its channels."""
    gray = images.shape[-1] == 1 and network.channels
    return images.repeat(network.channels, -1) if gray else images


def trained(run: TrainedRun, evidence: Evidence) -> tuple[Params, str]:
    """The classifier of the run's training split, kept for later evaluations, and its description.

    Raises:
      BadInput: the data have no classes; the kept classifier is damaged.
    """
    config, dataset = run.config, evidence.data["data.split"]
    require_classes(NAME, config, dataset.num_classes, soft=dataset.labels.ndim != 1)
    network, seed = _network(config), config.eval.classifier_distance.seed
    steps = value_of(config, network.steps)
    path, recipe = _file(run, dataset)
    if not path.exists():
        images = _in_channels(network, dataset.images)
        params = network.module.train(
            seed,
            images,
            dataset.labels,
            num_classes=dataset.num_classes,
            num_steps=steps,
            note=lambda done: evidence.note(f"training the classifier, {done:,} of {steps:,} steps"),
        )
        archive.write(path, {key: np.asarray(leaf) for key, leaf in _flat(params).items()}, recipe)
    params, digest = _read(path)
    words = (
        f"trained for {steps} steps from seed {seed} on {config.data.name} {config.data.split}, {path.name}, SHA-256 "
        f"{digest}"
    )
    return params, words


def _folder(run: TrainedRun) -> Folder:
    """Where the classifiers of a run are kept, in their folder classifier/."""
    chosen = run.config.eval.classifier_distance.dir
    return bucket.folder_of(chosen, "eval.classifier_distance.dir") if chosen else run.folder


def _file(run: TrainedRun, dataset: Dataset) -> tuple[Folder, dict[str, str]]:
    """The file of the classifier of this training split, and all that it depends on."""
    config, network = run.config, _network(run.config)
    recipe = {
        "classifier": network.module.VERSION,
        "images": sha256(dataset.images),
        "labels": sha256(dataset.labels),
        "classes": str(dataset.num_classes),
        "steps": str(value_of(config, network.steps)),
        "seed": str(config.eval.classifier_distance.seed),
    }
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    return _folder(run) / "classifier" / f"{name}.npz", recipe


def _read(path: Folder) -> tuple[Params, str]:
    """The parameters of a kept classifier, and the file's SHA-256."""
    saved = archive.read(path, named=False)
    arrays = {key: jnp.asarray(leaf) for key, leaf in saved.arrays.items()}
    return traverse_util.unflatten_dict(arrays, sep="/"), saved.digest


def _flat(params: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def require_classes(metric: str, config: Config, num_classes: int, *, soft: bool) -> None:
    """Refuse data that no classifier can be trained on.

    Args:
      metric: named in the message.
      num_classes: of the data.
      soft: whether their labels are vectors.

    Raises:
      BadInput: the data have no classes.
    """
    if soft or num_classes < 2:
        raise BadInput(
            f"{metric} needs images of classes, and those of {config.data.name} have "
            f"{'vectors' if soft else 'none'}; leave it out of eval.metrics, and use eval.during=0"
        )
