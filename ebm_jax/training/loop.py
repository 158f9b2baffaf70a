"""The training loop: it decides when to step, to look at metrics, to save a state and to draw one.

It knows no files, no checkpoints and no terminal. All that it does to the world is in its `Actions`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ebm_jax.training import guard
from ebm_jax.training.guard import Health, Symptom
from ebm_jax.types import Metrics

State = Any  # of a run; the loop hands it on and never looks inside
Start = TypeVar("Start")


class Plan(NamedTuple):
    """The steps of a stretch. It ends at the last step, at a signal, or when the run is ill."""

    first: int
    """The step of the state that the stretch begins with."""
    last: int
    per_call: int
    """Steps that the devices do in one call."""
    save_every: int
    draw_every: int
    """0 draws only the last state."""
    evaluate_every: int
    """0 evaluates no state; else the last one too."""


class Actions(NamedTuple):
    """All that the loop does to the world."""

    advance: Callable[[int, State], tuple[State, Metrics]]
    """Start a call of steps at this step. It may donate the state, and does not wait for the devices."""
    keep: Callable[[State], tuple[State, jax.Array]]
    """A copy of a state, and the number of its values that are not finite."""
    judge: Callable[[Health, Mapping[str, np.ndarray]], tuple[Health, str | None]]
    show: Callable[[int, dict[str, float]], None]
    """Show the metrics of this step."""
    draw: Callable[[int, State], None]
    evaluate: Callable[[int, State], None]
    discard_after: Callable[[int], object]
    """Move away the checkpoints of later steps: the run left them behind when it went back to this step."""
    save: Callable[[int, State], None]
    must_stop: Callable[[int], bool]
    """Whether to stop after call n. Ask after every call; all processes get the same answer."""
    warn: Callable[[str], None]


class Kept(NamedTuple):
    """A copy of a state; the loop saves it as soon as it knows that the step after it is healthy."""

    step: int
    state: State
    non_finite: jax.Array


class Progress(NamedTuple):
    """How far a stretch is."""

    health: Health
    unseen: tuple[int, Metrics] | None
    """The first step and the metrics of the newest call; the devices may still compute them."""
    kept: Kept | None
    wanted: bool
    """Whether a checkpoint is due and not saved yet."""
    saved: int
    """The step of the newest checkpoint."""
    end: int
    """The step to stop at."""


def run_with_rescues(start: Start, stretch: Callable[[Start], int], rescue: Callable[[guard.Ill], Start]) -> int:
    """Run stretches until one ends by itself; after an illness the next one begins where the rescue went back to.

    Returns:
      The step of the last checkpoint.

    Raises:
      Diverged: `rescue` raises it if none is left.
    """
    while True:
        try:
            return stretch(start)
        except guard.Ill as caught:
            illness = caught.with_traceback(None)  # its frames would keep the ill state in the devices' memory
        start = rescue(illness)


def run(plan: Plan, actions: Actions, state: State) -> int:
    """Step until the last step or a signal.

    The loop fetches a call's metrics while the next call already runs. A step's metrics describe the state before its
    update. So the loop knows that a state is healthy, and saves it, only after the next step; after the last step it
    takes one more, for its metrics alone. If a picture, an evaluation or a checkpoint is due at a step, it is of the
    first state at or after this step that begins a call.

    Returns:
      The step of the last checkpoint.

    Raises:
      Ill: the guard judges the run ill, or a state to be saved has values that are not finite.
    """
    step, progress = plan.first, Progress(guard.HEALTHY, None, None, False, plan.first, plan.last)
    while True:
        progress = _prepared(plan, actions, progress, step, state)
        kept, last = progress.kept, step == progress.end
        state, metrics = actions.advance(step, state)
        progress = _looked(plan, actions, progress)._replace(unseen=(step + 1, metrics))
        if last:
            progress = _looked(plan, actions, progress)
            _finish(plan, actions, progress, kept)
            return progress.saved
        step += plan.per_call
        if actions.must_stop(step // plan.per_call):
            progress = progress._replace(end=step)


def _prepared(plan: Plan, actions: Actions, progress: Progress, step: int, state: State) -> Progress:
    """Before the call at `step`, which may donate the state: copy, draw and evaluate it where that is due."""
    last, regular = step == progress.end, _is_due(plan, plan.save_every, step)
    pictures = plan.draw_every > 0 and _is_due(plan, plan.draw_every, step)
    evaluation = plan.evaluate_every > 0 and _is_due(plan, plan.evaluate_every, step)
    if last or regular or pictures or evaluation or (progress.wanted and progress.kept is None):
        progress = _looked(plan, actions, progress)
    progress = progress._replace(wanted=progress.wanted or last or regular)
    if progress.wanted and progress.kept is None and not progress.health.symptom:
        progress = progress._replace(kept=Kept(step, *actions.keep(state)), health=guard.HEALTHY)
    if pictures and not last:
        actions.draw(step, state)
    if evaluation and not last:
        actions.evaluate(step, state)
    return progress


def _is_due(plan: Plan, every: int, step: int) -> bool:
    """Whether the call that begins at `step` is the first one at or after a multiple of `every`."""
    return step > plan.first and step // every > (step - plan.per_call) // every


def _looked(plan: Plan, actions: Actions, progress: Progress) -> Progress:
    """Wait for the metrics not seen yet, judge and show them, and save the state that they prove healthy."""
    if progress.unseen is None:
        return progress
    first, metrics = progress.unseen
    progress = progress._replace(unseen=None)
    for step, of_step in enumerate(_by_step(jax.device_get(metrics), plan.per_call), first):
        if step > progress.end + 1:
            break
        health, illness = actions.judge(progress.health, of_step)
        if illness is not None:
            raise guard.Ill(step, illness, _untrained(health, step))
        if step <= progress.end:
            trends = {
                f"{name}_trend": np.reshape(trend, np.shape(of_step[name])) for name, trend in health.trends.items()
            }
            actions.show(step, _by_member(of_step | trends))
        progress = _settled(plan, actions, progress._replace(health=health))
    return progress


def _untrained(health: Health, step: int) -> Symptom | None:
    """The symptom of this step, if it and every step before it had one, since the run's first.

    A judge that began anew at a checkpoint has judged fewer steps.
    """
    return health.symptom if health.steps == step == len(health.excursions) else None


def _settled(plan: Plan, actions: Actions, progress: Progress) -> Progress:
    """Once the step after the kept state is judged: save that state if the step is healthy, else drop it."""
    kept = progress.kept
    if kept is None or progress.health.symptom:
        return progress._replace(kept=None)
    if count := int(kept.non_finite):
        raise guard.Ill(kept.step, f"{count} values of the state are not finite")
    if progress.saved == plan.first:
        actions.discard_after(plan.first)
    actions.save(kept.step, kept.state)
    return progress._replace(kept=None, wanted=False, saved=kept.step)


def _finish(plan: Plan, actions: Actions, progress: Progress, kept: Kept | None) -> None:
    """Draw and evaluate the last state, or warn that it was not saved.

    Raises:
      Ill: the last steps are outside the healthy region, and no signal ended the run.
    """
    stopped = progress.end != plan.last  # after a signal there may be no time for pictures
    if progress.wanted and not stopped:
        seen, last = progress.health.symptom, "the last steps are outside the healthy region"
        untrained = _untrained(progress.health, progress.end + 1)
        raise guard.Ill(progress.end, f"{last}: {seen.words}" if seen else last, untrained)
    if progress.wanted:
        actions.warn(f"the steps after {progress.saved} are outside the healthy region and not saved")
    elif kept is not None and not stopped:
        actions.draw(progress.end, kept.state)
        if plan.evaluate_every:
            actions.evaluate(progress.end, kept.state)


def _by_step(metrics: Mapping[str, np.ndarray], number: int) -> list[dict[str, np.ndarray]]:
    """The metrics of each step of a call."""
    if number == 1:
        return [dict(metrics)]
    return [{name: np.asarray(value[index]) for name, value in metrics.items()} for index in range(number)]


def _by_member(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics as numbers; several models give their mean under NAME, and their values under NAME_0, NAME_1 ..."""
    numbers = {name: float(np.mean(value)) for name, value in metrics.items()}
    each = {f"{name}_{m}": float(one) for name, value in metrics.items() if value.ndim for m, one in enumerate(value)}
    return numbers | each
