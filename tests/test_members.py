"""Several models in one program equal single runs of their seeds; together they are one energy, the mean of theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import bits, command, final_state, rows

import ebm_jax
import run
from configs import digits_contrastive as digits
from ebm_jax import program, schema
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.models import energy
from ebm_jax.training.state import network_params
from ebm_jax.types import BadInput


@pytest.fixture(scope="module", autouse=True)
def without_key_checks():
    """A vmapped scan moves its keys' axis, which JAX's checker calls a use; a single model passes it."""
    with jax.debug_key_reuse(False):
        yield


def config_of(seed=0, num_models=1, spectral_norm=True):
    config = schema.dry_run(digits.get_config()).unlock()
    config.model.width, config.train.seed, config.train.num_models = 4, seed, num_models
    config.model.spectral_norm = spectral_norm
    return config.lock()


def trained(config, steps=2):
    mesh = parallel.device_mesh()
    state, step = program.make_state(config, mesh), program.make_step(config, mesh)
    with sources.open_batches(config, pytest.fail) as batches:
        for index in range(steps):
            state, metrics = step(state, program.place_batch(config, mesh, batches(index)))
    return jax.device_get(state._replace(key=jax.random.key_data(state.key))), jax.device_get(metrics)


@pytest.mark.slow
def test_each_member_is_the_run_of_its_own_seed():
    together, metrics = trained(config_of(seed=5, num_models=2))
    for member in range(2):
        alone, own_metrics = trained(config_of(seed=5 + member))
        for mine, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(mine[member], other, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"][member], own_metrics["loss"], rtol=1e-3, atol=1e-5)
    assert np.abs(together.memory.images[0] - together.memory.images[1]).max() > 0.1


@pytest.mark.whole
def test_raw_weights_of_several_models_are_each_normalised_by_its_own_vectors():
    config = config_of(num_models=2)
    state = program.make_state(config, parallel.device_mesh())
    both = network_params(state, ema=False)
    for member in range(2):
        alone = network_params(program.make_state(config_of(member), parallel.device_mesh()), ema=False)
        for mine, other in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(mine[member], other, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("members") / "two"
    assert run.main(command(workdir, train__num_models=2)) == 0
    return workdir


@pytest.mark.slow
def test_a_run_of_two_models_reports_both_and_their_mean(two_models):
    for row in rows(two_models):
        assert row["loss"] == pytest.approx((row["loss_0"] + row["loss_1"]) / 2, rel=1e-5)
        assert row["loss_0"] != row["loss_1"]


@pytest.mark.slow
def test_a_run_of_two_models_goes_on_bit_for_bit(two_models, tmp_path):
    for stop in (3, 6):
        assert run.main(command(tmp_path / "twice", train__num_models=2, train__num_steps=stop)) == 0
    for a, b in zip(bits(final_state(tmp_path / "twice").state), bits(final_state(two_models).state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_is_loaded_of_two_models_is_the_mean_of_their_energies(two_models):
    config, params = ebm_jax.load(two_models)
    assert energy.num_members(params) == 2
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    energy_fn = ebm_jax.make_energy_fn(config)
    each = [energy_fn(energy.member(params, index), images) for index in range(2)]
    np.testing.assert_allclose(energy_fn(params, images), (each[0] + each[1]) / 2, rtol=1e-5)
    assert jnp.abs(each[0] - each[1]).max() > 1e-6
    assert run.main(command(two_models, "sample")) == 0


@pytest.mark.slow
def test_snapshots_are_the_newest_checkpoints_as_an_ensemble(two_models):
    _, params = ebm_jax.load(two_models, snapshots=2)
    assert energy.num_members(params) == 4
    _, newest = ebm_jax.load(two_models)
    for mine, other in zip(jax.tree.leaves(energy.member(params, 1)), jax.tree.leaves(newest), strict=True):
        np.testing.assert_array_equal(mine, other[1])
    older, recent = energy.member(params, 2), energy.member(params, 0)
    assert (older["head"]["kernel"] != recent["head"]["kernel"]).any()
    with pytest.raises(BadInput, match="has 2 valid checkpoints, not 3"):
        ebm_jax.load(two_models, snapshots=3)
