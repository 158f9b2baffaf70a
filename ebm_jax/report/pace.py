"""How long a plan takes on a CPU, told as soon as steps are timed, while it costs nothing to stop."""

import time
from collections.abc import Callable

LONG = 86_400.0  # seconds: a plan that takes longer is announced
TIMED = 2  # calls that end before the estimate; the first one compiles


def announcer(
    num_steps: int, per_call: int, say: Callable[[str], None], clock: Callable[[], float] = time.perf_counter
) -> Callable[[int], None]:
    """The function to call after each step; after the second call of steps it says so if the plan takes beyond `LONG`.

    Args:
      num_steps: of the plan.
      per_call: steps that end together.
      say: takes the one line, with the estimate and a smaller plan.
    """
    ends: list[tuple[int, float]] = []

    def look(step: int) -> None:
        if step % per_call or len(ends) == TIMED:
            return
        ends.append((step, clock()))
        if len(ends) < TIMED:
            return
        (first, began), (last, ended) = ends
        each = (ended - began) / (last - first)
        left = (num_steps - last) * each
        if left > LONG:
            within = last + int(LONG / each)
            say(
                f"this plan takes about {left / LONG:.1f} days on this CPU: {num_steps - last:,} steps of {each:.3g} s "
                f"as timed just now; {smaller(within)}"
            )

    return look


def smaller(within: int) -> str:
    """What makes a plan smaller, in words; so many steps end within a day."""
    return (
        f"train.num_steps={within} ends within a day, and a lower model.width, train.batch_size or data.shape makes "
        "steps shorter; --config=folder has sizes for a CPU"
    )
