"""The Metropolis test leaves the law exact where Langevin alone is off by a multiple of its standard error."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ebm_jax.sampling.kernel import run, unbounded, unit_box
from ebm_jax.sampling.langevin import langevin
from ebm_jax.sampling.mala import mala

CHAINS = 100_000


def normal_energy(mean, std):
    """U of N(mean, std²) in each coordinate."""
    return lambda x: 0.5 * jnp.square((x - mean) / std).sum(1)


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


@pytest.mark.parametrize(
    ("grad_clip", "temperature"),
    [
        (np.inf, 1.0),
        pytest.param(0.5, 0.3, marks=pytest.mark.whole),
        pytest.param(np.inf, 0.3, marks=pytest.mark.whole),
        pytest.param(0.5, 1.0, marks=pytest.mark.whole),
    ],
)
def test_the_law_is_exact_at_a_step_at_which_langevins_is_not(grad_clip, temperature):
    step_size, law = 0.6, stats.norm(0.2, np.sqrt(temperature))
    start, energy_fn = np.full((CHAINS, 1), 0.2), normal_energy(0.2, 1.0)
    kernel = mala(step_size, grad_clip=grad_clip, temperature=temperature, project=unbounded)
    x, info = end(kernel, start, energy_fn, 60)
    assert_follows(x[:, 0], law)
    assert 0.3 < info.acceptance[-1].mean() < 0.99
    plain, _ = end(langevin(step_size, temperature=temperature, project=unbounded), start, energy_fn, 60)
    with pytest.raises(AssertionError):
        assert_follows(plain[:, 0], law)


@pytest.mark.whole
def test_on_the_box_the_law_is_the_density_cut_off_at_its_faces():
    low, high = (0 - 0.9) / 0.5, (1 - 0.9) / 0.5
    law = stats.truncnorm(low, high, 0.9, 0.5)
    x, _ = end(
        mala(0.02, project=unit_box), np.random.default_rng(0).uniform(size=(CHAINS, 1)), normal_energy(0.9, 0.5), 100
    )
    assert ((x >= 0) & (x <= 1)).all()
    assert not np.isin(x, (0.0, 1.0)).any(), "a clipped chain leaves atoms at the faces"
    assert_follows(x[:, 0], law)


def test_chains_that_start_in_the_law_stay_in_it_in_several_dimensions_of_different_width():
    stds = np.array([0.3, 1.0, 2.0])
    start = stds * np.random.default_rng(1).normal(size=(CHAINS, 3))
    x, _ = end(mala(0.05, project=unbounded), start, normal_energy(0.0, jnp.asarray(stds)[None]), 5)
    assert np.abs(x - start).max() > 0.1
    for values, std in zip(x.T, stds, strict=True):
        assert_follows(values, stats.norm(0, std))


def test_a_move_is_accepted_as_often_as_its_info_says():
    energy_fn, start = normal_energy(0.0, 1.0), np.random.default_rng(0).normal(size=(CHAINS, 1))
    x, info = end(mala(1.5, project=unbounded), start, energy_fn, 1)
    moved = (x[:, 0] != start.astype(np.float32)[:, 0]).mean()
    standard_error = np.sqrt(moved * (1 - moved) / CHAINS)
    assert abs(moved - info.acceptance[0].mean()) < 5 * standard_error
    np.testing.assert_allclose(info.energy[0], energy_fn(jnp.asarray(x, jnp.float32)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(info.grad_norm[0], np.abs(x[:, 0]), rtol=1e-6)


def test_a_start_outside_the_box_is_brought_into_it():
    x, _ = end(mala(1e-4, project=unit_box), np.full((4, 2), 3.0), normal_energy(0.5, 1.0), 1)
    assert ((x >= 0) & (x <= 1)).all()
    inside = mala(1e-4, project=unit_box).init(jnp.full((1, 2), 3.0), normal_energy(0.5, 1.0))
    np.testing.assert_allclose(inside.x, 1.0 - 4 * np.sqrt(2e-4), rtol=1e-6)  # four standard deviations of the noise


def test_a_start_at_samples_on_the_faces_moves_and_all_other_values_start_where_they_are():
    rng = np.random.default_rng(0)
    start = rng.choice([0.0, 1.0, 0.3, 1e-4], (100, 200)).astype(np.float32)  # as data and clamped samples are
    kernel, energy_fn = mala(1e-5, project=unit_box), normal_energy(0.5, 1.0)
    begun = np.asarray(kernel.init(jnp.asarray(start), energy_fn).x)
    on_faces = np.isin(start, (0.0, 1.0))
    np.testing.assert_array_equal(begun[~on_faces], start[~on_faces])
    np.testing.assert_allclose(np.abs(begun - start)[on_faces], 4 * np.sqrt(2e-5), rtol=1e-4)
    _, info = end(kernel, np.where(on_faces, start, 0.3), energy_fn, 5)
    assert info.acceptance.mean() > 0.5, "from the faces themselves it is 2^-100"


def test_a_start_on_a_narrow_support_or_none_stays_in_it():
    x = jnp.asarray([[0.0, 0.2, 0.3, 5.0]])
    narrow = lambda x: jnp.clip(x, 0.2, 0.3)  # noqa: E731
    begun = mala(1.0, project=narrow).init(x, normal_energy(0.0, 1.0)).x
    np.testing.assert_array_equal(narrow(begun), begun)
    np.testing.assert_array_equal(mala(1.0, project=unbounded).init(x, normal_energy(0.0, 1.0)).x, x)


def test_clipped_proposals_move_on_a_wall_where_full_ones_are_all_rejected():
    def wall(x):
        return 4e3 * jnp.abs(x[:, 0] - 0.5)

    start = np.full((1_000, 1), 0.9)  # the full drift, 3e-4 · 4e3 = 1.2, leaves the box on the other side
    stuck, info = end(mala(3e-4, project=unit_box), start, wall, 50)
    np.testing.assert_array_equal(stuck, np.float32(0.9))
    assert (info.acceptance < 1e-6).all()
    freed, _ = end(mala(3e-4, grad_clip=60.0, project=unit_box), start, wall, 50)
    assert np.abs(freed - 0.5).max() < 0.1
