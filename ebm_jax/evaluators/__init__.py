"""What `--mode=evaluate` can measure of a trained run, one function a metric."""

from collections.abc import Callable

from ebm_jax.evaluators import chains, classifier, classify, features, likelihood, memorisation, ood
from ebm_jax.evaluators.common import Evaluator
from ebm_jax.types import Config

EVALUATORS: dict[str, Evaluator] = {
    "ood": ood.measure,
    "ais": likelihood.measure,
    "chains": chains.measure,
    "memorisation": memorisation.measure,
    "fid": features.fid,
    "inception_score": features.inception_score,
    "kid": features.kid,
    "precision_recall": features.precision_recall,
    "density_coverage": features.density_coverage,
    "classifier_distance": classifier.classifier_distance,
    "classification": classify.classification,
    "robustness": classify.robustness_to_attacks,
}
"""By the metric's name in `eval.metrics`."""
CHECKS: dict[str, Callable[[Config], None]] = {
    "ood": ood.check,
    "ais": likelihood.check,
    "fid": features.check_fid,
    "inception_score": features.check_inception_score,
    "kid": features.check_kid,
    "precision_recall": features.check_precision_recall,
    "density_coverage": features.check_density_coverage,
    "classifier_distance": classifier.check,
    "classification": classify.check,
    "robustness": classify.check_attacks,
}
"""What refuses, before anything is measured, a config that a metric cannot be measured with."""
