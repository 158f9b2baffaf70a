"""The learning rate of each step of a run, which its config and its rescues give; metrics.jsonl does not have it."""

import math
import re
from collections.abc import Sequence

from ebm_jax.given import Config
from ebm_jax.report.contents import Contents, Event, Row

RATE = "learning_rate"
BACK = re.compile(r"rescue (\d+) of \d+: back to step (\d+) ")


def rescued(number: int, allowed: int, step: int) -> str:
    """That a rescue of a run goes back to a step, in the words of its event; `with_rate` reads them."""
    return f"rescue {number} of {allowed}: back to step {step} "


def planned(config: Config, update: int) -> float:
    """The learning rate of an update, the first being 0, without rescues, as `training.optimizer.schedule` has it."""
    optim = config.optim
    rise = min((update + 1) / max(optim.warmup_steps, 1), 1.0)
    gone = min(update / optim.decay_steps, 1.0) if optim.decay_steps else 0.0
    share = optim.final_share + (1.0 - optim.final_share) * 0.5 * (1.0 + math.cos(math.pi * gone))
    return optim.learning_rate * rise * share


def rescues_before(events: Sequence[Event], step: int) -> int:
    """How many rescues the run had behind it when it did a step for the last time.

    Rescue k goes back to a step; all later steps are done again, so the last rescue from before a step counts.
    """
    found = [match for event in events for match in BACK.finditer(event.text)]
    return max((int(match[1]) for match in found if int(match[2]) < step), default=0)


def with_rate(run: Contents) -> list[Row]:
    """The rows of metrics with the learning rate of the update that led to each step; as they are without a config."""
    config = run.config
    if config is None:
        return run.rows
    backs = [event for event in run.events if BACK.search(event.text)]
    factor = config.guard.rescue_learning_rate
    return [
        {RATE: planned(config, int(row["step"]) - 1) * factor ** rescues_before(backs, int(row["step"]))} | row
        for row in run.rows
    ]
