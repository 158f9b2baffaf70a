"""Judges from each step's metrics whether a run is healthy; the verb decides what to do about a run that is not.

These are pure functions of metrics that are equal on all processes, so all processes decide alike.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ebm_jax.given import Diverged as Diverged
from ebm_jax.methods.method import Limits, Range

Metrics = Mapping[str, np.ndarray]


class Symptom(NamedTuple):
    """How a metric left its range in one step."""

    metric: str
    words: str
    times: float
    """How many times as far from 0 as its limit; 1 if the limit is 0 or a least size, inf if it is not finite."""


class Ill(Exception):
    """The run is ill; the message says in words what the guard saw, and at which step."""

    def __init__(self, step: int, illness: str, untrained: Symptom | None = None):
        """Say what the guard saw.

        Args:
          untrained: the step's symptom if every step since the run's first one had one, so learning cannot have caused
            it.
        """
        super().__init__(f"step {step}: {illness}")
        self.step = step
        self.untrained = untrained


class Health(NamedTuple):
    """What the judge remembers; entries of `before` and `trends` are [models], by the metric's name."""

    steps: int
    """Steps judged so far."""
    excursions: tuple[int, ...]
    """The latest of them that were outside the healthy region, the first step being 1."""
    symptom: Symptom | None
    """What the last step showed; None if it was inside."""
    before: Metrics
    """The values, one step earlier, of the metrics that have a trend."""
    trends: Metrics
    """The change of each a step, averaged over about as many steps as its range looks ahead."""


HEALTHY = Health(0, (), None, {}, {})
"""A run begins with this health, and again at each checkpoint, so that a resumed run judges as an unbroken one."""


def make_judge(limits: Limits, untrained_energy: Callable[[], float]) -> Callable:
    """`judge` within limits that know the untrained network.

    Most runs never leave the plain limits. So the judge asks for the untrained network's energy only once one does.

    Args:
      untrained_energy: gives the largest |mean U| of the untrained network.
    """
    known = functools.cache(lambda: widened(limits, untrained_energy()))

    def judged(health: Health, metrics: Metrics) -> tuple[Health, str | None]:
        found = judge(health, metrics, limits)
        if found[0].symptom is None or not any(one.of_untrained for one in limits.ranges):
            return found
        return judge(health, metrics, known())

    return judged


def widened(limits: Limits, untrained_energy: float) -> Limits:
    """The limits with every range at least `of_untrained` times as wide, on both sides, as the untrained energy.

    An energy that is not finite widens nothing.
    """
    unit = untrained_energy if math.isfinite(untrained_energy) else 0.0
    ranges = tuple(
        one._replace(least=min(one.least, -one.of_untrained * unit), most=max(one.most, one.of_untrained * unit))
        if one.of_untrained
        else one
        for one in limits.ranges
    )
    return limits._replace(ranges=ranges)


def judge(health: Health, metrics: Metrics, limits: Limits) -> tuple[Health, str | None]:
    """The health after one step's metrics, scalars or [models], and the illness in words if there is one.

    The run is ill at once if a value is not finite, or lies further than `at_once` times its limit. Otherwise it is ill
    once `patience` of the last `window` steps were outside the healthy region.
    """
    metrics = {name: np.atleast_1d(value).astype(np.float64) for name, value in metrics.items()}
    step = health.steps + 1
    if symptom := _not_finite(metrics):
        return health._replace(steps=step, excursions=(*health.excursions, step), symptom=symptom), symptom.words
    ranges = [one for one in limits.ranges if all((metrics[name] == value).all() for name, value in one.given)]
    before = {one.metric: np.clip(metrics[one.metric], *one.followed) for one in ranges if one.ahead}
    trends = {one.metric: _trend(health, before[one.metric], one) for one in ranges if one.ahead}
    symptoms = [found for one in ranges if (found := _outside(metrics, before, trends, one))]
    symptom = max(symptoms, key=lambda found: found.times, default=None)
    window = max(limits.window, limits.patience)
    recent = tuple(one for one in health.excursions if one > step - window)
    health = Health(step, (*recent, step) if symptom else recent, symptom, before, trends)
    if symptom is None:
        return health, None
    if symptom.times > limits.at_once:
        return health, f"{symptom.words}, {symptom.times:.3g} times its limit"
    if len(health.excursions) < limits.patience:
        return health, None
    return health, symptom.words + _how_often(health)


def _not_finite(metrics: Metrics) -> Symptom | None:
    """The first metric that is not finite, or that counts values that are not."""
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            return Symptom(name, _words(name, value, ~np.isfinite(value), "which is not finite"), math.inf)
    if (metrics["non_finite"] > 0).any():
        seen = metrics["non_finite"]
        words = _words("non_finite", seen, seen > 0, "the number of values that are not finite")
        return Symptom("non_finite", words, math.inf)
    return None


def _how_often(health: Health) -> str:
    """How many of the latest steps were outside, in words; empty if it was one."""
    number, since = len(health.excursions), health.steps - health.excursions[0] + 1
    if number == 1:
        return ""
    if number == since:
        return f", {number} steps in a row outside the healthy region"
    return f", {number} of {since} steps outside the healthy region"


def _trend(health: Health, value: np.ndarray, limit: Range) -> np.ndarray:
    """The mean change of a metric in a step; 0 at the first step that has it."""
    if limit.metric not in health.before:
        return np.zeros_like(value)
    change, trend = value - health.before[limit.metric], health.trends[limit.metric]
    return trend + (change - trend) / limit.ahead


def _outside(metrics: Metrics, followed: Metrics, trends: Metrics, limit: Range) -> Symptom | None:
    """How a metric, or the value that its trend leads to, leaves its range; None if it is inside."""
    name, value = limit.metric, metrics[limit.metric]
    lowest = highest = value
    if limit.ahead:
        name, now = f"{name} in {limit.ahead} steps", followed[limit.metric]
        lowest = np.minimum(value, now + limit.ahead * np.minimum(trends[limit.metric], 0.0))
        highest = np.maximum(value, now + limit.ahead * np.maximum(trends[limit.metric], 0.0))
    outside = (lowest < limit.least) | (highest > limit.most)
    if not outside.any():
        return None
    shown = np.where(lowest < limit.least, lowest, highest)
    bound = np.where(lowest < limit.least, limit.least, limit.most)
    times = np.where(
        (bound == 0) | (np.abs(shown) < np.abs(bound)), 1.0, np.abs(shown) / np.where(bound, np.abs(bound), 1)
    )
    worst = outside & (times == times[outside].max())
    words = _words(name, shown, worst, f"healthy from {limit.least:g} to {limit.most:g}")
    return Symptom(limit.metric, words, float(times[outside].max()))


def _words(name: str, value: np.ndarray, where: np.ndarray, what: str) -> str:
    """The first ill entry of a metric in words, with its model if there are several."""
    first = int(np.argmax(where))
    model = f"model {first}: " if len(value) > 1 else ""
    return f"{model}{name} is {value[first]:.6g} ({what})"
