"""Research code imports four functions; they are pure and fit each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_jax
from configs import digits
from ebm_jax.labels import check_labels
from ebm_jax.storage.workdir import claim
from ebm_jax.types import BadInput


@pytest.fixture(scope="module")
def config():
    config = digits.get_config()
    config.model.width = 4
    config.model.num_classes = 10
    config.sample.num_steps, config.sample.quiet_steps, config.sample.num_images = 5, 2, 12
    return config


@pytest.fixture(scope="module")
def params(config):
    params = ebm_jax.init_params(config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params)


@pytest.fixture(scope="module")
def sample_fn(config):
    return jax.jit(ebm_jax.make_sample_fn(config))


def test_samples_are_a_function_of_the_key_inside_the_box(sample_fn, params):
    one, again, other = (sample_fn(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert one.dtype == jnp.float32
    assert one.min() >= 0
    assert one.max() <= 1


def test_jit_and_vmap_change_nothing(config, sample_fn, params):
    plain = ebm_jax.make_sample_fn(config)(params, jax.random.key(2))
    np.testing.assert_allclose(sample_fn(params, jax.random.key(2)), plain, atol=1e-4)
    keys = jnp.stack([jax.random.key(2), jax.random.key(3)])
    with jax.debug_key_reuse(False):  # its checker takes the two scans of a vmapped call for one
        both = jax.vmap(sample_fn, (None, 0))(params, keys)
    np.testing.assert_allclose(both[0], plain, atol=1e-4)
    assert (both[1] != both[0]).any()


def test_without_labels_the_classes_come_in_turn(sample_fn, params):
    turn = jnp.arange(12) % 10
    in_turn = sample_fn(params, jax.random.key(3))
    np.testing.assert_array_equal(sample_fn(params, jax.random.key(3), labels=turn), in_turn)
    assert (sample_fn(params, jax.random.key(3), labels=turn[::-1]) != in_turn).any()


def test_labels_and_start_set_the_number_and_the_start(sample_fn, params):
    assert sample_fn(params, jax.random.key(0), labels=jnp.array([3, 3])).shape == (2, 8, 8, 1)
    start = jnp.full((5, 8, 8, 1), 0.5)
    moved = sample_fn(params, jax.random.key(0), init=start)
    assert moved.shape == start.shape
    # each of five steps moves a pixel by at most step_size · grad_clip, and three add noise
    assert jnp.abs(moved - start).max() < 5 * 10.0 * 0.03 + 3 * 6 * 0.005


def test_sampling_lowers_the_energy_below_that_of_its_start(config, sample_fn, params):
    energy_fn = ebm_jax.make_energy_fn(config)
    start, labels = jax.random.uniform(jax.random.key(5), (10, 8, 8, 1)), jnp.arange(10)
    moved = sample_fn(params, jax.random.key(6), labels=labels, init=start)
    assert (energy_fn(params, moved, labels) < energy_fn(params, start, labels)).all()


def test_a_conditional_energy_without_labels_is_an_error(config, params):
    with pytest.raises(ValueError, match="conditional on 10 classes"):
        ebm_jax.make_energy_fn(config)(params, jnp.zeros((2, 8, 8, 1)))


@pytest.mark.parametrize("wrong", [10, -1])
def test_a_label_out_of_range_is_named_and_inside_jit_gives_nan(config, sample_fn, params, wrong):
    images, labels = jnp.zeros((2, 8, 8, 1)), jnp.array([3, wrong])
    energy_fn = ebm_jax.make_energy_fn(config)
    with pytest.raises(BadInput, match=f"label {wrong} is out of range; this model has the classes 0 to 9"):
        energy_fn(params, images, labels)
    with pytest.raises(BadInput, match=f"label {wrong} is out of range"):
        ebm_jax.make_sample_fn(config)(params, jax.random.key(0), labels=labels)
    np.testing.assert_array_equal(jnp.isnan(jax.jit(energy_fn)(params, images, labels)), [False, True])


def test_labels_of_another_shape_are_named_inside_jit_too(config):
    check = jax.jit(lambda labels: check_labels(config, labels, 2))  # alone: in tests run-time shape checks come first
    with pytest.raises(BadInput, match=r"labels of shape \(1,\) for 2 images; give one integer for each image"):
        check(jnp.array([3]))


def test_untrained_parameters_are_normalised_where_the_config_says_so(config):
    normalised = config.copy_and_resolve_references()
    normalised.model.spectral_norm = True
    params = ebm_jax.init_params(normalised, jax.random.key(0))
    kernel = np.asarray(params["block"]["conv1"]["kernel"])
    assert 0.9 < np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0] < 2.0


@pytest.mark.parametrize("door", [ebm_jax.load, ebm_jax.open_run])
def test_loading_names_what_is_missing(config, tmp_path, door):
    with pytest.raises(BadInput, match="is not the folder of a run"):
        door(tmp_path)
    claim(tmp_path / "run", config)
    with pytest.raises(BadInput, match="has no checkpoint"):
        door(tmp_path / "run")
