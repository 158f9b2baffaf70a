"""Fair times on a noisy machine: candidates in turn, medians."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def medians(
    candidates: dict[str, Callable[[], Any]], rounds: int = 9, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each call, the candidates taken in turn so that a slow minute hits all of them.

    With `time.process_time` for a clock they are those of the CPU, to which other jobs add nothing but cache misses.
    """
    for call in candidates.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = clock()
            jax.block_until_ready(call())
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}
