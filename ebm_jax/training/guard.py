"""Recognises a run that has left the finite numbers."""

import math


class Diverged(RuntimeError):
    """A metric of a training step is not finite; the message is one line."""


def check_finite(step: int, metrics: dict[str, float], last_good: int | None) -> None:
    """Stop a run whose metrics are no longer finite.

    Args:
      last_good: the step of the newest checkpoint, None before the first.

    Raises:
      Diverged: with the step, the first such metric, what is left to go on from and what helps.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            rest = (
                "no checkpoint was written yet" if last_good is None else f"the checkpoint of step {last_good} is good"
            )
            raise Diverged(
                f"step {step}: {name} is {value}; {rest}; lower optim.learning_rate or chain.step_size, or raise "
                "loss.energy_l2"
            )
