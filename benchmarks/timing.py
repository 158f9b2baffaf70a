"""Fair times on a noisy machine: candidates in turn, medians and quartiles."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Times(NamedTuple):
    """Seconds of one candidate over all rounds."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def in_turn(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, Times]:
    """The seconds that each candidate reports. Candidates take turns, so a slow minute hits all of them.

    One round before is thrown away: it compiles.
    """
    for call in candidates.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            found[name].append(call())
    return {name: Times(seconds) for name, seconds in found.items()}


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """The seconds of a clock from a call until its arrays are there."""

    def seconds() -> float:
        start = clock()
        jax.block_until_ready(call())
        return clock() - start

    return seconds


def medians(
    candidates: dict[str, Callable[[], Any]], rounds: int = 9, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each call; the candidates take turns.

    With `time.process_time` for a clock these are CPU seconds: other jobs add only cache misses.
    """
    times = in_turn({name: timed(call, clock) for name, call in candidates.items()}, rounds)
    return {name: one.median for name, one in times.items()}
