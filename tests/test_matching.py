"""Equilibrium matching on a mixture of Gaussians in one dimension, where every field is the gradient of an energy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed, equations
from test_guard import judged, metrics_for

from configs import digits_contrastive as digits
from ebm_jax import assemble, chains, checks, opening, program, train
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import likelihood
from ebm_jax.methods.matching import decay, equilibrium, healthy
from ebm_jax.methods.method import Limits, Model
from ebm_jax.models import energy
from ebm_jax.sampling import kernel
from ebm_jax.sampling.base import centred_normal
from ebm_jax.storage import checkpoint
from ebm_jax.storage.fingerprint import named_leaves
from ebm_jax.types import BadInput, Batch

MEANS, SHARES, STD = np.array([0.2, 0.7]), np.array([0.4, 0.6]), 0.06
FLAT_UNTIL, STRENGTH = 0.8, 4.0
SIDE = np.linspace(-2.0, 3.0, 5001)  # base N(½, ¼): five standard deviations
TIMES = (np.arange(1000) + 0.5) / 1000
IMAGES = 4096


def optimum(x):
    """The field E[c(γ) (ε - x) | x_γ] / σ² in pixel units at points [n], by summing over γ and the modes."""
    total, field = np.zeros_like(x), np.zeros_like(x)
    for mean, share in zip(MEANS, SHARES, strict=True):
        for time in TIMES:
            variance = (time * STD) ** 2 + ((1 - time) * 0.5) ** 2
            away = x - (time * mean + (1 - time) * 0.5)
            density = share * np.exp(-(away**2) / (2 * variance)) / np.sqrt(variance)
            covariance = (1 - time) * 0.5**2 - time * STD**2
            length = STRENGTH * min(1.0, (1 - time) / (1 - FLAT_UNTIL))
            total += density
            field += density * length * (0.5 - mean + covariance / variance * away)
    return field / np.maximum(total, 1e-300) / 0.5**2


FIELD = optimum(SIDE)
ENERGY = np.concatenate([[0.0], np.cumsum((FIELD[1:] + FIELD[:-1]) / 2) * (SIDE[1] - SIDE[0])])


@jax.custom_jvp
def of_the_grid(x):
    return jnp.interp(x, jnp.asarray(SIDE, jnp.float32), jnp.asarray(ENERGY, jnp.float32))


@of_the_grid.defjvp
def _(primals, tangents):
    slope = jnp.interp(primals[0], jnp.asarray(SIDE, jnp.float32), jnp.asarray(FIELD, jnp.float32))
    return of_the_grid(primals[0]), slope * tangents[0]


def apply(params, images, labels=None, dropout_key=None):
    """The optimum, plus `bend` times an energy with a gradient everywhere."""
    x = images[:, 0]
    return (
        params["scale"] * of_the_grid(x)
        + params["bend"] * jnp.sin(3.0 * x)
        + params["labels"] * (0.0 if labels is None else labels.astype(jnp.float32) * x)
    )


METHOD = equilibrium(
    centred_normal((1,)), Limits(), None, flat_until=FLAT_UNTIL, start=1.0, strength=STRENGTH, class_dropout=0.0
)


def batch_of(seed, size=IMAGES):
    rng = np.random.default_rng(seed)
    modes = rng.choice(2, size, p=SHARES)
    images = (MEANS[modes] + STD * rng.normal(size=size))[:, None].astype(np.float32)
    return Batch(jnp.asarray(images), jnp.zeros(size, jnp.int32))


@jax.jit
def loss_of(params, seed, batch):
    return METHOD.loss(jax.random.key(seed), Model(apply, params), batch, ())


def params_for(scale=1.0, bend=0.0, labels=0.0):
    return {"scale": jnp.float32(scale), "bend": jnp.float32(bend), "labels": jnp.float32(labels)}


def test_the_mean_of_targets_given_the_image_is_the_minimum():
    """Around it the loss has no slope in any direction: those of a steeper energy and of a wave."""
    slope = jax.jit(jax.grad(lambda params, seed, batch: loss_of(params, seed, batch)[0]))
    slopes = [jax.device_get(slope(params_for(), seed, batch_of(seed))) for seed in range(60)]
    for name in ("scale", "bend"):
        values = np.array([one[name] for one in slopes])
        assert abs(values.mean()) < 4.5 * values.std(ddof=1) / np.sqrt(len(values)), name
    off = [jax.device_get(slope(params_for(bend=0.1), seed, batch_of(seed)))["bend"] for seed in range(20)]
    assert np.mean(off) > 8 * np.std(off, ddof=1) / np.sqrt(len(off)), "a bent energy is seen"


def test_the_error_of_a_constant_energy_is_1_and_that_of_the_optimum_is_the_unexplained_share():
    constant = [loss_of(params_for(scale=0.0), seed, batch_of(seed))[1][1] for seed in range(3)]
    assert all(abs(float(one["matching_error"]) - 1) < 1e-5 for one in constant)
    found = [float(loss_of(params_for(), seed, batch_of(seed))[1][1]["matching_error"]) for seed in range(40)]
    rng = np.random.default_rng(0)
    time, noise = rng.random(400_000), 0.5 + 0.5 * rng.normal(size=400_000)
    x = MEANS[rng.choice(2, 400_000, p=SHARES)] + STD * rng.normal(size=400_000)
    target = STRENGTH * np.minimum(1.0, (1 - time) / (1 - FLAT_UNTIL)) * (noise - x) / 0.25
    explained = np.interp(time * x + (1 - time) * noise, SIDE, FIELD)
    expected = np.square(target - explained).mean() / np.square(target).mean()
    assert (
        abs(np.mean(found) - expected) < 5 * np.std(found, ddof=1) / np.sqrt(40) + 0.003
    )  # the Monte Carlo's own error


def test_the_error_near_the_data_is_the_mean_of_small_batches_and_none_of_them_explodes():
    """Of the constant energy 1, of the optimum a Monte Carlo's; a batch of 16 often has one image there or none."""
    batches = jax.tree.map(lambda rows: rows.reshape(1000, 16, *rows.shape[1:]), batch_of(0, 16_000))
    near_data = jax.jit(jax.vmap(lambda params, *of_batch: loss_of(params, *of_batch)[1][1], in_axes=(None, 0, 0)))
    rng = np.random.default_rng(0)
    time, noise = 0.9 + 0.1 * rng.random(400_000), 0.5 + 0.5 * rng.normal(size=400_000)
    x = MEANS[rng.choice(2, 400_000, p=SHARES)] + STD * rng.normal(size=400_000)
    target = STRENGTH * (1 - time) / (1 - FLAT_UNTIL) * (noise - x) / 0.25
    for scale in (0.0, 1.0):
        found = np.asarray(near_data(params_for(scale), jnp.arange(1000), batches)["matching_error_near_data"])
        field = scale * np.interp(time * x + (1 - time) * noise, SIDE, FIELD)
        expected = np.square(target - field).mean() / np.square(target).mean()
        bias = 0.1 * expected  # of a ratio with a mean over 16 images below
        assert abs(found.mean() - expected) < bias + 5 * found.std(ddof=1) / np.sqrt(len(found))
        assert found.max() < 20 * expected


def test_descent_of_the_optimum_leads_from_noise_to_the_modes():
    config = changed(
        digits.get_config(),
        chain__kernel="descent",
        chain__base="centred_normal",
        chain__step_size=1e-3,
        sample__num_steps=100,
        sample__quiet_steps=0,
    )
    start = 0.5 + 0.5 * jax.random.normal(jax.random.key(0), (2000, 1))
    x, _ = kernel.run_stages(chains.make_stages(config), jax.random.key(1), start, energy.bind(apply, params_for()))
    nearest = np.abs(np.asarray(x) - MEANS).min(1)
    assert np.quantile(nearest, 0.9) < 2.5 * STD
    share = (np.asarray(x)[:, 0] < 0.45).mean()
    assert abs(share - SHARES[0]) < 0.1


def test_the_decay_is_flat_then_falls_to_0_and_may_begin_higher():
    share = jnp.asarray([0.0, 0.4, 0.8, 0.9, 1.0])
    np.testing.assert_allclose(decay(share, 0.8, 1.0, 4.0), [4, 4, 4, 2, 0], atol=1e-6)
    np.testing.assert_allclose(decay(share, 0.0, 1.0, 1.0), [1, 0.6, 0.2, 0.1, 0], atol=1e-6)
    np.testing.assert_allclose(decay(share, 0.8, 3.0, 1.0), [3, 2, 1, 0.5, 0], atol=1e-6)


def test_the_stated_share_of_labels_is_dropped():
    labels = Batch(batch_of(0).images, jnp.ones(IMAGES, jnp.int32))
    seen = []

    def noted(params, images, labels=None, dropout_key=None):
        seen.append(labels)
        return apply(params, images)

    method = equilibrium(
        centred_normal((1,)),
        Limits(),
        lambda labels: jnp.full_like(labels, 7),
        flat_until=0.8,
        start=1.0,
        strength=4.0,
        class_dropout=0.1,
    )
    method.loss(jax.random.key(0), Model(noted, params_for()), labels, ())
    assert set(np.unique(seen[0])) == {1, 7}
    assert abs((np.asarray(seen[0]) == 7).mean() - 0.1) < 5 * np.sqrt(0.09 / IMAGES)


def test_the_guard_sees_a_loss_far_above_a_constant_energys():
    limits = Limits(healthy(error=5.0), patience=2, window=3)
    assert judged([metrics_for(matching_error=1.2)] * 9, limits) == [None] * 9
    assert "matching_error is 6" in judged([metrics_for(matching_error=6.0)] * 2, limits)[-1]


def of(**changes):
    return changed(
        digits.get_config(),
        **{
            "model__name": "unet", "model__spectral_norm": False, "method__name": "equilibrium",
            "chain__base": "centred_normal", "chain__kernel": "descent", "sample__quiet_steps": 0,
        } | changes,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_a_metropolis_test_is_refused_for_an_energy_that_is_no_density(kernel):
    with pytest.raises(
        BadInput, match=rf"^the Metropolis test of chain.kernel {kernel} needs exp.*use descent or langevin"
    ):
        checks.usable(of(chain__kernel=kernel))
    checks.usable(of(chain__kernel=kernel, method__then__after=10))


def test_annealed_importance_sampling_is_refused_for_it():
    with pytest.raises(BadInput, match=r"^metric ais needs exp.*only orders images.*leave it out of eval.metrics"):
        likelihood.check(of())
    likelihood.check(of(method__then__after=10))


def test_a_density_in_the_plane_is_refused_for_it():
    plane = {"data__source": "density", "data__shape": (2,), "model__name": "mlp", "data__name": "rings"}
    with pytest.raises(BadInput, match=r"^data.source density, .* only orders images.*use method.name contrastive"):
        checks.usable(of(**plane))
    checks.usable(of(method__then__after=10, **plane))


def test_class_dropout_needs_a_network_with_an_energy_of_no_class():
    config = of(model__num_classes=10)
    assert assemble.make_method(config) is not None
    with pytest.raises(BadInput, match=r"class_dropout 0.1 needs a network.*model.name small has none; use 0, or unet"):
        assemble.make_method(changed(config, model__name="small"))
    assemble.make_method(changed(config, model__name="small", method__equilibrium__class_dropout=0.0))
    with pytest.raises(BadInput, match=r"^sample.guidance 0.5 needs a model of classes"):
        checks.usable(of(sample__guidance=0.5))


def staged_run(num_steps):
    return of(
        model__width=8, method__then__after=3, chain__kernel="langevin", chain__langevin__tied=True,
        chain__temperature=0.01, chain__num_steps=2, chain__step_size=1e-3, buffer__capacity=32,
        buffer__descent_steps=4,
        train__batch_size=16, train__num_steps=num_steps, guard__enabled=False, checkpoint__every=2, log__every=1,
        log__images_every=0, sample__num_images=4, sample__batch_size=4, sample__descent_steps=5, sample__num_steps=4,
    )  # fmt: skip


def restored(folder):
    config = staged_run(6)
    with checkpoint.open_manager(folder, config.checkpoint.keep) as manager:
        return checkpoint.restore_newest(manager, program.abstract_state(config, parallel.device_mesh())).state


@pytest.mark.whole
def test_a_run_stopped_before_the_second_phase_goes_on_through_it_bit_for_bit(tmp_path):
    train.train(staged_run(6), tmp_path / "whole")
    train.train(staged_run(2), tmp_path / "parts")
    train.train(staged_run(6), tmp_path / "parts")
    states = [restored(tmp_path / name) for name in ("whole", "parts")]
    states = [state._replace(key=jax.random.key_data(state.key)) for state in states]
    for name, leaf in named_leaves(states[0]).items():
        np.testing.assert_array_equal(leaf, named_leaves(states[1])[name], err_msg=name)
    assert int(states[0].memory[1].then.visits.max()) > 1, "the second phase moved chains"
    images = opening.open_run(tmp_path / "whole").samples(jax.random.key(0)).images
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize(("per_call", "stages"), [(1, [0, 0, 0, 1, 1]), (2, [0, None, 1]), (3, [0, 1])])
def test_each_call_is_of_the_steps_before_or_after_the_chains_join(per_call, stages):
    config = changed(staged_run(6), train__steps_per_call=per_call)
    assert [program.stage_of(config, step) for step in range(0, 5, per_call)] == stages
    assert program.stage_of(of(), 7) is None


@pytest.mark.whole
def test_the_program_of_one_stage_does_what_that_of_both_does_and_has_no_chains_before_they_join():
    config, mesh = staged_run(6), parallel.device_mesh(jax.devices()[:2])
    rng = np.random.default_rng(0)
    batches = [
        program.place_batch(config, mesh, Batch(rng.integers(0, 256, (16, 8, 8, 1), np.uint8), np.zeros(16, np.int32)))
        for _ in range(5)
    ]
    loops = [
        sum(one.primitive.name in ("scan", "while") for one in equations(jaxpr_of(config, mesh, batches[0], stage)))
        for stage in (0, 1)
    ]
    assert loops[0] < loops[1]
    ends = []
    for stages in ([None] * 5, [0, 0, 0, 1, 1]):
        state = program.make_state(config, mesh)
        for stage, batch in zip(stages, batches, strict=True):
            state, metrics = program.make_step(config, mesh, 0, stage)(state, batch)
        ends.append((state.ema, state.memory[1].step, metrics))
    assert set(ends[0][2]) == set(ends[1][2])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *ends)


def jaxpr_of(config, mesh, batch, stage):
    return jax.make_jaxpr(program.make_step(config, mesh, 0, stage))(program.abstract_state(config, mesh), batch).jaxpr


@pytest.mark.parametrize(("dtype", "unrolled"), [("bfloat16", False), ("float32", True)])
def test_several_steps_of_a_call_are_a_loop_on_a_cpu_only_if_the_networks_gradients_are_fast_there(dtype, unrolled):
    config = changed(staged_run(6), model__name="unet", model__dtype=dtype, train__steps_per_call=3)
    config = changed(config, model__unet__multipliers=(1,))
    mesh = parallel.device_mesh(jax.devices()[:2])
    batches = program.place_batches(
        config, mesh, [Batch(np.zeros((16, 8, 8, 1), np.uint8), np.zeros(16, np.int32))] * 3
    )
    state = program.abstract_state(config, mesh)
    jaxpr = jax.make_jaxpr(program.make_steps(config, mesh, 0, 0))(state, batches).jaxpr
    of_steps = [one for one in equations(jaxpr) if one.primitive.name == "scan" and one.params["length"] == 3]
    assert {one.params["unroll"] for one in of_steps} == {3 if unrolled else 1}
