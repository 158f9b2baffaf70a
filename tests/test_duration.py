"""How long a plan will take on a CPU: the count by closed forms, and the line before anything is begun."""

import math

import jax
import jax.numpy as jnp
import pytest
import test_train
from test_compile import tiny

import run
from ebm_jax import duration
from ebm_jax.distributed import parallel
from ebm_jax.report import console, pace
from tools.compile import floor

DAY = 86_400


def counted(fn, *args):
    return duration.flops(jax.make_jaxpr(fn)(*args).jaxpr)


def test_products_in_loops_branches_and_functions_count_as_often_as_they_are_done():
    x, kernel = jnp.ones((3, 4)), jnp.ones((4, 4))
    once = 2 * 3 * 4 * 4
    assert counted(jnp.matmul, x, kernel) == once
    assert (
        counted(lambda x: jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, kernel), None), x, None, 5)[0], x)
        == 5 * once
    )
    branched = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ kernel @ kernel, lambda x: x @ kernel, x)  # noqa: E731
    assert counted(branched, x) == 2 * once
    ours = lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x @ kernel, default=lambda x: x @ kernel @ kernel)  # noqa: E731
    assert counted(ours, x) == once
    assert counted(jax.grad(lambda kernel: jnp.square(x @ kernel).sum()), kernel) == 2 * once
    assert counted(lambda x: x * 2 + 1, x) == 0


def test_a_convolution_counts_its_taps_and_not_the_zeros_between_dilated_pixels():
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    forward = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)

    def strided(images):
        return jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counted(strided, images) == forward
    assert counted(jax.grad(lambda images: strided(images).sum()), images) == 2 * forward


def test_a_step_of_chains_counts_as_its_formula_says_on_one_device_and_on_all():
    config = tiny("density2d", **{"model.width": 48})
    for devices in (1, 2):
        mesh = parallel.device_mesh(jax.devices()[:devices])
        assert math.isclose(duration.step_flops(config, mesh), floor.step_flops(config, devices), rel_tol=0.03)


def test_a_plan_of_two_stages_is_the_sum_of_both(monkeypatch):
    monkeypatch.setattr(duration, "step_flops", lambda config, mesh, stage: {None: 1, 0: 10, 1: 100}[stage])
    mesh = parallel.device_mesh()
    for after, total in ((0, 7), (3, 430), (9, 70)):
        config = tiny("digits_contrastive", **{"method.then.after": after, "train.num_steps": 7})
        assert duration.plan_flops(config, mesh) == total


def said(monkeypatch, days, num_steps=100_000):
    monkeypatch.setattr(duration, "plan_flops", lambda config, mesh: int(days * DAY * 1e9))
    monkeypatch.setattr(duration, "rate", lambda: 1e9 / duration.SHARE)
    lines = []
    config = tiny("digits_contrastive", **{"train.num_steps": num_steps})
    duration.warn(config, parallel.device_mesh(), lines.append)
    return lines


def test_a_plan_beyond_a_day_is_one_line_with_a_plan_of_a_day(monkeypatch):
    (line,) = said(monkeypatch, 4.04)
    assert "about 4 days on this CPU" in line
    assert f"train.num_steps={int(100_000 / 4.04)} ends within a day" in line
    assert "\n" not in line
    assert "about 2,100 days" in said(monkeypatch, 2_123.0)[0]
    assert said(monkeypatch, 0.9) == said(monkeypatch, 4.0, num_steps=duration.FEW) == []


def test_the_rate_is_that_of_the_clock():
    ticks = iter(range(100))
    assert duration.rate(lambda: float(next(ticks))) == 2 * duration.SIDE**3


@pytest.mark.whole
def test_the_line_comes_before_the_folder_is_made_and_not_again_when_the_run_goes_on(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(pace, "LONG", 1e-6)
    monkeypatch.setattr(duration, "FEW", 0)
    monkeypatch.setattr(console, "warn", lambda line: found.append((line, (tmp_path / "run").exists())))
    for num_steps in (3, 6):
        assert run.main(test_train.command(tmp_path / "run", train__num_steps=num_steps)) == 0
    assert [there for line, there in found if "by a count before its first step" in line] == [False]
