"""Fair times on a noisy machine: candidates in turn, medians."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def medians(candidates: dict[str, Callable[[], Any]], rounds: int = 9) -> dict[str, float]:
    """Median seconds of each call, the candidates taken in turn so that a slow minute hits all of them."""
    for call in candidates.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
