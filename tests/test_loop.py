"""The loop of training with made-up actions: what it does, and in which order."""

import numpy as np
import pytest

from ebm_jax.training import guard, loop


class Number:
    """A metric on a device that notes when it is fetched."""

    def __init__(self, log, step, value):
        self.log, self.step, self.value = log, step, value

    def __array__(self, dtype=None, copy=None):
        self.log.append(("fetch", self.step))
        return self.value


def trained(
    last,
    *,
    first=0,
    per_call=1,
    save_every=2,
    draw_every=0,
    evaluate_every=0,
    ill=None,
    outside=(),
    poisoned=None,
    stop=None,
):
    """What the loop did, as pairs (action, step), and how it ended: the last saved step, or the illness.

    A state is the number of its steps, and so are its metrics. Step `ill` is ill, and the steps `outside` are outside
    the healthy region. The state of step `poisoned` has a value that is not finite. A signal comes in call `stop`. An
    illness that learning cannot have caused is logged as ("untrained", its step).
    """
    log = []

    def advance(step, state):
        assert step == state
        log.append(("advance", step))
        steps = np.arange(step + 1.0, step + per_call + 1)
        return state + per_call, {"energy_gap": Number(log, step, steps if per_call > 1 else steps.reshape(()))}

    def judge(health, metrics):
        step = int(metrics["energy_gap"])
        log.append(("judge", step))
        log.append(("begun anew", step) if health is guard.HEALTHY else ("gone on", step))
        symptom = guard.Symptom("energy_gap", "it is outside", 1.0) if step in outside else None
        excursions = (*health.excursions, health.steps + 1) if symptom else health.excursions
        judged = guard.Health(health.steps + 1, excursions, symptom, {}, {})
        return judged, "it is ill" if step == ill else None

    def stops(call):
        log.append(("asked", call))
        return call == stop

    def noted(name):
        return lambda step, *_: log.append((name, step))

    actions = loop.Actions(
        advance=advance,
        keep=lambda state: (state, np.array(state == poisoned, int)),
        judge=judge,
        show=noted("show"),
        draw=noted("draw"),
        evaluate=noted("evaluate"),
        discard_after=noted("discard_after"),
        save=lambda step, state: log.append(("save", step) if step == state else "another state"),
        must_stop=stops,
        warn=noted("warn"),
    )
    try:
        plan = loop.Plan(first, last, per_call, save_every, draw_every, evaluate_every)
        return log, loop.run(plan, actions, first)
    except guard.Ill as illness:
        if illness.untrained:
            log.append(("untrained", illness.step))
        return log, str(illness)


def steps_of(name, log):
    return [step for action, step in log if action == name]


def test_each_step_is_done_once_and_one_more_for_the_metrics_of_the_last_state():
    log, saved = trained(5)
    assert steps_of("advance", log) == [0, 1, 2, 3, 4, 5]
    assert steps_of("judge", log) == [1, 2, 3, 4, 5, 6]
    assert steps_of("show", log) == [1, 2, 3, 4, 5]
    assert steps_of("save", log) == [2, 4, 5]
    assert saved == 5


@pytest.mark.parametrize("per_call", [1, 3])
@pytest.mark.parametrize("first", [0, 3])
def test_a_state_is_saved_only_after_the_step_after_it_was_judged(first, per_call):
    log, _ = trained(12, first=first, per_call=per_call, save_every=3)
    saves = steps_of("save", log)
    assert saves == [step for step in (3, 6, 9, 12) if step > first]
    for step in saves:
        assert log.index(("judge", step + 1)) < log.index(("save", step))


@pytest.mark.parametrize("due", [2, 4, 6])
def test_a_state_after_which_the_step_is_ill_is_never_saved(due):
    log, end = trained(6, ill=due + 1)
    assert end == f"step {due + 1}: it is ill"
    assert steps_of("save", log) == list(range(2, due, 2))


def test_a_state_before_a_step_outside_the_healthy_region_is_dropped_and_the_next_good_one_is_saved():
    log, saved = trained(9, save_every=4, outside=(5, 6))
    assert steps_of("save", log) == [7, 8, 9], "not 4, which the step after it does not prove"
    assert saved == 9


@pytest.mark.parametrize("per_call", [1, 3])
def test_judging_begins_anew_after_each_copy_so_that_a_resumed_run_judges_alike(per_call):
    whole, _ = trained(12, save_every=6, per_call=per_call)
    assert steps_of("begun anew", whole) == [1, 7, 13]
    rest, _ = trained(12, save_every=6, per_call=per_call, first=6)
    assert steps_of("begun anew", rest) == [7, 13]


def test_the_steps_of_a_call_after_the_one_that_proves_the_last_state_are_not_judged():
    log, saved = trained(6, per_call=3, ill=8)
    assert saved == 6
    assert steps_of("judge", log) == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_whose_last_steps_are_outside_the_healthy_region_is_ill():
    log, end = trained(6, save_every=3, outside=(6, 7))
    assert end == "step 6: the last steps are outside the healthy region: it is outside"
    assert steps_of("save", log) == [3]


@pytest.mark.parametrize("per_call", [1, 3])
def test_an_illness_that_every_step_since_the_first_has_is_one_of_the_untrained_network(per_call):
    def untrained(last, **what):
        return steps_of("untrained", trained(last, per_call=per_call, **what)[0])

    assert untrained(6, ill=1, outside=(1,)) == [1]
    assert untrained(6, ill=3, outside=(1, 2, 3)) == [3]
    assert untrained(6, ill=3, outside=(2, 3)) == [], "the first step was well"
    assert untrained(6, ill=6, outside=(4, 5, 6), first=3) == [], "it began with a trained network"
    assert untrained(9, save_every=3, ill=7, outside=(4, 5, 6, 7)) == [], "the judge forgets at a checkpoint"


def test_a_short_run_outside_the_healthy_region_from_its_first_step_on_is_one_too():
    log, end = trained(3, outside=(1, 2, 3, 4))
    assert end == "step 3: the last steps are outside the healthy region: it is outside"
    assert steps_of("untrained", log) == [3]
    log, end = trained(6, save_every=3, outside=(6,))
    assert end == "step 6: the last steps are outside the healthy region", "step 7 is inside again"


def test_after_a_signal_last_steps_outside_the_healthy_region_are_told_and_not_saved():
    log, saved = trained(100, save_every=3, outside=(5, 6), stop=5)
    assert saved == 3
    assert steps_of("warn", log) == ["the steps after 3 are outside the healthy region and not saved"]


def test_a_state_with_a_value_that_is_not_finite_is_never_saved():
    log, end = trained(6, poisoned=4)
    assert end == "step 4: 1 values of the state are not finite"
    assert steps_of("save", log) == [2]


def test_metrics_are_fetched_while_the_next_call_runs():
    log, _ = trained(40, save_every=20)
    for step in range(40):
        overlapped = log.index(("advance", step + 1)) < log.index(("fetch", step))
        assert overlapped == (step + 1 not in (20, 40)), "the loop waits only where it decides on a copy"


def test_what_a_run_left_behind_is_moved_away_once_just_before_its_first_save():
    log, _ = trained(10, first=4)
    assert steps_of("discard_after", log) == [4]
    assert log[log.index(("discard_after", 4)) + 1] == ("save", 6)


def test_it_stops_after_the_call_in_which_that_is_asked_for_and_saves_and_asks_after_every_call():
    log, saved = trained(100, save_every=50, draw_every=50, stop=7)
    assert saved == 7
    assert steps_of("save", log) == [7]
    assert steps_of("asked", log) == [1, 2, 3, 4, 5, 6, 7], "JAX misses its decision if one is left out"
    assert steps_of("show", log) == [1, 2, 3, 4, 5, 6, 7]
    assert steps_of("draw", log) == [], "there may be no time for it"


def test_several_steps_a_call_stop_save_and_draw_between_calls():
    log, saved = trained(12, per_call=3, save_every=4, draw_every=5)
    assert steps_of("advance", log) == [0, 3, 6, 9, 12]
    assert steps_of("show", log) == list(range(1, 13))
    assert steps_of("save", log) == [6, 9, 12], "the first states of a call at or after 4, 8 and 12"
    assert steps_of("draw", log) == [6, 12], "at or after 5 and 10"
    assert saved == 12
    log, saved = trained(99, per_call=3, save_every=50, stop=2)
    assert saved == 6
    assert steps_of("show", log) == [1, 2, 3, 4, 5, 6]


def test_pictures_come_at_their_steps_and_of_the_last_state():
    log, _ = trained(7, save_every=100, draw_every=3)
    assert steps_of("draw", log) == [3, 6, 7]
    assert steps_of("draw", trained(4, draw_every=0)[0]) == [4]


def test_evaluations_come_at_their_steps_and_of_the_last_state_or_never():
    log, _ = trained(7, save_every=100, evaluate_every=3)
    assert steps_of("evaluate", log) == [3, 6, 7]
    assert steps_of("evaluate", trained(8, per_call=2, save_every=100, evaluate_every=3)[0]) == [4, 6, 8]
    assert steps_of("evaluate", trained(6, save_every=100, evaluate_every=3)[0]) == [3, 6], "each once"
    assert steps_of("evaluate", trained(4, evaluate_every=0)[0]) == []
    assert steps_of("evaluate", trained(100, evaluate_every=50, stop=7)[0]) == [], "there may be no time for it"


def test_rescues_go_on_from_where_they_went_back_to_until_a_stretch_ends():
    begun = []

    def stretch(start):
        begun.append(start)
        if start < 3:
            raise guard.Ill(10 + start, "it is ill")
        return 99

    def rescue(illness):
        assert illness.__traceback__ is None, "it would keep the ill state"
        return illness.step - 9

    assert loop.run_with_rescues(0, stretch, rescue) == 99
    assert begun == [0, 1, 2, 3]
