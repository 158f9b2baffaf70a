"""Research code imports a few functions; they are pure, fit each other, and say in one line what does not fit them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_jax
from configs import digits_contrastive as digits
from configs import shapes_position
from ebm_jax import applications, assemble, samplers
from ebm_jax.metrics import density
from ebm_jax.models.energy import Stacked
from ebm_jax.sampling import KERNELS
from ebm_jax.sampling.kernel import run_stages, unbounded
from ebm_jax.sampling.langevin import langevin
from ebm_jax.schema import with_values
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


# What does not fit is refused in one line


def one_line(message, call, *args, **keywords):
    with pytest.raises(BadInput, match=message) as caught:
        call(*args, **keywords)
    assert "\n" not in str(caught.value)


X, Y = jnp.full((2, 8, 8, 1), 0.25), jnp.array([3, 9])
WRONG_IMAGES = {
    r"images is of uint8; .*\[0, 1\]: give images / 255, or ebm_jax.random.dequantise\(key, images\)": jnp.ones(
        X.shape, jnp.uint8
    ),
    r"images is of int32; an energy takes floats": jnp.ones(X.shape, jnp.int32),
    r"images is of bool; an energy takes floats": np.ones(X.shape, bool),
    r"images is of complex64; an energy takes floats": X + 1j,
    r"images of shape \(2, 1, 8, 8\) .*channels come last: give images.transpose\(0, 2, 3, 1\)": X.transpose(
        0, 3, 1, 2
    ),
    r"images of shape \(8, 8, 1\) has no batch axis; give \[n, 8, 8, 1\], one image as images\[None\]": X[0],
    r"images of shape \(\) has no batch axis": jnp.float32(0.5),
    r"images of shape \(2, 8, 8\) does not fit .*give images\[..., None\]": X[..., 0],
    r"images of shape \(2, 16, 16, 1\) does not fit this model's \[n, 8, 8, 1\]; resize": jnp.zeros((2, 16, 16, 1)),
    r"images of shape \(2, 8, 8, 3\) does not fit": jnp.zeros((2, 8, 8, 3)),
    r"images of shape \(0, 8, 8, 1\) is an empty batch; give 1 or more": X[:0],
    r"images is of the type list; give an array": X.tolist(),
}


@pytest.mark.parametrize("message", WRONG_IMAGES)
def test_images_of_another_shape_or_type_are_named_also_where_jax_traces(config, params, message):
    energy_fn, sample_fn, wrong = ebm_jax.make_energy_fn(config), ebm_jax.make_sample_fn(config), WRONG_IMAGES[message]
    one_line(message, energy_fn, params, wrong, Y)
    of_init = message.replace("images is", "init is").replace("images of", "init of").replace("images", "init")
    one_line(of_init.replace("one init", "one image"), sample_fn, params, jax.random.key(0), labels=Y, init=wrong)
    if hasattr(wrong, "shape"):
        one_line(message, jax.eval_shape, lambda x: energy_fn(params, x, Y), wrong)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "conditional on 10 classes: give one label for each image"),
        (jnp.array([3]), r"labels of shape \(1,\) for 2 images; give one integer for each image"),
        (jax.nn.one_hot(Y, 10), r"labels of shape \(2, 10\) for 2 images; give one integer"),
        (jnp.int32(3), r"labels of shape \(\) for 2 images"),
        (Y.astype(jnp.float32), "labels are of float32; this model's are classes: give integers"),
        (np.array([True, False]), "labels are of bool; this model's are classes"),
        ([3, 9], "labels are of the type list; give an array"),
    ],
)
def test_labels_of_another_shape_or_type_are_named_also_where_jax_traces(config, params, labels, message):
    energy_fn = ebm_jax.make_energy_fn(config)
    one_line(message, energy_fn, params, X, labels)
    one_line(message, jax.eval_shape, lambda x: energy_fn(params, x, labels), X)


def test_vectors_of_a_condition_are_asked_for_by_their_length():
    config = shapes_position.get_config()
    config.model.width = 4
    energy_fn, params = ebm_jax.make_energy_fn(config), assemble.abstract_params(config)
    images = jnp.zeros((2, *config.data.shape))
    one_line(r"labels of shape \(2,\) for 2 images; give one vector of 2", energy_fn, params, images, Y)
    one_line("conditional on data.condition position: give one label", energy_fn, params, images)


def test_numpy_arrays_any_integer_classes_and_half_floats_are_taken(config, params):
    energy_fn = jax.jit(ebm_jax.make_energy_fn(config))
    expected = energy_fn(params, X, Y)
    np.testing.assert_array_equal(energy_fn(params, np.asarray(X, np.float64), np.asarray(Y, np.uint8)), expected)
    np.testing.assert_array_equal(energy_fn(params, X.astype(jnp.bfloat16), Y), expected)  # 0.25 is exact in bfloat16


def test_an_unconditional_energy_is_the_same_with_labels_and_without(config):
    free = config.copy_and_resolve_references()
    free.model.num_classes = 1
    energy_fn, params = ebm_jax.make_energy_fn(free), ebm_jax.init_params(free, jax.random.key(0))
    np.testing.assert_array_equal(energy_fn(params, X), energy_fn(params, X, Y))


def test_parameters_of_another_network_are_named_by_the_first_leaf_that_differs(config, params):
    wider = config.copy_and_resolve_references()
    wider.model.width = 6
    headless = {key: value for key, value in params.items() if key != "head"}
    dense = jax.tree.map(lambda leaf: np.asarray(leaf, np.int32), params["dense"])
    two = jax.tree.map(lambda leaf: np.stack([leaf] * 2), params)
    wrong = {
        r'params is a tree {"params": ...}; give what is inside, params\["params"\]': {"params": params},
        r"block/bias1/table is \(10, 6\) there and \(10, 4\) here": assemble.abstract_params(wider),
        r"head/bias is absent there and \(1,\) here": headless,
        r"more is \(3,\) there and absent here": params | {"more": np.ones(3)},
        r"dense/bias is of int32 there": params | {"dense": dense},
        r"block/bias1/table is absent there": None,
        r"block/bias1/table is \(2, 10, 4\) there and \(10, 4\) here": two,
        r"head/bias is absent there and \(2, 1\) here": Stacked({key: two[key] for key in headless}),
    }
    energy_fn, sample_fn = ebm_jax.make_energy_fn(config), ebm_jax.make_sample_fn(config)
    for message, given in wrong.items():
        one_line(message, energy_fn, given, X, Y)
        one_line(message, sample_fn, given, jax.random.key(0))


def test_only_one_typed_key_is_a_key(config, params):
    sample_fn = ebm_jax.make_sample_fn(config)
    wrong = {
        r"key 7 is no PRNG key; give jax.random.key\(7\)": 7,
        r"key is uint32 of shape \(2,\), no typed PRNG key; give jax.random.key\(SEED\)": jnp.zeros(2, jnp.uint32),
        r"key has the shape \(3,\): it is several keys; give one, or use jax.vmap": jax.random.split(
            jax.random.key(0), 3
        ),
    }
    for message, key in wrong.items():
        one_line(message, sample_fn, params, key)
        one_line(message, ebm_jax.init_params, config, key)
        one_line(message, ebm_jax.init_sampling_buffer, config, key)
        one_line(message, run_stages, [(langevin(0.1, project=unbounded), 1)], key, X, lambda x: x.sum((1, 2, 3)))


MAKERS = {
    "energy": ebm_jax.make_energy_fn,
    "sample": ebm_jax.make_sample_fn,
    "buffered": ebm_jax.make_buffered_sample_fn,
    "stages": ebm_jax.make_stages,
    "params": lambda config: ebm_jax.init_params(config, jax.random.key(0)),
    "buffer": lambda config: ebm_jax.init_sampling_buffer(config, jax.random.key(0)),
}
WRONG_CONFIGS = {
    "sample.quiet_steps 6 is out of range; it must be at most sample.num_steps, 5": {"sample.quiet_steps": 6},
    "sample.num_steps -1 is out of range; it must be at least 1": {"sample.num_steps": -1},
    "chain.step_size -0.5 is out of range": {"chain.step_size": -0.5},
    "the config has 'sample.num_step', which is no key; did you mean sample.num_steps?": {"sample.num_step": 5},
    "model.name 'smal' is unknown; .*did you mean small": {"model.name": "smal"},
    "model.width '4' is of the type str; it must be a whole number": {"model.width": "4"},
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_a_config_that_cannot_work_is_refused_also_after_unlock(config, maker, message):
    wrong = config.copy_and_resolve_references().unlock()
    with wrong.ignore_type():
        for name, value in WRONG_CONFIGS[message].items():
            group, _, key = name.rpartition(".")
            wrong[group][key] = value
    one_line(message, MAKERS[maker], wrong)


def test_what_is_no_config_is_named(config):
    one_line("the config gives dict, not a ConfigDict", ebm_jax.make_energy_fn, config.to_dict())


def test_a_sampling_buffer_that_does_not_fit_is_named(config, params):
    small = config.copy_and_resolve_references()
    small.sample.buffer_capacity = 4
    fn, key = ebm_jax.make_buffered_sample_fn(small), jax.random.key(0)
    buffer = ebm_jax.init_sampling_buffer(small, jax.random.key(1))
    one_line("sample.buffer_capacity 0 makes a buffer without chains", ebm_jax.init_sampling_buffer, config, key)
    one_line("5 labels for a buffer of 4 chains; give at most 4", fn, params, key, buffer, jnp.arange(5))
    one_line(r"labels of shape \(0,\) are an empty batch", fn, params, key, buffer, jnp.arange(0))
    one_line("buffer is of the type ReplayBuffer; give the buffer of ebm_jax", fn, params, key, buffer.chains, Y)
    small.buffer.dtype = "uint8"
    other = ebm_jax.init_sampling_buffer(small, jax.random.key(2))
    one_line("buffer has rows of 128 values of uint8; this config's have 128 of float32", fn, params, key, other, Y)


def test_chains_of_an_own_energy_say_what_their_start_lacks(config):
    stages = ebm_jax.make_stages(config)
    for fn in (run_stages, lambda *args: applications.generate(args[1], args[2], args[3], args[0])):
        one_line("x is of int32; an energy takes floats", fn, stages, jax.random.key(0), jnp.ones((2, 3), int), len)
        one_line(r"x of shape \(\) has no batch axis", fn, stages, jax.random.key(0), jnp.float32(1), len)
        one_line("stages is empty; give pairs", fn, [], jax.random.key(0), X, len)


@pytest.mark.parametrize("name", KERNELS)
def test_an_own_energy_of_another_shape_is_named_by_every_kernel(name):
    kernel = KERNELS[name](0.1, project=unbounded, **({"num_leaps": 1} if name == "hmc" else {}))
    key, start = jax.random.key(0), jnp.zeros((3, 2))
    for energy_fn, shape in ((lambda x: x.sum(1, keepdims=True), r"\(3, 1\)"), (jnp.sum, r"\(\)")):
        message = rf"the energy of \(3, 2\) has the shape {shape}; return one for each, \(3,\)"
        one_line(message, jax.eval_shape, lambda x, fn=energy_fn: run_stages([(kernel, 1)], key, x, fn), start)


def test_a_density_says_what_its_energy_or_grid_lacks():
    one_line("side 0 is out of range; give a whole number, 1 or more", density.grid, 0)
    one_line(
        r"the energy of 4 points has the shape \(4, 1\); return one for each",
        density.grid_energies,
        lambda x: x[:, :1],
        density.grid(2),
    )


def test_another_class_is_no_other_program_and_gives_the_chains_that_its_config_gives(workdir, caplog):
    run, key = ebm_jax.open_run(workdir), jax.random.key(0)
    run.sample(key, 3, labels=[1, 2])
    caplog.clear()
    with jax.log_compiles():
        found = run.sample(key, 3, labels=[7, 4])
    assert [record for record in caplog.records if record.getMessage().startswith("Compiling")] == []
    asked = with_values(run.config, {"sample.num_images": 3, "sample.labels": "7,4"})
    images, labels = samplers.make_sampler(asked, run.mesh)(run.params, jax.random.fold_in(key, 0), 0)
    np.testing.assert_array_equal(labels[:3], [7, 4, 7])
    np.testing.assert_allclose(found, images[:3], atol=1e-6)


def test_a_run_is_one_line_to_look_at_and_checks_what_its_methods_are_given(workdir, config):
    run = ebm_jax.open_run(workdir)
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert repr(run) == f"TrainedRun({workdir}, step 6: images [8, 8, 1], 10 classes, {weights:,} parameters)"
    assert ", 2 models, " in repr(run._replace(params=ebm_jax.stack([run.params, run.params])))
    images, labels = np.full((3, 8, 8, 1), 0.5, np.float32), np.array([0, 1, 2])
    one_line(r"images is of uint8", run.energy_of, np.zeros((3, 8, 8, 1), np.uint8), labels)
    one_line(r"images of shape \(3, 1, 8, 8\)", run.energy_of, images.transpose(0, 3, 1, 2), labels)
    one_line(r"label 10 is out of range", run.energy_of, images, labels + 8)
    one_line(r"labels of shape \(3,\) for 1 images", run.energy_fn(labels), images[:1])
    one_line(r"images of shape \(0, 8, 8, 1\) is an empty batch", run.energy_of, images[:0], labels[:0])
    one_line(
        r"rows of \[3, 2\]; give arrays of one length", run.map, lambda of, x, y: x, images, images[:2], batch_size=4
    )
    one_line("batch_size 0 is out of range; give a whole number, 1 or more", run.map, len, images, batch_size=0)
    one_line("key 0 is no PRNG key", run.samples, 0)
    one_line("key 0 is no PRNG key", run.chains, 0)
    wider = run.config.copy_and_resolve_references()
    wider.model.width = 6
    one_line("params are of another network than the config's", run._replace(config=wider).samples, jax.random.key(0))
    one_line("config is of another run than .*model.width is 4 there and 6 here", ebm_jax.open_run, workdir, wider)
    one_line("snapshots 0 is out of range; give a whole number, 1 or more", ebm_jax.load, workdir, snapshots=0)
