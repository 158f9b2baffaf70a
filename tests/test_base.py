"""Laws that chains start from: their densities, and that training, sampling and annealing start from the right one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from scipy import stats

from configs import digits_contrastive as digits
from ebm_jax import assemble, chains, checks, samplers
from ebm_jax.evaluators.likelihood import make_move
from ebm_jax.sampling import base, replay
from ebm_jax.types import BadInput

SHAPE = (8, 8, 1)


def test_the_energies_are_minus_the_log_densities_of_scipy():
    x = jax.random.uniform(jax.random.key(0), (5, 2, 3))
    np.testing.assert_array_equal(base.uniform((2, 3)).energy_fn(x), np.zeros(5))
    expected = -stats.norm(0.5, 2.0).logpdf(np.asarray(x)).sum((1, 2))
    np.testing.assert_allclose(base.normal((2, 3), 0.5, 2.0).energy_fn(x), expected, rtol=1e-6)


@pytest.mark.parametrize(("law", "of_scipy"), [(base.uniform, stats.uniform()), (base.normal, stats.norm())])
def test_draws_follow_the_law_and_the_projection_leaves_them_alone(law, of_scipy):
    made = law(SHAPE)
    x = made.sample(jax.random.key(0), 100)
    assert x.shape == (100, *SHAPE)
    assert stats.kstest(np.asarray(x).ravel(), of_scipy.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(made.project(x), x)


def flat_energy(params, images, labels=None, dropout_key=None):
    return 0.0 * images.sum((1, 2, 3))


@pytest.fixture
def config(monkeypatch):
    """A run of digits under an energy that moves nothing, whose chains start from N(0, 1)."""
    for module in (assemble, samplers):
        monkeypatch.setattr(module, "make_apply", lambda config: flat_energy)
    still = {"chain__langevin__noise_scale": 0.0, "sample__num_steps": 2, "sample__quiet_steps": 1}
    return changed(digits.get_config(), chain__base="normal", buffer__capacity=64, **still)


def params_of(config):
    """Parameters that fit the config; this energy reads none."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), assemble.abstract_params(config))


def is_normal(x):
    x = np.asarray(x).ravel()
    return stats.kstest(x, stats.norm().cdf).pvalue > 1e-3 and x.min() < -1


@pytest.mark.whole
def test_samples_the_buffer_and_annealing_all_start_from_the_law_of_the_config_and_no_box_holds_them(config):
    assert is_normal(samplers.make_sample_fn(config)(params_of(config), jax.random.key(0)))
    memory = assemble.make_method(config).init(jax.random.key(1))
    assert is_normal(replay.as_images(memory.images, SHAPE))
    drawn = replay.draw(jax.random.key(2), memory, jnp.zeros(64, jnp.int32), chains.make_base(config), 1.0)
    assert is_normal(drawn.x)
    kernel = make_move(config).kernel_of(1e-3)
    x = chains.make_base(config).sample(jax.random.key(3), 32)
    moved, info = kernel.step(jax.random.key(4), kernel.init(x, lambda x: x.sum((1, 2, 3))), lambda x: x.sum((1, 2, 3)))
    assert float(info.acceptance.mean()) > 0.9, "a box would refuse what lies outside of it"
    assert is_normal(moved.x)


def test_the_uniform_law_keeps_all_of_it_in_the_box(config):
    config = changed(config, chain__base="uniform")
    images = samplers.make_sample_fn(config)(params_of(config), jax.random.key(0))
    assert stats.kstest(np.asarray(images).ravel(), stats.uniform().cdf).pvalue > 1e-3


def test_a_buffer_of_bytes_cannot_hold_a_normal_law(config):
    with pytest.raises(BadInput, match=r"^chain.base normal goes beyond \[0, 1\].* use float32 or bfloat16$"):
        checks.check(changed(config, buffer__dtype="uint8"), 2)
