"""The guard judges limits, patience and trend from metrics alone; the monitors measure on devices."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_step import BATCH, SHAPE, batch_for, params_for, setup

import run
from configs import cifar10, default, density2d, fashion_mnist_conditional
from configs import digits_contrastive as digits
from configs import folder_contrastive as folder
from ebm_jax import assemble, checks, program, schema
from ebm_jax.distributed import parallel
from ebm_jax.methods.contrastive import healthy
from ebm_jax.methods.method import Limits, Range
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import unit_box
from ebm_jax.sampling.langevin import langevin
from ebm_jax.training import guard, monitors, state
from ebm_jax.types import BadInput, Batch

RANGES = healthy(energy=10.0, of_untrained=4.0, separation=5.0, chain_grad=(0.01, 2.0))
LIMITS = Limits(RANGES, patience=3)


def metrics_for(**changes):
    values = {"energy_data": 0.1, "energy_samples": 0.2, "energy_gap": -0.1, "chain_grad_norm": 0.5, "non_finite": 0.0}
    return {name: np.asarray(value, np.float32) for name, value in (values | changes).items()}


def judged(sequence, limits=LIMITS):
    """The verdicts on metrics one after another."""
    health, verdicts = guard.HEALTHY, []
    for metrics in sequence:
        health, verdict = guard.judge(health, metrics, limits)
        verdicts.append(verdict)
    return verdicts


@pytest.mark.parametrize(
    "ill",
    [
        {"energy_data": -10.1},
        {"energy_samples": 10.1},
        {"energy_gap": -5.1},
        {"chain_grad_norm": 2.1},
        {"chain_grad_norm": 0.009},
    ],
)
def test_a_run_is_ill_once_it_was_outside_the_healthy_region_for_as_many_steps_in_a_row_as_patience_says(ill):
    well, (name, value) = metrics_for(), next(iter(ill.items()))
    ill = metrics_for(**ill)
    assert judged([ill, ill, well, ill, ill, well]) == [None] * 6
    *before, verdict = judged([ill, ill, ill])
    assert before == [None] * 2
    assert name in verdict
    assert f"{value:g}" in verdict
    assert "3 steps in a row" in verdict


@pytest.mark.parametrize(
    "well", [{"energy_data": -9.9}, {"energy_samples": 9.9}, {"energy_gap": -4.9}, {"energy_gap": 1e6}]
)
def test_within_the_limits_and_with_any_gap_upwards_a_run_is_well_for_ever(well):
    assert judged([metrics_for(**well)] * 50) == [None] * 50


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["energy_data", "grad_norm", "loss"])
def test_a_metric_that_is_not_finite_is_an_illness_at_once(name, value):
    verdict = judged([metrics_for(**{name: value})])[0]
    assert f"{name} is {value:g} (which is not finite)" == verdict


def test_values_that_are_not_finite_are_an_illness_even_where_every_mean_is_finite():
    assert "non_finite is 3" in judged([metrics_for(non_finite=3.0)])[0]


def test_a_gap_that_falls_ten_times_its_change_short_of_its_limit_is_ill_and_one_that_rises_is_not():
    falling = judged([metrics_for(energy_gap=-0.1 * step) for step in range(60)])
    first = next(step for step, verdict in enumerate(falling) if verdict)
    # by step n the trend is t = 0.1 (1 - 0.9^n): the gap passes the limit once 0.1 n + 10 t > 5
    expected = next(n for n in range(60) if 0.1 * n + (1 - 0.9**n) > 5.0)
    assert first == expected + LIMITS.patience - 1
    assert first < 50, "before the gap itself is there"
    assert judged([metrics_for(energy_gap=-4.0 + 0.1 * step) for step in range(60)]) == [None] * 60


RELAXING = (0.7233, 0.4049, 0.1946, 0.1346, 0.0960, 0.0949, 0.0664, 0.0328, 0.0288, 0.0241, 0.0037, 0.0025)
"""The gap of a healthy start of CIFAR-10 (width 16, 10 chain steps), from step 1 on."""


@pytest.mark.parametrize("start", [0.7, 1.3, 2.6, 1000.0])
def test_a_positive_gap_that_relaxes_to_0_however_fast_is_no_symptom(start):
    limits, health = assemble.make_limits(cifar10.get_config()), guard.HEALTHY
    for share in RELAXING:
        health, _ = guard.judge(health, metrics_for(energy_gap=start * share / RELAXING[0]), limits)
        assert health.symptom is None
    assert health.trends["energy_gap"] == 0


def test_a_gap_that_falls_on_below_0_has_the_trend_of_its_part_below_0():
    health = guard.HEALTHY
    for gap in (3.0, 1.0, -1.0, -2.0):
        health, _ = guard.judge(health, metrics_for(energy_gap=gap), LIMITS)
    first = -1.0 / 10  # from 0 to -1
    assert health.trends["energy_gap"] == pytest.approx(first + (-1.0 - first) / 10)


TOO_FAST = ((-0.92, -1.65), (65.04, 9.29), (-7.71, -7.68), (12.14, 11.69), (-57.94, -66.8), (3.706, 3.716))
"""Logged |mean U| of data and samples, CIFAR-10 at width 16 and learning rate 0.03; the limit is 10."""


def test_energies_that_leave_the_limits_and_come_back_are_an_illness_by_their_number():
    sequence = [metrics_for(energy_data=data, energy_samples=samples) for data, samples in TOO_FAST]
    verdicts = judged(sequence, assemble.make_limits(cifar10.get_config()))
    assert verdicts[:4] == [None] * 4
    assert verdicts[4] == "energy_samples is -66.8 (healthy from -10 to 10), 3 of 4 steps outside the healthy region"


def test_excursions_before_the_window_are_forgotten():
    limits, ill = LIMITS._replace(window=6), metrics_for(energy_data=11.0)
    well = [metrics_for()] * 4
    assert judged([ill, *well, ill, *well, ill, *well], limits) == [None] * 15
    assert judged([ill, ill, *well[:3], ill], limits)[-1].endswith("3 of 6 steps outside the healthy region")
    assert judged([ill, ill, *well, ill], limits)[-1] is None, "the first is seven steps ago"


@pytest.mark.parametrize("far", [{"energy_data": -101.0}, {"energy_gap": -51.0}, {"chain_grad_norm": 20.1}])
def test_a_run_is_ill_at_once_far_beyond_a_limit_and_a_dead_network_is_not(far):
    limits, (name, value) = LIMITS._replace(at_once=10.0), next(iter(far.items()))
    (verdict,) = judged([metrics_for(**far)], limits)
    assert name in verdict
    assert "times its limit" in verdict
    assert judged([metrics_for(**{name: value / 1.05})], limits) == [None]
    assert judged([metrics_for(chain_grad_norm=0.0)], limits) == [None], "a gradient of 0 may be one of a first step"
    assert guard.judge(guard.HEALTHY, metrics_for(chain_grad_norm=0.001), limits)[0].symptom.times == 1.0


def test_limits_know_the_untrained_network_and_ask_for_it_only_once_a_step_is_outside():
    asked = []
    judge = guard.make_judge(LIMITS, lambda: asked.append(1) or 4.0)
    limits = guard.widened(LIMITS, 4.0)
    assert [(one.least, one.most) for one in limits.ranges[:2]] == [(-16, 16)] * 2, "4 times 4, and not 10"
    assert limits.ranges[2:] == LIMITS.ranges[2:]
    lazily = plainly = guard.HEALTHY
    for step, energy in enumerate((1.0, -9.0, 15.0, -15.9, 16.1, 3.0, 16.2, -16.3, 2.0)):
        metrics = metrics_for(energy_data=energy, energy_gap=-0.5 * step)
        assert bool(asked) == (step > 2)
        (lazily, found), (plainly, expected) = judge(lazily, metrics), guard.judge(plainly, metrics, limits)
        assert (found, lazily.excursions, lazily.trends) == (expected, plainly.excursions, plainly.trends)
    assert len(asked) == 1
    assert guard.widened(LIMITS, 2.0) == LIMITS, "the larger limit counts"
    assert guard.widened(LIMITS, math.nan) == LIMITS


@pytest.mark.whole
def test_an_untrained_network_of_64x64_pixels_is_well_though_its_energies_are_beyond_the_limit_of_lambda():
    config = schema.dry_run(folder.get_config())
    config.data.shape, config.train.seed = (64, 64, 3), 2
    params = assemble.init_params(config, jax.random.split(jax.random.key(2), 3)[1])
    images = jnp.array([0.5, 1.0])[:, None, None, None] * jnp.ones((1, 64, 64, 3))
    gray, white = jax.jit(assemble.make_apply(config))(params, images, jnp.zeros(2, jnp.int32)).tolist()
    (of_data, *_), unit = assemble.make_limits(config).ranges, program.untrained_energy(config)
    assert unit == pytest.approx(abs(white), rel=1e-5), "white images are the farthest out"
    assert abs(gray) > of_data.most, "so without it a dry run ended with status 3"
    health = guard.HEALTHY
    judge = guard.make_judge(assemble.make_limits(config), lambda: unit)
    for _ in range(20):
        health, illness = judge(health, metrics_for(energy_data=gray, energy_samples=white))
        assert (health.symptom, illness) == (None, None)


def test_of_several_models_the_farthest_untrained_energy_counts():
    config, alone = density2d.get_config(), []
    config.model.width = 4
    for config.train.seed in (3, 4):
        alone.append(program.untrained_energy(config))
    config.train.seed, config.train.num_models = 3, 2
    assert program.untrained_energy(config) == max(alone) > min(alone)


def test_without_the_keys_that_came_later_the_guard_counts_steps_in_a_row_and_nothing_else():
    later = ("guard.max_of_untrained", "guard.window", "guard.at_once")
    config = schema.with_values(cifar10.get_config(), {key: schema.KEYS[key].absent for key in later})
    limits, ill = guard.widened(assemble.make_limits(config), 1e6), metrics_for(energy_data=1e4)
    assert judged([ill, ill, metrics_for(), ill, ill, metrics_for()], limits) == [None] * 6
    assert judged([ill, ill, ill], limits)[-1]


def test_of_several_models_the_one_that_is_ill_is_named():
    well, ill = metrics_for(energy_data=[0.1, 0.1, 0.1]), metrics_for(energy_data=[0.1, 0.1, 50.0])
    broad = {name: np.broadcast_to(value, 3) for name, value in metrics_for().items()}
    verdict = judged([broad | {"energy_data": one["energy_data"]} for one in (well, ill, ill, ill)])[-1]
    assert verdict.startswith("model 2: energy_data is 50")
    verdict = judged([broad | {"loss": np.array([0.0, np.nan, 0.0])}])[0]
    assert verdict.startswith("model 1: loss is nan")


def test_the_limits_are_in_the_units_of_lambda_and_of_the_box():
    def limits(config):
        return {one.metric: (one.least, one.most) for one in assemble.make_limits(config).ranges}

    found = limits(digits.get_config())  # λ 0.1, 64 pixels, step 10
    assert found["energy_data"] == found["energy_samples"] == pytest.approx((-20 / 0.2, 20 / 0.2))
    assert found["energy_gap"] == pytest.approx((-2 / 0.1, math.inf))
    assert found["chain_grad_norm"] == pytest.approx((1e-6 * 0.8, 2 * 0.8))
    config = density2d.get_config()  # λ 0.001 counts as 0.01
    assert limits(config)["energy_gap"][0] == pytest.approx(-200)
    config.chain.kernel, config.chain.step_size = "hmc", 0.02
    assert limits(config)["chain_grad_norm"][1] == pytest.approx(2 * math.sqrt(2) / (0.5 * 0.02**2))


def test_a_range_is_judged_only_in_the_steps_that_it_is_given_for_and_its_trend_begins_anew_there():
    limits = Limits((Range("energy_gap", -5.0, math.inf, 10, (("stage", 1.0),)), Range("loss", 0.0, 1.0)), 1)
    without = [metrics_for(energy_gap=gap, stage=0.0, loss=0.5) for gap in (-100.0, 0.0, -50.0)]
    with_it = [metrics_for(energy_gap=gap, stage=1.0, loss=0.5) for gap in (-4.0, -4.05)]
    assert judged(without + with_it, limits) == [None] * 5
    assert "energy_gap in 10 steps" in judged([*with_it, metrics_for(energy_gap=-5.1, stage=1.0, loss=0.5)], limits)[-1]
    assert "loss is 2" in judged([metrics_for(stage=0.0, loss=2.0)], limits)[0]


def test_a_trend_upwards_is_judged_by_the_upper_end_of_its_range():
    limits = Limits((Range("loss", -math.inf, 5.0, 10),), 1)
    rising = judged([metrics_for(loss=0.1 * step) for step in range(60)], limits)
    first = next(step for step, verdict in enumerate(rising) if verdict)
    assert first == next(n for n in range(60) if 0.1 * n + (1 - 0.9**n) > 5.0)
    assert judged([metrics_for(loss=-0.1 * step) for step in range(60)], limits) == [None] * 60


def test_without_the_guard_only_what_is_not_finite_is_an_illness():
    config = default.get_config()
    config.guard.enabled = False
    limits = assemble.make_limits(config)
    assert judged([metrics_for(energy_data=1e30, energy_gap=-1e30, chain_grad_norm=0.0)] * 20, limits) == [None] * 20
    assert judged([metrics_for(energy_data=math.nan)], limits)[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patience", 0),
        ("max_rescues", -1),
        ("max_energy", 0.0),
        ("max_separation", math.nan),
        ("rescue_learning_rate", 1.5),
        ("rescue_learning_rate", 0.0),
        ("rescue_chain", 0.5),
        ("rescue_chain", math.inf),
        ("least_energy_l2", 0.0),
    ],
)
def test_a_guard_that_cannot_work_is_refused(key, value):
    config = digits.get_config()
    setattr(config.guard, key, value)
    with pytest.raises(BadInput, match=rf"guard\.{key} .* is out of range"):
        checks.check(config, 1)


def test_the_monitors_are_means_over_all_chains_of_all_devices():
    mesh, step, whole = setup(8, kernel=langevin(5.0, 0.0, project=unit_box), capacity=BATCH)
    start = np.asarray(whole.memory.images)
    whole, metrics = step(whole, parallel.place_batch(mesh, batch_for()))
    end = np.asarray(whole.memory.images)  # capacity = batch: every chain was drawn and stored in its place
    assert 0 < metrics["saturated"] < 1
    np.testing.assert_allclose(metrics["chain_movement"], np.abs(end - start).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["saturated"], ((end == 0) | (end == 1)).mean(), rtol=1e-6)
    assert metrics["non_finite"] == 0


def test_a_nan_in_a_row_of_one_device_of_eight_is_counted_and_makes_the_run_ill_at_that_step():
    mesh, step, whole = setup(8, capacity=BATCH)  # the still kernel leaves the row as it is
    poisoned = jnp.where(jnp.arange(BATCH)[:, None] == 7, jnp.nan, whole.memory.images)
    whole = whole._replace(memory=whole.memory._replace(images=jax.device_put(poisoned, whole.memory.images.sharding)))
    _, metrics = step(whole, parallel.place_batch(mesh, batch_for()))
    metrics = jax.device_get(metrics)
    assert metrics["non_finite"] >= math.prod(SHAPE), "at least every pixel of the row"
    assert np.isnan(metrics["energy_samples"])
    assert judged([metrics])[0] is not None


def test_infinite_and_nan_values_are_counted_and_integers_have_none():
    values = {"a": jnp.array([1.0, jnp.nan, -jnp.inf]), "b": jnp.array([1, 2]), "c": jnp.inf * jnp.ones((2, 2))}
    assert monitors.non_finite(values) == 6
    assert monitors.non_finite({"b": jnp.array([1, 2]), "key": jax.random.key(0)}) == 0


def test_the_monitors_add_no_collective_to_the_steps_one_all_reduce():
    mesh, step, whole = setup(8, kernel=langevin(0.1, 0.01, project=unit_box), capacity=32)
    text = step.lower(whole, parallel.place_batch(mesh, batch_for())).compile().as_text()
    collectives = [line for line in text.splitlines() if " all-reduce" in line or " all-gather" in line]
    assert sum(" all-reduce(" in line for line in collectives) == len(collectives) == 1


@pytest.mark.parametrize("rescues", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_every_rescue_multiplies_the_update_by_its_factor(rescues):
    mesh, step, whole = setup(2, rescue_learning_rate=0.5)
    batch = parallel.place_batch(mesh, batch_for())
    (after, _), (plain, _) = step(rescues_set(whole, rescues), batch), setup(2)[1](setup(2)[2], batch)
    for name, before in params_for().items():
        moved, expected = np.asarray(after.params[name]) - before, np.asarray(plain.params[name]) - before
        np.testing.assert_allclose(moved, 0.5**rescues * expected, rtol=1e-4, atol=1e-7)
    assert after.rescues == rescues


def rescues_set(whole, number):
    number = jax.device_put(jnp.asarray(number, jnp.int32), whole.rescues.sharding)
    return whole._replace(rescues=number)


def test_rescues_make_chains_longer_by_their_factor_and_a_step_runs_that_many():
    config = schema.dry_run(digits.get_config())
    config.guard.rescue_chain, config.chain.num_steps = 1.5, 5
    assert [program.rescued_chain(config, number) for number in range(4)] == [5, 8, 12, 17]
    mesh = parallel.device_mesh(jax.devices()[:1])
    abstract = program.abstract_state(config, mesh)
    batch = jax.eval_shape(lambda: (jnp.zeros((16, 8, 8, 1), jnp.uint8), jnp.zeros(16, jnp.int32)))
    for number, length in ((0, 5), (2, 12)):
        traced = str(jax.make_jaxpr(program.make_step(config, mesh, number))(abstract, Batch(*batch)))
        assert f"length={length}\n" in traced
        assert not {f"length={other}\n" for other in (5, 12) if other != length} & set(traced.split(" "))


@pytest.mark.parametrize("members", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rescued_state_has_another_stream_than_before_and_than_every_other_rescue(members):
    config = schema.dry_run(digits.get_config())
    config.train.num_models = members
    mesh = parallel.device_mesh(jax.devices()[:1])
    before = program.make_state(config, mesh)
    keys, kept = [jax.random.key_data(before.key)], np.asarray(before.memory.images)
    for number in (1, 2):
        after = program.make_rescued(config, mesh, number)(program.make_state(config, mesh))
        assert (np.asarray(after.rescues) == number).all()
        np.testing.assert_array_equal(after.memory.images, kept)
        keys.append(jax.random.key_data(after.key))
    assert len({np.asarray(key).tobytes() for key in keys}) == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_nan_in_a_row_that_nothing_drew_yet_is_found_in_the_state(dtype):
    whole = setup(1)[2]
    images = np.random.default_rng(0).uniform(size=(4, 6)).astype(np.float32)
    for value, count in ((0.5, 0), (np.nan, 1), (np.inf, 1)):
        images[2, 3] = value
        encoded = jnp.asarray(images, dtype)
        stored = encoded if dtype == jnp.float32 else jax.lax.bitcast_convert_type(encoded, jnp.uint16)
        assert replay.decode(stored).dtype == jnp.float32
        assert state.non_finite(whole._replace(memory=whole.memory._replace(images=stored))) == count


def test_status_3_is_documented_where_people_look():
    assert "3 for a diverged run" in str(run.main.__doc__)
    assert "exit status 3" in (ROOT / "docs" / "reference" / "runs.md").read_text()


def test_a_logged_healthy_fashion_mnist_run_never_makes_the_guard_fire():
    """Replays the metrics.jsonl of a real run, if someone gave the README's command."""
    path = ROOT / "runs" / "fashion_mnist_conditional" / "metrics.jsonl"
    if not path.is_file():
        pytest.skip("there is no Fashion-MNIST run in runs/")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    limits = assemble.make_limits(fashion_mnist_conditional.get_config())
    logged = [metrics_for(**{name: row[name] for name in metrics_for() if name in row}) for row in rows]
    assert judged(logged, limits._replace(patience=1)) == [None] * len(rows)
