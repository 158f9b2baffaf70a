"""Metric `drift`: chains go on from the samples by training's kernel, and each length has its distance and picture."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from test_feature_evaluators import TEST, judged

from ebm_jax.assemble import init_params
from ebm_jax.evaluate import gathered
from ebm_jax.evaluators import EVALUATORS, drift
from ebm_jax.evaluators.common import Evidence, Samples
from ebm_jax.pixels import quantised
from ebm_jax.samplers import make_energy_fn
from ebm_jax.types import BadInput


def a_run(folder, images, steps, **changes):
    """An untrained run of digits without noise in its chains, and the evidence of these samples."""
    of_run, _ = judged(folder, drift__steps=steps, batch_size=64)
    values = {"chain__step_size": 1.0, "chain__langevin__tied": False, "chain__langevin__noise_scale": 0.0} | changes
    config = changed(of_run.config, **values)
    evidence = Evidence({}, Samples(images, np.zeros(len(images), np.int32), "made up"))
    return of_run._replace(config=config, params=init_params(config, jax.random.key(0))), evidence


@pytest.mark.whole
def test_without_noise_chains_are_clipped_descent_however_they_are_cut_into_lengths(tmp_path):
    images = TEST[:70].astype(np.float32) / 255
    of_run, evidence = a_run(tmp_path, images, "2,6")
    at = list(drift._positions(of_run, evidence, [0, 2, 6]))
    energy_fn, x, clip = make_energy_fn(of_run.config), jnp.asarray(images), of_run.config.chain.grad_clip
    gradient = jax.jit(jax.grad(lambda x: energy_fn(of_run.params, x).sum()))
    expected = [x]
    for _ in range(6):
        expected.append(jnp.clip(expected[-1] - jnp.clip(gradient(expected[-1]), -clip, clip), 0, 1))
    for found, steps in zip(at, (0, 2, 6), strict=True):
        assert found.shape == images.shape
        apart = np.abs(found.astype(int) - quantised(np.asarray(expected[steps])).astype(int))
        assert apart.max() <= 1, "float32 rounds to another level where it is near its border"
        assert (apart > 0).mean() < 0.01
    assert all((later != before).any() for before, later in itertools.pairwise(at)), "they move"


def test_every_step_and_every_chain_has_noise_of_its_own(tmp_path):
    """Where the energy is flat, t steps of variance σ² have the variance t σ²; equal noise in all would give t² σ²."""
    of_run, evidence = a_run(
        tmp_path, np.full((128, 8, 8, 1), 0.5, np.float32), "1,4", chain__langevin__noise_scale=0.02
    )
    flat = of_run._replace(params=jax.tree.map(jnp.zeros_like, of_run.params))
    _, one, four = (at / 256 for at in drift._positions(flat, evidence, [0, 1, 4]))
    temperature = of_run.config.chain.temperature
    for steps, at in ((1, one), (4, four)):
        assert at.std() == pytest.approx(0.02 * (temperature * steps) ** 0.5, rel=0.05), "8,192 values"
    assert not np.array_equal(one[:64], one[64:]), "the two batches"


@pytest.mark.whole
def test_each_length_has_its_distance_and_a_picture_and_the_first_row_is_the_samples_own(tmp_path):
    images = TEST.astype(np.float32) / 255
    of_run, evidence = a_run(tmp_path, images, "3,2", eval__classifier_distance__steps=2, chain__step_size=1000.0)
    made = {"samples": evidence.samples}

    def outcome(name):
        evaluator = EVALUATORS[name]
        evaluator.check(of_run.config)
        return evaluator.measure(of_run, gathered(of_run, evaluator, evaluator.needed(of_run.config), made))

    plain, found = outcome("classifier_distance"), outcome("drift")
    rows = ("after 0 steps", "after 2 steps", "after 3 steps", "test images")
    columns = ("classifier distance", "classifier score", "class coverage")
    assert set(found.values) == {f"{row} / {column}" for row in rows for column in columns}
    for column in columns:
        assert found.values[f"after 0 steps / {column}"] == plain.values[f"samples / {column}"]
        assert found.values[f"test images / {column}"] == plain.values[f"test images / {column}"]
    begin, later = (found.values[f"after {steps} steps / classifier distance"] for steps in (0, 3))
    assert later.number > begin.number, "an untrained energy leads away"
    assert later.standard_error > 0
    assert list(found.pictures) == ["after_0_steps", "after_2_steps", "after_3_steps"]
    found.pictures["after_3_steps"](tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0
    assert "langevin with step size 1000" in found.protocol["chains"]
    assert found.protocol["classifier"].split(";")[0] == plain.protocol["classifier"].split(";")[0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"drift__steps": "100,many"}, r"^eval.drift.steps '100,many' is no list of whole numbers; use .*$"),
        ({"drift__steps": "100,0"}, r"^eval.drift.steps 0 is out of range; it must be at least 1 .*$"),
        ({"drift__steps": "1,,2"}, r"^eval.drift.steps '1,,2' is no list of whole numbers; .*$"),
        ({"samples": "buffer"}, r"^drift follows chains from fresh samples; use eval.samples=fresh, not buffer$"),
        ({"num_samples": 128}, r"^eval.num_samples 128 are too few for drift, .* 129; .*$"),
    ],
)
def test_what_it_cannot_follow_is_refused_in_one_line_before_anything_is_measured(changes, line, tmp_path):
    with pytest.raises(BadInput, match=line):
        EVALUATORS["drift"].check(judged(tmp_path, **changes)[0].config)


def test_chains_that_leave_the_numbers_are_refused_in_one_line(tmp_path):
    of_run, evidence = a_run(tmp_path, np.full((2, 8, 8, 1), np.nan, np.float32), "1")
    with pytest.raises(BadInput, match=r"^after 0 steps chains are not finite; lower chain.step_size or .*$"):
        list(drift._positions(of_run, evidence, [0, 1]))
