"""The loops and wrappers of kernels, the Metropolis test they share, and BlackJAX's kernels beside ours."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import diffusions
from scipy import stats

from ebm_jax.sampling.hmc import hmc, no_walls
from ebm_jax.sampling.kernel import (
    Info,
    end_of_stages,
    metropolis,
    point,
    projection,
    resampled,
    run,
    run_stages,
    scheduled,
    trace_stages,
    unbounded,
    unit_box,
)
from ebm_jax.sampling.langevin import langevin
from ebm_jax.sampling.mala import mala

CHAINS = 50_000
KERNELS = {
    "langevin": lambda temperature: langevin(0.1, temperature=temperature, project=unbounded),
    "mala": lambda temperature: mala(0.3, temperature=temperature, project=unbounded),
    "hmc": lambda temperature: hmc(0.7, 2, temperature=temperature, project=unbounded, reflect=no_walls),
}


def normal_energy(mean, std):
    """U of N(mean, std²) in each coordinate."""
    return lambda x: 0.5 * jnp.square((x - mean) / std).sum(1)


def flat(x):
    return 0.0 * x.sum(1)


def quartic(x):
    """Coupled double wells, without symmetry between the coordinates."""
    return jnp.square(jnp.square(x) - 0.5).sum(1) + 0.4 * x[:, 0] * x[:, 1] + 0.3 * x[:, 1]


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_variance(values, expected):
    """Normal values of mean 0 have this variance, within five standard errors."""
    values = np.asarray(values, np.float64)
    assert abs(np.square(values).mean() - expected) < 5 * expected * np.sqrt(2 / values.size)


def assert_same_means(ours, theirs):
    """Means agree column by column, within five standard errors of the difference."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    standard_error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 5 * standard_error).all()


# The loops


def test_stages_are_runs_one_after_another_each_with_its_own_key():
    stages = [(KERNELS["mala"](1.0), 3), (KERNELS["langevin"](0.5), 2)]
    start = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)

    def by_hand(key):
        x, infos = start, []
        for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, 2), strict=True):
            x, info = run(kernel, key_stage, x, quartic, num_steps)
            infos.append(info)
        return x, infos

    x, info = jax.jit(lambda key: run_stages(stages, key, start, quartic))(jax.random.key(0))
    expected, infos = jax.jit(by_hand)(jax.random.key(0))
    np.testing.assert_array_equal(x, expected)
    for name in Info._fields:
        assert getattr(info, name).shape == (5, 5)
        np.testing.assert_array_equal(getattr(info, name), np.concatenate([getattr(one, name) for one in infos]))


def test_the_end_of_stages_is_that_of_a_run_and_a_projection_at_it_asks_for_no_energy():
    stages = [(KERNELS["mala"](1.0), 3), (KERNELS["langevin"](0.5), 2), (projection(unit_box), 1)]
    start, seen = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32), []

    def counted(x):
        seen.append(1)
        return quartic(x)

    expected, _ = run_stages(stages, jax.random.key(0), start, quartic)
    np.testing.assert_allclose(end_of_stages(stages, jax.random.key(0), start, counted), expected, rtol=1e-5)
    assert len(seen) == 3  # as MALA starts, in its step, and in that of Langevin
    inside = end_of_stages(stages[2:], jax.random.key(1), start, counted)
    np.testing.assert_array_equal(inside, np.clip(start, 0, 1))
    assert len(seen) == 3


def trace(kernel, key, x, energy_fn, num_frames, every):
    return trace_stages([(kernel, num_frames * every)], key, x, energy_fn, every)


@pytest.mark.optimised
@pytest.mark.parametrize(("num_frames", "every"), [(6, 1), (2, 3)])
def test_the_last_frame_is_where_a_run_of_as_many_steps_ends(num_frames, every):
    kernel, start = KERNELS["langevin"](1.0), jnp.full((4, 2), 0.5)
    frames = jax.jit(lambda key: trace(kernel, key, start, quartic, num_frames, every))(jax.random.key(3))
    stages = [(kernel, num_frames * every)]
    end, _ = jax.jit(lambda key: run_stages(stages, key, start, quartic))(jax.random.key(3))
    assert frames.shape == (num_frames, 4, 2)
    np.testing.assert_array_equal(frames[-1], end)


def test_frames_are_taken_after_every_so_many_steps_and_the_start_is_none():
    halving = langevin(0.25, temperature=0.0, project=unbounded)
    frames = trace(halving, jax.random.key(0), jnp.ones((1, 1)), lambda x: jnp.square(x).sum(1), 4, 3)
    np.testing.assert_array_equal(frames[:, 0, 0], 0.5 ** np.array([3, 6, 9, 12]))


# Schedules


@pytest.mark.optimised
@pytest.mark.whole
@pytest.mark.parametrize("name", KERNELS)
def test_a_constant_schedule_is_the_kernel_itself_bit_for_bit(name):
    start = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)), jnp.float32)
    values = jnp.full(5, 0.7)
    annealed = jax.jit(lambda values, key: run(scheduled(KERNELS[name], values), key, start, quartic, 5))
    plain = jax.jit(lambda value, key: run(KERNELS[name](value), key, start, quartic, 5))
    key = jax.random.key(0)
    assert_equal(annealed(values, key), plain(values[0], jax.random.clone(key)))


def test_each_step_runs_at_its_own_temperature_and_later_ones_at_the_last():
    # Under a flat energy every step adds N(0, 2 s T).
    values, s = jnp.array([1.0, 0.25, 4.0]), 0.1
    kernel = scheduled(lambda temperature: langevin(s, temperature=temperature, project=unbounded), values)
    frames = jax.jit(lambda key: trace(kernel, key, jnp.zeros((CHAINS, 1)), flat, 5, 1))(jax.random.key(0))
    moves = np.diff(np.asarray(frames)[:, :, 0], axis=0, prepend=np.zeros((1, CHAINS)))
    for move, temperature in zip(moves, [1.0, 0.25, 4.0, 4.0, 4.0], strict=True):
        assert_variance(move, 2 * s * temperature)
    assert_variance(frames[-1], 2 * s * 13.25)


def test_a_last_step_at_temperature_zero_is_free_of_noise():
    s, kernel_of = 0.25, lambda temperature: langevin(0.25, temperature=temperature, project=unbounded)
    warm, cold = jnp.array([1.0, 0.5]), jnp.array([1.0, 0.5, 0.0])
    start, energy_fn = jnp.zeros((50, 2)), normal_energy(0.5, 1.0)
    key, num = jax.random.key(0), 3
    frames = jax.jit(lambda key: trace(scheduled(kernel_of, cold), key, start, energy_fn, num, 1))(key)
    before, last = frames[-2], frames[-1]
    np.testing.assert_array_equal(last, before - s * (before - 0.5))  # s and the mean are powers of two
    noisy = trace(scheduled(kernel_of, warm), jax.random.clone(key), start, energy_fn, num, 1)
    assert (np.asarray(noisy[-1]) != np.asarray(last)).all()


@pytest.mark.whole
def test_an_annealed_chain_ends_in_the_deeper_well_more_often_than_a_cold_one():
    # Two wells of one width lie at 0.25 and 0.75. The second is deeper by 0.4, and 1.25 below the barrier. At T = 0.1
    # it holds 98 % of the law, but chains do not cross. At T = 0.6 it holds 66 %, and they do.
    depth, width = 0.4, 0.05

    def wells(x):
        left, right = (-0.5 * jnp.square((x[:, 0] - mean) / width) for mean in (0.25, 0.75))
        return -jnp.logaddexp(left, right + depth / 0.1) * 0.1

    def share(values, num_steps):
        kernel = scheduled(lambda temperature: mala(0.01, temperature=temperature, project=unit_box), values)
        x, _ = run(kernel, jax.random.key(0), jnp.full((2_000, 1), 0.25), wells, num_steps)
        return (x[:, 0] > 0.5).mean()

    num_steps = 1_500
    shares = jax.jit(jax.vmap(lambda values: share(values, num_steps)))
    with jax.debug_key_reuse(False):
        cold, annealed = shares(jnp.stack([jnp.full(num_steps, 0.1), jnp.geomspace(1.0, 0.1, num_steps)]))
    warm, coldest = (1 / (1 + np.exp(-depth / temperature)) for temperature in (0.6, 0.1))
    assert cold < 0.1
    assert warm < annealed < coldest + 5 * np.sqrt(coldest * (1 - coldest) / 2_000)


# Energies drawn anew at every step


def two_means(key):
    """N(-1.5, 1) or N(1.5, 1), one for all chains."""
    return normal_energy(jnp.where(jax.random.bernoulli(key), 1.5, -1.5), 1.0)


def test_langevin_under_slopes_drawn_anew_walks_at_random():
    s, num_steps = 0.5, 4

    def chain(key):
        def energy_of(key):
            slope = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
            return lambda x: slope * x.sum(1)

        kernel = resampled(langevin(s, temperature=0.0, project=unbounded), energy_of)
        return run(kernel, key, jnp.zeros((1, 1)), lambda x: 1e3 * x.sum(1), num_steps)[0][0, 0]

    with jax.debug_key_reuse(False):
        x = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 20_000)))
    share = (x[:, None] == s * np.arange(-num_steps, num_steps + 1, 2)).mean(0)
    expected = stats.binom(num_steps, 0.5).pmf(np.arange(num_steps + 1))
    assert share.sum() == 1
    assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / x.size)).all()


@pytest.mark.parametrize("kernel", [mala(0.4, project=unbounded), hmc(0.9, 1, project=unbounded, reflect=no_walls)])
def test_a_metropolis_kernel_under_energies_drawn_anew_has_the_mean_of_their_densities_as_law(kernel):
    def chain(key):
        x, _ = run(resampled(kernel, two_means), key, jnp.zeros((1, 1)), normal_energy(0.0, 1.0), 80)
        return x[0, 0]

    with jax.debug_key_reuse(False):
        x = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 20_000)), np.float64)
    for power, expected in {1: 0.0, 2: 1 + 1.5**2, 4: 1.5**4 + 6 * 1.5**2 + 3}.items():
        values = x**power
        assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(x.size), power


# The Metropolis test


def test_the_shared_test_accepts_with_the_probability_of_the_ratio_and_never_outside():
    log_ratio = np.array([-50.0, -1.0, np.log(0.75), 0.0, 3.0, np.inf, -np.inf])
    old = point(jnp.zeros((7 * 4_000, 1)), flat)
    new = point(jnp.full((7 * 4_000, 1), 0.5), flat)
    ratios = jnp.asarray(np.repeat(log_ratio, 4_000), jnp.float32)
    moved, info = metropolis(jax.random.key(0), old, new, ratios, unit_box)
    probability = np.minimum(1, np.exp(np.minimum(log_ratio, 0)))
    share = (np.asarray(moved.x)[:, 0] == 0.5).reshape(7, -1).mean(1)
    assert (np.abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 4_000) + 1e-12).all()
    np.testing.assert_allclose(info.acceptance.reshape(7, -1).mean(1), probability, rtol=1e-5)
    outside = point(jnp.full((7 * 4_000, 1), 1.5), flat)
    moved, info = metropolis(jax.random.key(1), old, outside, ratios, unit_box)
    assert_equal(moved, old)
    np.testing.assert_array_equal(info.acceptance, 0)


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_proposal_that_is_not_finite_is_refused_with_acceptance_zero(name):
    bad = jnp.array([np.nan, np.inf, -np.inf, 1.0])

    def broken(x):
        return jnp.where(x[:, 0] == 0.0, 0.0, bad) + 0.0 * x.sum(1)

    x, info = jax.jit(lambda key: run(KERNELS[name](1.0), key, jnp.zeros((4, 2)), broken, 8))(jax.random.key(0))
    np.testing.assert_array_equal(x[:3], 0)
    np.testing.assert_array_equal(info.acceptance[:, :3], 0)
    np.testing.assert_array_equal(info.energy[:, :3], 0)
    assert (info.acceptance[:, 3] > 0).all()


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_proposal_whose_gradient_is_not_a_number_is_refused(name):
    @jax.custom_jvp
    def energy_fn(x):
        return flat(x)

    @energy_fn.defjvp
    def _(primals, tangents):
        slope = jnp.where(primals[0] == 0.0, 0.0, jnp.nan)
        return flat(primals[0]), (slope * tangents[0]).sum(1)

    x, info = run(KERNELS[name](1.0), jax.random.key(0), jnp.zeros((8, 2)), energy_fn, 3)
    np.testing.assert_array_equal(x, 0)
    np.testing.assert_array_equal(info.acceptance, 0)


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_start_of_infinite_energy_is_left_at_once(name):
    def wall(x):
        return jnp.where((x == 0.0).all(1), jnp.inf, 0.0) + 0.0 * x.sum(1)

    x, info = run(KERNELS[name](1.0), jax.random.key(0), jnp.zeros((8, 2)), wall, 1)
    assert (np.asarray(x) != 0).all()
    np.testing.assert_array_equal(info.acceptance, 1)


# BlackJAX


START = jnp.array([0.3, -0.2])


def log_density(x):
    return -quartic(x[None])[0]


def one_of_ours(name, s, num_steps):
    kernel = {
        "langevin": langevin(s, project=unbounded),
        "mala": mala(s, project=unbounded),
        "hmc": hmc(s, 3, project=unbounded, reflect=no_walls),
    }[name]

    def chain(key):
        x, info = run(kernel, key, START[None], quartic, num_steps)
        return x[0], info.acceptance[:, 0]

    return jax.jit(jax.vmap(chain))


def one_of_theirs(name, s, num_steps):
    euler = diffusions.overdamped_langevin(jax.value_and_grad(log_density))
    mala, hmc = blackjax.mala(log_density, s), blackjax.hmc(log_density, s, jnp.ones(2), 3)
    init, step = {
        "langevin": (
            lambda x: diffusions.DiffusionState(*mala.init(x)),
            lambda key, state: (euler(key, state, s), None),
        ),
        "mala": (mala.init, mala.step),
        "hmc": (hmc.init, hmc.step),
    }[name]

    def chain(key):
        def one(state, key):
            state, info = step(key, state)
            return state, jnp.ones(()) if info is None else info.acceptance_rate

        state, rates = jax.lax.scan(one, init(START), jax.random.split(key, num_steps))
        return state.position, rates

    return jax.jit(jax.vmap(chain))


@pytest.mark.parametrize(("name", "step_size"), [("langevin", 0.05), ("mala", 0.3), ("hmc", 0.6)])
def test_acceptances_and_moments_are_those_of_blackjax_and_from_one_key_so_are_the_chains(name, step_size):
    chains, num_steps = 10_000, 8
    ours, theirs = one_of_ours(name, step_size, num_steps), one_of_theirs(name, step_size, num_steps)
    with jax.debug_key_reuse(False):  # vmap transposes the scanned keys, which the checker calls a use
        keys, others = (jax.random.split(jax.random.key(seed), chains) for seed in (1, 2))
        x, acceptance = ours(keys)
        for value, other in zip((x, acceptance), theirs(keys), strict=True):
            # Both split a step's key, for noise and for the test. Rounding seldom decides a test or grows so far.
            assert (np.abs(value - other) > 1e-3).any(1).mean() < 0.01
        other_x, other_acceptance = theirs(others)
    assert name == "langevin" or 0.4 < acceptance.mean() < 0.95
    assert_same_means(acceptance, other_acceptance)
    for power in (1, 2, 3, 4):
        assert_same_means(np.power(x, power), np.power(other_x, power))
