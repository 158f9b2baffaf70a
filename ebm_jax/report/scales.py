"""The vertical scale of a chart: linear or logarithmic, and a range that a few spikes do not stretch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

PEAK = 30  # times the median: where the largest value is beyond it, a linear scale hides the rest
THIN, FACTOR = 0.1, 2  # share of a linear scale; a series that grows or falls by the factor inside it is hidden
SPARE = 50  # of so many points of a series one, at either end, is not asked how wide the scale is
REACH = 3  # times the others' spread: a value this far from them leaves them a quarter of a linear scale
FEWEST = 20  # points of a series that can have a spike
Values = Sequence[float | None]
"""A series' values, None where it has none."""


class Scale(NamedTuple):
    """How the values of a chart are drawn."""

    log: bool
    """By their logarithms; none of them is negative, and those that are 0 are not drawn."""
    range: tuple[float, float] | None
    """The least and the largest value that the scale holds; None: all."""
    beyond: list[tuple[int, int]]
    """Series and place of the values outside the range."""


def scale_of(series: Sequence[Values]) -> Scale:
    """The scale of a chart.

    A series' spikes are at most a fiftieth of its points at either end, and they lie farther from the others than those
    lie apart: `REACH` times as far on a linear scale, and a decade at least on a logarithmic one. The others of each
    series are in the range, so a series that is far from all the rest, or a level that changes for good, is never cut
    off.
    """
    numbers = [sorted(value for value in one if value is not None) for one in series]
    log = all(one[0] >= 0 for one in numbers if one) and _hides([_body(one) for one in numbers])
    kept = [value for one in numbers for value in _without_spikes([v for v in one if v > 0] if log else one, log)]
    if not kept:
        return Scale(log, None, [])
    low, high = min(kept), max(kept)
    beyond = [
        (number, place)
        for number, one in enumerate(series)
        for place, value in enumerate(one)
        if value is not None and not low <= value <= high and not (log and value == 0)
    ]
    return Scale(log, (low, high) if beyond else None, beyond)


def _hides(bodies: Sequence[Sequence[float]]) -> bool:
    """Whether a linear scale from 0 hides what ordered values, none of them negative, do."""
    positive = sorted(value for body in bodies for value in body if value > 0)
    if len(positive) < 2:
        return False
    thin = [
        body[-1] < THIN * positive[-1] and body[-1] > FACTOR * body[0] > 0 for body in bodies if len(body) >= FEWEST
    ]
    return positive[-1] > PEAK * positive[len(positive) // 2] or any(thin)


def _body(ordered: Sequence[float]) -> Sequence[float]:
    """Ordered values without the ones that may be spikes."""
    if len(ordered) < FEWEST:
        return ordered
    spare = max(1, len(ordered) // SPARE)
    return ordered[spare:-spare]


def _without_spikes(ordered: Sequence[float], log: bool) -> Sequence[float]:
    """Ordered values without spikes; where all others are equal, anything else is no spike but the news."""
    if len(ordered) < FEWEST:
        return ordered
    body = _body(ordered)
    low, high = (math.log10(body[0]), math.log10(body[-1])) if log else (body[0], body[-1])
    if low == high:
        return ordered
    reach = max(1.0, high - low) if log else REACH * (high - low)
    return [value for value in ordered if low - reach <= (math.log10(value) if log else value) <= high + reach]
