"""Judges from the metrics of each step whether a run is healthy; what is done about one that is not, the verb decides.

Pure functions of metrics that are equal on all processes, so that all of them decide alike.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

AHEAD = 10
"""Steps over which the gap's trend is averaged, and over which it is followed into the future."""


class Diverged(RuntimeError):
    """The run is ill and no rescue is left; the message is one line."""


class Ill(Exception):
    """The run is ill: what the guard saw, in words, and at which step."""

    def __init__(self, step: int, illness: str):
        super().__init__(f"step {step}: {illness}")
        self.step = step


class Limits(NamedTuple):
    """The healthy region; inf is no limit."""

    energy: float
    """Of |mean U|, of data and of samples."""
    separation: float
    """Of U(x-) - U(x+), means: how far samples may lie above the data."""
    chain_grad: tuple[float, float]
    """Between which the chains' mean |∇U| lies."""
    patience: int
    """Steps in a row outside the region that make a run ill."""


class Health(NamedTuple):
    """What the judge remembers; gap and trend have an entry for each model of the run."""

    ill_steps: int
    """Steps in a row, up to now, outside the healthy region."""
    symptom: str
    """In words, of the last of them; empty in a healthy run."""
    gap: np.ndarray | None
    """U(x+) - U(x-) at the step before; None at the first."""
    trend: np.ndarray
    """The gap's change in a step, averaged over about `AHEAD` steps."""


HEALTHY = Health(0, "", None, np.zeros(1))
"""Where a run begins, and begins again at each checkpoint: a resumed run then judges as one that never stopped."""


def judge(health: Health, metrics: Mapping[str, np.ndarray], limits: Limits) -> tuple[Health, str | None]:
    """One step's metrics, scalars or [models], taken into account; with the illness in words once there is one.

    A value that is not finite is an illness at once; leaving the healthy region is one after `patience` steps.
    """
    metrics = {name: np.atleast_1d(value).astype(np.float64) for name, value in metrics.items()}
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            return health, _words(name, value, ~np.isfinite(value), "which is not finite")
    if (metrics["non_finite"] > 0).any():
        seen = metrics["non_finite"]
        return health, _words("non_finite", seen, seen > 0, "the number of values that are not finite")
    gap = metrics["energy_gap"]
    change = gap - (gap if health.gap is None else health.gap)
    trend = health.trend + (change - health.trend) / AHEAD
    symptom = _outside(metrics, trend, limits)
    health = Health(health.ill_steps + 1 if symptom else 0, symptom, gap, trend)
    if health.ill_steps < limits.patience:
        return health, None
    in_a_row = f", {health.ill_steps} steps in a row outside the healthy region" if health.ill_steps > 1 else ""
    return health, symptom + in_a_row


def _outside(metrics: Mapping[str, np.ndarray], trend: np.ndarray, limits: Limits) -> str:
    """The first way in which the metrics are outside the healthy region, in words; empty where they are inside."""
    ahead = metrics["energy_gap"] + AHEAD * np.minimum(trend, 0.0)
    healthy = {
        "energy_data": (metrics["energy_data"], -limits.energy, limits.energy),
        "energy_samples": (metrics["energy_samples"], -limits.energy, limits.energy),
        f"energy_gap in {AHEAD} steps": (ahead, -limits.separation, np.inf),
        "chain_grad_norm": (metrics["chain_grad_norm"], *limits.chain_grad),
    }
    for name, (value, least, most) in healthy.items():
        outside = (value < least) | (value > most)
        if outside.any():
            return _words(name, value, outside, f"healthy from {least:g} to {most:g}")
    return ""


def _words(name: str, value: np.ndarray, where: np.ndarray, what: str) -> str:
    """The first entry of a metric that is ill, with the model it belongs to where there are several."""
    first = int(np.argmax(where))
    model = f"model {first}: " if len(value) > 1 else ""
    return f"{model}{name} is {value[first]:.6g} ({what})"
