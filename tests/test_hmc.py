"""HMC's law is exact at any step size, with and without walls; one leap of it is MALA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import integrators, metrics
from scipy import stats

from ebm_jax.sampling.hmc import Phase, hmc, leapfrog, no_walls, unit_box_walls
from ebm_jax.sampling.kernel import point, run, unbounded, unit_box
from ebm_jax.sampling.mala import mala
from ebm_jax.types import BadInput

CHAINS = 50_000
FLOAT32 = float(np.finfo(np.float32).eps)
on_the_line = partial(hmc, project=unbounded, reflect=no_walls)


def normal_energy(mean, std):
    """U of N(mean, std²) in each coordinate."""
    return lambda x: 0.5 * jnp.square((x - mean) / std).sum(1)


def quartic(x):
    """A chain of coupled double wells, without symmetry between its coordinates."""
    return (jnp.square(jnp.square(x) - 0.5)).sum(1) + 0.4 * x[:, 0] * x[:, 1] + 0.3 * x[:, 1]


def end(kernel, x, energy_fn, num_steps, seed=0):
    chain = jax.jit(partial(run, kernel, energy_fn=energy_fn, num_steps=num_steps))
    x, info = chain(jax.random.key(seed), jnp.asarray(x, jnp.float32))
    return np.asarray(x, np.float64), jax.tree.map(np.asarray, info)


def assert_follows(values, law):
    """The first four moments within five standard errors of the law's own."""
    for power in range(1, 5):
        expected = law.moment(power)
        standard_error = np.sqrt((law.moment(2 * power) - expected**2) / len(values))
        assert abs(np.mean(values**power) - expected) < 5 * standard_error, power


def assert_no_atoms(values):
    """No value is more common than a smooth density on a float32 grid of 2⁻²⁴ allows."""
    assert not np.isin(values, (0.0, 1.0)).any()
    assert np.unique(values, return_counts=True)[1].max() <= 5


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("num_leaps", [1, 3])
def test_the_law_is_exact_at_a_step_at_which_many_proposals_are_rejected(num_leaps, temperature):
    start, energy_fn = np.full((CHAINS, 1), 0.2), normal_energy(0.2, 1.0)
    x, info = end(on_the_line(1.6, num_leaps, temperature=temperature), start, energy_fn, 40)
    assert_follows(x[:, 0], stats.norm(0.2, np.sqrt(temperature)))
    assert 0.5 < info.acceptance[-1].mean() < 0.95


def test_step_size_and_temperature_may_be_traced():
    def chain(step_size, temperature):
        kernel = on_the_line(step_size, 2, temperature=temperature)
        return run(kernel, jax.random.key(0), jnp.zeros((CHAINS, 1)), normal_energy(0.0, 1.0), 20)[0]

    x = np.asarray(jax.jit(chain)(0.9, 0.5), np.float64)
    assert_follows(x[:, 0], stats.norm(0, np.sqrt(0.5)))


@pytest.mark.parametrize("step_size", [0.3, 2.0])  # at most one bounce a leap, and many
def test_on_the_box_the_law_is_the_density_cut_off_at_its_walls(step_size):
    mean, std = 0.9, 0.5
    law = stats.truncnorm((0 - mean) / std, (1 - mean) / std, mean, std)
    start = np.random.default_rng(0).uniform(size=(CHAINS, 1))
    x, info = end(hmc(step_size, 2, project=unit_box), start, normal_energy(mean, std), 20)
    assert ((x >= 0) & (x <= 1)).all()
    assert_no_atoms(x)
    assert_follows(x[:, 0], law)
    assert info.acceptance.mean() > 0.1


def test_under_a_flat_energy_trajectories_bounce_and_none_is_rejected():
    start = np.random.default_rng(0).uniform(size=(CHAINS, 2))
    x, info = end(hmc(0.7, 3, project=unit_box), start, lambda x: 0.0 * x.sum(1), 2)
    np.testing.assert_array_equal(info.acceptance, 1.0)
    for values in x.T:
        assert_follows(values, stats.uniform())
    _, without_walls = end(hmc(0.7, 3, project=unit_box, reflect=no_walls), start, lambda x: 0.0 * x.sum(1), 1)
    assert without_walls.acceptance.mean() < 0.5, "without walls what leaves the box is rejected"


def test_without_walls_the_law_on_the_box_is_exact_by_rejection():
    law = stats.truncnorm((0 - 0.9) / 0.5, (1 - 0.9) / 0.5, 0.9, 0.5)
    start = np.random.default_rng(0).uniform(size=(CHAINS, 1))
    x, _ = end(hmc(0.2, 2, project=unit_box, reflect=no_walls), start, normal_energy(0.9, 0.5), 40)
    assert_no_atoms(x)
    assert_follows(x[:, 0], law)


def test_chains_that_start_in_the_law_stay_in_it_in_several_dimensions_of_different_width():
    stds = np.array([0.3, 1.0, 2.0])
    start = stds * np.random.default_rng(1).normal(size=(CHAINS, 3))
    x, _ = end(on_the_line(0.4, 4), start, normal_energy(0.0, jnp.asarray(stds)[None]), 3)
    assert np.abs(x - start).max() > 0.1
    for values, std in zip(x.T, stds, strict=True):
        assert_follows(values, stats.norm(0, std))


def test_what_a_trajectory_of_fixed_time_loses_in_acceptance_falls_as_the_square_of_the_step():
    # Its energy errs by c ε². To this order c has mean 0 over the law, so 1 - E min(1, e^Δ) = E|c| ε² / 2 + O(ε⁴).
    start = np.random.default_rng(0).normal(size=(10_000, 1))
    lost = []
    for num_leaps in (2, 4, 8):
        _, info = end(on_the_line(1.0 / num_leaps, num_leaps), start, normal_energy(0.0, 1.0), 1)
        lost.append(1 - info.acceptance.mean(dtype=np.float64))
    ratios = np.divide(lost[:-1], lost[1:])
    assert lost[-1] < 0.01
    assert (np.abs(ratios - 4) < 0.4).all(), ratios


@pytest.mark.parametrize("reflect", [no_walls, unit_box_walls])
def test_a_trajectory_comes_back_when_its_momentum_is_flipped(reflect):
    rng = np.random.default_rng(0)
    x, momentum = rng.uniform(size=(500, 3)).astype(np.float32), 3 * rng.normal(size=(500, 3)).astype(np.float32)

    @jax.jit
    def there_and_back(x, momentum):
        away = leapfrog(Phase(point(x, quartic), momentum), quartic, 0.1, 5, reflect)
        back = leapfrog(Phase(away.at, -away.momentum), quartic, 0.1, 5, reflect)
        return away, back

    away, back = there_and_back(x, momentum)
    passed_a_wall = np.abs(np.asarray(away.at.x) - x - 0.5 * momentum) > 0.5
    assert passed_a_wall.any(axis=1).mean() > 0.5 or reflect is no_walls
    assert np.abs(away.at.x - x).max() > 0.5
    scale = max(1.0, float(np.abs(away.momentum).max()), float(np.abs(away.at.x).max()))
    growth = 50.0  # of a rounding error over ten leaps
    np.testing.assert_allclose(back.at.x, x, rtol=0, atol=growth * scale * FLOAT32)
    np.testing.assert_allclose(-back.momentum, momentum, rtol=0, atol=growth * scale * FLOAT32)


def phase_volume(reflect, start):
    """|det| of the derivative of a trajectory by its start."""

    def flow(start):
        phase = Phase(point(start[None, :2], quartic), start[None, 2:])
        final = leapfrog(phase, quartic, 0.2, 4, reflect)
        return jnp.concatenate([final.at.x[0], final.momentum[0]])

    return np.linalg.det(np.asarray(jax.jit(jax.jacfwd(flow))(start), np.float64))


@pytest.mark.parametrize("reflect", [no_walls, unit_box_walls])
def test_a_trajectory_keeps_the_volume_of_phase_space(reflect):
    for start in ([0.3, 0.6, 0.2, -0.4], [0.3, 0.6, 1.7, -2.4], [0.05, 0.95, -3.1, 4.2]):
        assert abs(phase_volume(reflect, jnp.asarray(start)) - 1) < 200 * FLOAT32


def test_walls_fold_like_a_ray_of_light_between_two_mirrors():
    x = jnp.array([[0.3, 1.25, -0.25, 2.25, -1.25, 3.5, -2.75, 1e3 + 0.25, 0.0, 1.0, 2.0, -1.0]])
    folded, momentum = unit_box_walls(x, jnp.ones_like(x))
    expected = [0.3, 0.75, 0.25, 0.25, 0.75, 0.5, 0.75, 0.25, 0.0, 1.0, 0.0, 1.0]
    np.testing.assert_array_equal(folded, np.asarray([expected], np.float32))
    np.testing.assert_array_equal(momentum[:, :8], [[1, -1, -1, 1, 1, -1, -1, 1]])


def test_walls_leave_what_is_inside_and_let_nothing_out_in_any_float():
    inside = np.random.default_rng(0).uniform(size=(1, 1_000)).astype(np.float32) ** 8
    edges = np.array([[1e-30, 1e-9, np.nextafter(np.float32(1), np.float32(0)), 0.0, 1.0]], np.float32)
    for x in (inside, edges):
        folded, momentum = jax.jit(unit_box_walls)(x, x)
        np.testing.assert_array_equal(folded, x)
        np.testing.assert_array_equal(momentum, x)
    ends = np.float32([0, 1, 2, 3, -1, -2, 4, 1e6])
    outside = np.concatenate([np.nextafter(ends, np.float32(np.inf)), np.nextafter(ends, np.float32(-np.inf))])
    far = np.concatenate([outside, np.geomspace(1.0, 1e30, 300), -np.geomspace(1.0, 1e30, 300)]).astype(np.float32)
    folded, _ = jax.jit(unit_box_walls)(far[None], far[None])
    assert ((folded >= 0) & (folded <= 1)).all()
    exact = 1 - np.abs(1 - np.mod(far.astype(np.float64), 2))  # the triangle wave
    small = np.abs(far) < 1e7
    np.testing.assert_allclose(np.asarray(folded)[0][small], exact[small], rtol=0, atol=1e-30)


def test_a_move_is_accepted_as_often_as_its_info_says():
    energy_fn, start = normal_energy(0.0, 1.0), np.random.default_rng(0).normal(size=(CHAINS, 1))
    x, info = end(on_the_line(1.8, 2), start, energy_fn, 1)
    moved = (x[:, 0] != start.astype(np.float32)[:, 0]).mean()
    assert 0.3 < moved < 0.95
    standard_error = np.sqrt(moved * (1 - moved) / CHAINS)
    assert abs(moved - info.acceptance[0].mean()) < 5 * standard_error
    np.testing.assert_allclose(info.energy[0], energy_fn(jnp.asarray(x, jnp.float32)), rtol=1e-6)
    np.testing.assert_allclose(info.grad_norm[0], np.abs(x[:, 0]), rtol=1e-6)


def test_one_leap_is_malas_move_with_half_the_square_of_the_step():
    start = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)), jnp.float32)

    def chains(temperature):
        kernels = on_the_line(0.8, 1, temperature=temperature), mala(0.32, temperature=temperature, project=unbounded)
        return [run(kernel, jax.random.key(0), start, quartic, 3) for kernel in kernels]

    compiled = jax.jit(chains)
    for temperature in (1.0, 0.4):
        (one, one_info), (two, two_info) = compiled(temperature)
        assert 0.1 < one_info.acceptance.mean() < 0.95
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one_info.acceptance, two_info.acceptance, rtol=0, atol=1e-4)


def test_a_trajectory_is_blackjaxs_velocity_verlet():
    rng = np.random.default_rng(0)
    x, momentum = (jnp.asarray(rng.normal(size=(20, 3)), jnp.float32) for _ in range(2))

    def log_density(x):
        return -quartic(x[None])[0]

    verlet = integrators.velocity_verlet(log_density, metrics.gaussian_euclidean(jnp.ones(3)).kinetic_energy)

    def theirs(x, momentum):
        state = integrators.new_integrator_state(log_density, x, momentum)
        for _ in range(4):
            state = verlet(state, 0.3)
        return state.position, state.momentum

    final = jax.jit(lambda x, p: leapfrog(Phase(point(x, quartic), p), quartic, 0.3, 4))(x, momentum)
    position, momentum = jax.jit(jax.vmap(theirs))(x, momentum)
    np.testing.assert_allclose(final.at.x, position, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(final.momentum, momentum, rtol=1e-5, atol=1e-5)


def test_a_start_outside_the_box_is_brought_into_it():
    state = hmc(0.1, 2, project=unit_box).init(jnp.full((1, 2), 3.0), normal_energy(0.5, 1.0))
    np.testing.assert_array_equal(state.x, 1.0)
    np.testing.assert_allclose(state.energy, 0.25)
    np.testing.assert_allclose(state.grad, 0.5)


def test_no_leaps_are_refused():
    with pytest.raises(BadInput, match="0 leaps"):
        hmc(0.1, 0, project=unit_box)
