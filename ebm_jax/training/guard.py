"""Judges from each step's metrics whether a run is healthy; the verb decides what to do about a run that is not.

These are pure functions of metrics that are equal on all processes, so all processes decide alike.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ebm_jax.methods.method import Limits, Range

Metrics = Mapping[str, np.ndarray]


class Diverged(RuntimeError):
    """The run is ill and no rescue is left; the message is one line."""


class Ill(Exception):
    """The run is ill; the message says in words what the guard saw, and at which step."""

    def __init__(self, step: int, illness: str):
        super().__init__(f"step {step}: {illness}")
        self.step = step


class Health(NamedTuple):
    """What the judge remembers; entries of `before` and `trends` are [models], by the metric's name."""

    ill_steps: int
    """Steps in a row, up to now, outside the healthy region."""
    symptom: str
    """What the last of these steps showed, in words; empty in a healthy run."""
    before: Metrics
    """The values, one step earlier, of the metrics that have a trend."""
    trends: Metrics
    """The change of each a step, averaged over about as many steps as its range looks ahead."""


HEALTHY = Health(0, "", {}, {})
"""A run begins with this health, and again at each checkpoint, so that a resumed run judges as an unbroken one."""


def judge(health: Health, metrics: Metrics, limits: Limits) -> tuple[Health, str | None]:
    """The health after one step's metrics, scalars or [models], and the illness in words if there is one.

    A value that is not finite makes the run ill at once. Leaving the healthy region makes it ill after `patience`
    steps.
    """
    metrics = {name: np.atleast_1d(value).astype(np.float64) for name, value in metrics.items()}
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            return health, _words(name, value, ~np.isfinite(value), "which is not finite")
    if (metrics["non_finite"] > 0).any():
        seen = metrics["non_finite"]
        return health, _words("non_finite", seen, seen > 0, "the number of values that are not finite")
    ranges = [one for one in limits.ranges if all((metrics[name] == value).all() for name, value in one.given)]
    before = {one.metric: metrics[one.metric] for one in ranges if one.ahead}
    trends = {one.metric: _trend(health, metrics[one.metric], one) for one in ranges if one.ahead}
    symptom = next((found for one in ranges if (found := _outside(metrics, trends, one))), "")
    health = Health(health.ill_steps + 1 if symptom else 0, symptom, before, trends)
    if health.ill_steps < limits.patience:
        return health, None
    in_a_row = f", {health.ill_steps} steps in a row outside the healthy region" if health.ill_steps > 1 else ""
    return health, symptom + in_a_row


def _trend(health: Health, value: np.ndarray, limit: Range) -> np.ndarray:
    """The mean change of a metric in a step; 0 at the first step that has it."""
    if limit.metric not in health.before:
        return np.zeros_like(value)
    change, trend = value - health.before[limit.metric], health.trends[limit.metric]
    return trend + (change - trend) / limit.ahead


def _outside(metrics: Metrics, trends: Metrics, limit: Range) -> str:
    """How a metric, or the value that its trend leads to, leaves its range, in words; empty if it is inside."""
    name, value = limit.metric, metrics[limit.metric]
    lowest = highest = value
    if limit.ahead:
        name = f"{name} in {limit.ahead} steps"
        lowest = value + limit.ahead * np.minimum(trends[limit.metric], 0.0)
        highest = value + limit.ahead * np.maximum(trends[limit.metric], 0.0)
    outside = (lowest < limit.least) | (highest > limit.most)
    if not outside.any():
        return ""
    shown = np.where(lowest < limit.least, lowest, highest)
    return _words(name, shown, outside, f"healthy from {limit.least:g} to {limit.most:g}")


def _words(name: str, value: np.ndarray, where: np.ndarray, what: str) -> str:
    """The first ill entry of a metric in words, with its model if there are several."""
    first = int(np.argmax(where))
    model = f"model {first}: " if len(value) > 1 else ""
    return f"{model}{name} is {value[first]:.6g} ({what})"
