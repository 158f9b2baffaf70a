"""What `--mode=evaluate` can measure of a trained run, one function a metric."""

from collections.abc import Callable

from ebm_jax.evaluators import ood
from ebm_jax.evaluators.common import Evaluator
from ebm_jax.types import Config

EVALUATORS: dict[str, Evaluator] = {"ood": ood.measure}
"""By the metric's name in `eval.metrics`."""
CHECKS: dict[str, Callable[[Config], None]] = {"ood": ood.check}
"""What refuses, before anything is measured, a config that a metric cannot be measured with."""
