"""The metrics of `--mode=evaluate`, one module for each kind."""

import jax.numpy as jnp

from ebm_jax import registry, trained
from ebm_jax.evaluators import (
    chains,
    classification,
    classifier,
    drift,
    features,
    likelihood,
    memorisation,
    ood,
    robustness,
)
from ebm_jax.evaluators.common import SAMPLES, Evaluator, unchecked
from ebm_jax.labels import label_shape, sample_labels
from ebm_jax.schema import KEYS
from ebm_jax.types import BadInput, Config

SPLIT, REFERENCE, TRAINING = "eval.split", "eval.reference_split", "data.split"
INCEPTION = features.needs, features.compare
REFEREE = (SAMPLES, SPLIT, REFERENCE, TRAINING), classifier.referee
EVALUATORS: dict[str, Evaluator] = {
    "ood": Evaluator(ood.check, ood.measure, (SPLIT, REFERENCE)),
    "ais": Evaluator(likelihood.check, likelihood.measure, (SAMPLES, SPLIT)),
    "chains": Evaluator(unchecked, chains.measure, (SPLIT, REFERENCE)),
    "memorisation": Evaluator(unchecked, memorisation.measure, (SAMPLES, SPLIT, REFERENCE)),
    "fid": Evaluator(features.check_fid, features.fid, *INCEPTION),
    "inception_score": Evaluator(features.check_inception_score, features.inception_score, *INCEPTION),
    "kid": Evaluator(features.check_kid, features.kid, *INCEPTION),
    "precision_recall": Evaluator(features.check_precision_recall, features.precision_recall, *INCEPTION),
    "density_coverage": Evaluator(features.check_density_coverage, features.density_coverage, *INCEPTION),
    "classifier_distance": Evaluator(classifier.check, classifier.measure, *REFEREE),
    "drift": Evaluator(drift.check, drift.measure, *REFEREE),
    "classification": Evaluator(classification.check, classification.measure, (SPLIT, REFERENCE)),
    "robustness": Evaluator(robustness.check, robustness.measure, (SPLIT,)),
}
"""By the metric's name in `eval.metrics`; `package.module:Name` there names the user's own metric."""


def evaluators_of(config: Config) -> dict[str, Evaluator]:
    """The metrics of `eval.metrics` by their names, each once.

    Raises:
      BadInput: a metric is unknown, there is none, or the user's own object is no Evaluator.
    """
    names = list(dict.fromkeys(name.strip() for name in config.eval.metrics.split(",") if name.strip()))
    if not names:
        raise BadInput(f"eval.metrics '{config.eval.metrics}' names none; use some of {', '.join(EVALUATORS)}")
    return {name: _evaluator(name) for name in names}


def _evaluator(name: str) -> Evaluator:
    found = registry.named("eval.metrics", name, EVALUATORS)
    if not isinstance(found, Evaluator):
        raise BadInput(
            f"eval.metrics '{name}' is {type(found).__name__}; give an ebm_jax.evaluators.common.Evaluator(check, "
            "measure, needs)"
        )
    return found


def check(config: Config, num_devices: int) -> None:
    """Refuse a config that evaluation cannot work with on so many devices, beyond the refusals of `checks.check`.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """
    if config.data.source == "density":
        raise BadInput(
            f"--mode=evaluate needs images, and {config.data.name} is a 2-D density; its exact divergence is in the "
            "run's evaluation.jsonl"
        )
    if config.eval.samples == "buffer" and config.sample.buffer_capacity:
        raise BadInput(
            "eval.samples buffer judges the training buffer, and sample.buffer_capacity "
            f"{config.sample.buffer_capacity} asks for a sampling buffer; use sample.buffer_capacity=0, or "
            "eval.samples=fresh"
        )
    trained.check_sampling_buffer(config, "eval", "num_samples", num_devices)
    chains_kept = config.buffer.capacity * config.train.num_models
    if config.eval.samples == "buffer" and config.eval.num_samples > chains_kept:
        raise BadInput(
            f"eval.num_samples {config.eval.num_samples} is more than the {chains_kept} chains of the training buffer; "
            f"use at most {chains_kept}, or eval.samples=fresh"
        )
    sample_labels(config, jnp.zeros(1, jnp.int32))


def check_metrics(config: Config) -> None:
    """Refuse a config that a metric of `eval.metrics` cannot work with, before anything is measured.

    Raises:
      BadInput: as `evaluators_of` and each metric's check; or a metric needs what is neither samples nor a split.
    """
    for name, evaluator in evaluators_of(config).items():
        evaluator.check(config)
        for need in evaluator.needed(config):
            if need != SAMPLES and not (need.endswith("split") and need in KEYS):
                raise BadInput(
                    f"eval.metrics {name} needs '{need}', which is neither samples nor the key of a split; use some of "
                    f"{', '.join([SAMPLES, SPLIT, REFERENCE, TRAINING])}"
                )


def check_data(config: Config, num_classes: int) -> None:
    """Refuse data of so many classes that a metric of `eval.metrics` cannot judge, before anything is sampled.

    Raises:
      BadInput: a metric needs a classifier of the data, and they have no classes.
    """
    for name, evaluator in evaluators_of(config).items():
        if evaluator.shared is classifier.referee:
            classifier.require_classes(name, config, num_classes, soft=label_shape(config) is not None)
