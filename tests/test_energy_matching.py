"""Energy matching: pairs against SciPy, a flow that is a shift, and a contrast whose optimum is the data's Gaussian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from scipy import optimize

from configs import digits
from ebm_jax import assemble, chains, checks, program, schema
from ebm_jax.distributed import parallel
from ebm_jax.methods import pairing
from ebm_jax.methods.energy_matching import energy_matching, fresh_contrast
from ebm_jax.methods.matching import matching
from ebm_jax.methods.method import Limits, Model
from ebm_jax.sampling.base import normal
from ebm_jax.sampling.kernel import Info, Kernel, Positions, unbounded
from ebm_jax.sampling.mala import mala
from ebm_jax.types import BadInput, Batch

N, D = 48, 5


def points(seed, n=N, d=D):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), jnp.float32)


def cost_of(noise, images):
    return np.square(np.asarray(noise, np.float64)[:, None] - np.asarray(images, np.float64)[None]).sum(-1)


def test_exact_pairs_are_those_of_scipys_assignment():
    noise, images = points(0), 0.3 * points(1) + 2.0
    paired = jax.jit(pairing.exact)(jax.random.key(0), noise, images)
    rows, columns = optimize.linear_sum_assignment(cost_of(noise, images))
    expected = np.empty_like(noise)
    expected[columns] = np.asarray(noise)[rows]
    np.testing.assert_array_equal(paired, expected)


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("kind", ["integers", "equal", "negative"])
def test_ties_and_any_cost_get_an_assignment_of_the_least_total(n, kind):
    rng = np.random.default_rng(n)
    cost = {"integers": rng.integers(0, 3, (n, n)), "equal": np.ones((n, n)), "negative": -rng.exponential(size=(n, n))}
    cost = cost[kind].astype(np.float32)
    owner = np.asarray(jax.jit(pairing.assignment)(cost))
    assert sorted(owner) == list(range(n))
    rows, columns = optimize.linear_sum_assignment(cost)
    np.testing.assert_allclose(cost[owner, np.arange(n)].sum(), cost[rows, columns].sum(), rtol=1e-6)


def test_a_cost_that_is_no_number_ends_all_the_same():
    owner = jax.jit(pairing.assignment)(jnp.full((5, 5), jnp.nan))
    assert owner.shape == (5,)


def test_costs_differ_from_squared_distances_only_by_what_moves_no_plan():
    noise, images = points(0), 0.3 * points(1) + 2.0
    off = np.asarray(pairing.squares(noise, images), np.float64) - cost_of(noise, images)
    off -= off.mean(0, keepdims=True)
    np.testing.assert_allclose(off - off.mean(1, keepdims=True), 0.0, atol=1e-4)


def test_the_entropic_plan_has_uniform_margins_and_lies_between_independence_and_the_exact_one():
    noise, images = points(0), points(1)
    cost = pairing.squares(noise, images)
    totals = []
    for blur in (0.01, 0.1, 1.0, 1e3):
        plan = np.exp(np.asarray(pairing.log_plan(cost, blur), np.float64))
        np.testing.assert_allclose(plan.sum(0), 1 / N, rtol=2e-2)
        np.testing.assert_allclose(plan.sum(1), 1 / N, rtol=2e-2)
        totals.append((plan * cost_of(noise, images)).sum())
    rows, columns = optimize.linear_sum_assignment(cost_of(noise, images))
    exact, independent = cost_of(noise, images)[rows, columns].mean(), cost_of(noise, images).mean()
    assert exact <= totals[0] < 1.1 * exact < totals[1] < totals[2] < totals[3]
    np.testing.assert_allclose(totals[3], independent, rtol=1e-2)


def test_each_image_draws_its_noise_from_its_column_of_the_plan():
    noise, images, draws = points(0, 6, 1), points(1, 6, 1), 20_000
    plan = np.exp(np.asarray(pairing.log_plan(pairing.squares(noise, images), 0.3), np.float64))
    pair = partial(pairing.sinkhorn, noise=noise, images=images, blur=0.3)
    drawn = np.asarray(jax.lax.map(pair, jax.random.split(jax.random.key(0), draws)))[..., 0]
    seen = (drawn[:, None] == np.asarray(noise)[None]).mean(0)
    np.testing.assert_allclose(seen, 6 * plan, atol=5 * np.sqrt(0.25 / draws))


# The flow

SHIFT = np.array([0.7, -0.2, 0.4, 0.0, 0.1], np.float32)
STD = 0.5


def of_the_shift(params, images, labels=None, dropout_key=None):
    """V(x) = -<m, x> / σ²: the potential of the flow that carries every point along m in unit time."""
    return -(images * params["m"][None]).sum(1) / STD**2


def fixed(noise):
    return normal((D,), 0.5, STD)._replace(sample=lambda key, n: noise)


def flow_loss(method, images, params):
    model = Model(of_the_shift, params)
    return method.loss(jax.random.key(2), model, Batch(images, jnp.zeros(len(images), jnp.int32)), ())


@pytest.mark.parametrize("name", ["exact", "independent"])
def test_a_shift_is_learnt_without_error_by_exact_pairs_alone(name):
    noise = 0.5 + STD * points(3)
    images = (noise + SHIFT[None])[np.random.default_rng(4).permutation(N)]
    method = energy_matching(
        fixed(noise), Limits(), None, pairing=name, blur=1.0, cutoff=1.0, class_dropout=0.0
    )  # fmt: skip
    value, (_, metrics) = flow_loss(method, images, {"m": jnp.asarray(SHIFT)})
    still, _ = flow_loss(method, images, {"m": jnp.zeros(D)})
    np.testing.assert_allclose(metrics["matching_error"], value / still, rtol=1e-4)
    if name == "exact":
        assert value < 1e-10
        np.testing.assert_allclose(still, np.square(SHIFT / STD).mean(), rtol=1e-5)
    else:
        assert value > 1.0


@pytest.mark.parametrize("cutoff", [0.4, 1.0])
def test_the_weight_is_1_up_to_the_cutoff_and_falls_to_0_at_the_data(cutoff):
    noise, n = jnp.full((20_000, D), 0.5), 20_000
    method = energy_matching(
        fixed(noise), Limits(), None, pairing="independent", blur=1.0, cutoff=cutoff, class_dropout=0.0
    )  # fmt: skip
    value, _ = flow_loss(method, noise + 0.5, {"m": jnp.zeros(D)})
    np.testing.assert_allclose(value, cutoff + (1.0 - cutoff) / 2.0, atol=5 * 0.3 / np.sqrt(n))


def test_the_flow_of_a_constant_length_ends_at_the_stated_share_in_equal_steps():
    config = changed(digits.get_config(), **{"method.name": "energy_matching", "sample.correction": 0.0})
    path = chains.make_path(config, 0.0)
    assert path is not None
    shares = []

    def project_at(share):
        def project(x):
            shares.append(share)
            return x

        return project

    kernel, number = path.stages_of(project_at)[0]
    state = kernel.init(jnp.zeros((1, 8, 8, 1)), lambda x: 4.0 * x.sum((1, 2, 3)))
    state, _ = kernel.step(jax.random.key(0), state, lambda x: 4.0 * x.sum((1, 2, 3)))
    assert number == config.sample.descent_steps
    # U = 4 Σ x has the gradient of the way from 1 (data) to 0 (noise) in units of σ² = ¼: a step goes 0.997 / number
    np.testing.assert_allclose(state.x, -0.997 / number, rtol=1e-4)
    assert not checks.is_density(changed(config, **{"method.then.after": 0}))


# The contrast

STILL = Kernel(
    lambda x, energy_fn: Positions(x),
    lambda key, state, energy_fn: (state, Info(energy_fn(state.x), jnp.ones(len(state.x)), jnp.ones(len(state.x)))),
)


def tilted(params, images, labels=None, dropout_key=None):
    return params["a"] * images[:, 0]


def contrast_of(images, noise, a, *, most, trim=0.25, data_share=0.5):
    method = fresh_contrast(
        fixed(noise), [(STILL, 1)], (), Limits(), data_share=data_share, trim=trim, most=most
    )  # fmt: skip

    def loss(a):
        batch = Batch(images, jnp.zeros(len(images), jnp.int32))
        return method.loss(jax.random.key(0), Model(tilted, {"a": a}), batch, ())[0]

    return jax.value_and_grad(loss)(jnp.float32(a))


def test_half_of_the_chains_start_at_the_data_and_the_highest_energies_are_left_out():
    images, noise = points(0, 8), points(1, 4)
    for a in (0.7, -0.7):
        value, gradient = contrast_of(images, noise, a, most=np.inf)
        ends = np.concatenate([images[:4, 0], noise[:, 0]]).astype(np.float64)
        lowest = np.sort(a * ends)[:6] / a
        expected = np.asarray(images[:, 0], np.float64).mean() - lowest.mean()
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
        np.testing.assert_allclose(value, a * expected, rtol=1e-5)


def test_samples_far_above_the_data_are_not_pushed_further():
    images, noise = points(0, 8), points(1, 4) + 5.0
    value, gradient = contrast_of(images, noise, 1.0, most=0.5, trim=0.0)
    assert (value, gradient) == (-0.5, 0.0)
    value, gradient = contrast_of(images, noise, 1.0, most=50.0, trim=0.0)
    assert -50.0 < value < -0.5
    assert gradient < -0.5


def bowl(params, x, labels=None, dropout_key=None):
    """T |x - ½|² / (2 v): at the temperature T the normal law of the variance v."""
    return 0.15 * jnp.square(x - 0.5).sum(1) / (2.0 * jnp.exp(params["log_variance"]))


def test_at_the_temperature_of_the_chains_the_contrast_is_at_rest_at_the_datas_gaussian():
    variance, batches = 0.04, 200
    kernel = mala(0.1, temperature=0.15, project=unbounded)
    method = fresh_contrast(
        normal((2,), 0.5, 0.2), [(kernel, 30)], (), Limits(), data_share=0.5, trim=0.0, most=np.inf
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = jnp.asarray(0.5 + np.sqrt(variance) * rng.normal(size=(batches, 256, 2)), jnp.float32)

    @jax.jit
    def gradients(log_variance):
        def one(key, x):
            batch = Batch(x, jnp.zeros(256, jnp.int32))
            return jax.grad(lambda v: method.loss(key, Model(bowl, {"log_variance": v}), batch, ())[0])(log_variance)

        return jax.lax.map(lambda pair: one(*pair), (jax.random.split(jax.random.key(1), batches), data))

    for ratio, sign in ((1.0, 0), (2.0, 1), (0.5, -1)):
        found = np.asarray(gradients(jnp.log(ratio * variance)))
        error = found.std() / np.sqrt(batches)
        assert abs(found.mean()) < 5 * error if sign == 0 else np.sign(found.mean()) == sign, (ratio, found.mean())
        assert sign == 0 or abs(found.mean()) > 20 * error


# A whole run

SMALL = {"model.width": 8, "train.steps_per_call": 1, "method.then.after": 0}
RUN = {"method.name": "energy_matching", "method.then.name": "fresh_contrast", "method.then.weight": 1e-3}


def test_a_run_goes_from_the_flow_to_the_contrast_which_keeps_no_chains():
    method = assemble.make_method(changed(digits.get_config(), **RUN))
    assert method.chains(jax.eval_shape(method.init, jax.random.key(0))) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.energy_matching.pairing": "nearest"}, "method.energy_matching.pairing"),
        ({"method.then.name": "fresh"}, "method.then.name 'fresh' is unknown"),
        ({"chain.kernel": "mala", "method.then.after": 0}, "the energy of method.name energy_matching only orders"),
    ],
)
def test_bad_values_get_a_line(changes, message):
    with pytest.raises(BadInput, match=message):
        checks.check(changed(digits.get_config(), **RUN | changes), 1)


def test_without_pairs_matching_draws_as_before():
    """equilibrium's noise must not hang on there being pairings: runs of before go on bit for bit."""
    noise_key = jax.random.split(jax.random.key(2), 5)[1]
    seen = []
    base = normal((D,), 0.5, STD)._replace(sample=lambda key, n: seen.append(key) or points(0))
    method = matching(base, Limits(), None, length=jnp.ones_like, class_dropout=0.0)
    flow_loss(method, points(1), {"m": jnp.zeros(D)})
    assert (jax.random.key_data(seen[0]) == jax.random.key_data(noise_key)).all()


@pytest.mark.parametrize("name", [pytest.param("exact", marks=pytest.mark.whole), "sinkhorn"])
def test_each_device_pairs_its_own_share(name):
    config = schema.dry_run(changed(digits.get_config(), **{"method.name": "energy_matching"} | SMALL))
    config = changed(config, **{"method.energy_matching.pairing": name, "train.batch_size": 16, "data.source": "noise"})
    mesh = parallel.device_mesh(jax.devices()[:2])
    state, step = program.make_state(config, mesh), program.make_step(config, mesh)
    rng = np.random.default_rng(0)
    batch = Batch(rng.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8), np.arange(16, dtype=np.int32) % 10)
    for _ in range(2):
        state, metrics = step(state, program.place_batch(config, mesh, batch))
    assert np.isfinite(jax.device_get(metrics["matching_error"]))
