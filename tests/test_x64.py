"""x64 changes no type and no bit, for every row of the tables of networks, kernels, methods and labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed, equations

import ebm_jax
import run
from configs import digits_contrastive as digits
from ebm_jax import assemble, cli, evaluate, export, labels, prepare, program, sample, schema, train
from ebm_jax.distributed import parallel
from ebm_jax.methods import METHODS
from ebm_jax.models.networks import NETWORKS
from ebm_jax.sampling import KERNELS
from ebm_jax.sampling.kernel import run as run_chain
from ebm_jax.sampling.kernel import unbounded
from tools.compile import report

POINTS = {"data__source": "density", "data__name": "two_moons", "data__shape": (2,)}


def config_of(**values):
    return changed(schema.dry_run(digits.get_config()), **values)


def types(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def outputs(fn, *args):
    """Shapes and types of what `fn` gives under x64; no array inside its program may have 64 bits."""
    with jax.enable_x64(True):
        jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    inside = [variable.aval for equation in equations(jaxpr.jaxpr) for variable in equation.outvars]
    arrays = [array for array in inside if getattr(array, "shape", ())]  # scalars of Python may be wide, arrays not
    assert len(arrays) > 5
    assert [array for array in arrays if array.dtype in (jnp.float64, jnp.int64)] == []
    return shapes


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_energies_of_every_network_are_float32(name):
    images = POINTS if name == "mlp" else {"data__shape": (32, 32, 1)}
    config = config_of(model__name=name, model__width=2, **images)
    network, x = assemble.make_network(config), jnp.zeros((2, *config.data.shape), jnp.float32)

    def energies_of(key):
        params = network.init(key, x, jnp.zeros(2, jnp.int32))
        return params, network.apply(params, x)

    assert types(outputs(energies_of, jax.random.key(0))) == {"float32"}


STEPS = {
    **{
        name: {"method__name": name, "model__num_classes": 10, "method__equilibrium__class_dropout": 0.0}
        | {"method__energy_matching__class_dropout": 0.0, "model__logits": name == "joint"}
        for name in METHODS
    },
    "unet": {
        "method__name": "equilibrium",
        "method__then__after": 1,
        "chain__base": "centred_normal",
        "buffer__descent_steps": 2,
        "model__name": "unet",
        "model__unet__multipliers": (1,),
        "model__num_classes": 10,
        "optim__clip_norm": 1.0,
        "optim__decay_steps": 10,
        "optim__ema_ramp": True,
    },
    "many": {
        "model__num_classes": 10,
        "model__spectral_norm": True,
        "loss__label_weight": 1.0,
        "loss__objective": "logsumexp",
        "buffer__dtype": "uint8",
        "buffer__ring": True,
        "buffer__relabel_prob": 0.5,
        "chain__anneal_from": 2.0,
    },
    "others": {
        "chain__base": "normal",
        "buffer__dtype": "bfloat16",
        "model__dtype": "bfloat16",
        "data__condition": "soft",
        "model__num_classes": 10,
        "loss__objective": "softplus",
    },
}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_keeps_all_types_of_its_state(name):
    config, mesh = config_of(**STEPS[name]), parallel.device_mesh(jax.devices()[:1])
    with jax.enable_x64(True):
        state, batch = program.abstract_state(config, mesh), program.abstract_batch(config, mesh)
    after, metrics = outputs(program.make_step(config, mesh), state, batch)
    assert types((state.params, state.ema, metrics)) == {"float32"}
    assert not types(state) & {"float64", "int64", "uint32"}
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, after)


@pytest.mark.parametrize("name", ["class", *labels.SOFT])
def test_labels_are_int32_or_float32_and_equal(name):
    config = config_of(data__condition=name, model__num_classes=labels.SOFT.get(name) or 4)
    plain = labels.example_labels(config, jnp.arange(9, dtype=jnp.int32))
    with jax.enable_x64(True):
        wide = labels.example_labels(config, jnp.arange(9, dtype=jnp.int32))
    np.testing.assert_array_equal(plain, wide)
    assert plain.dtype == wide.dtype == (jnp.int32 if name == "class" else jnp.float32)


@pytest.mark.parametrize("name", KERNELS)
def test_chains_of_every_kernel_are_float32_whatever_float_they_start_from(name):
    config = config_of(chain__kernel=name, sample__anneal_from=2.0)
    params, sample_fn = assemble.abstract_params(config), ebm_jax.make_sample_fn(config)
    start = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.bfloat16)
    images = outputs(lambda params, x: sample_fn(params, jax.random.key(0), init=x), params, start)
    assert (images.shape, images.dtype) == (start.shape, jnp.float32)


@pytest.mark.parametrize("name", KERNELS)
def test_chains_of_an_own_energy_keep_float64_and_raise_half_floats_to_float32(name):
    kernel = KERNELS[name](0.1, project=unbounded, **({"num_leaps": 2} if name == "hmc" else {}))

    def end(x):
        return run_chain(kernel, jax.random.key(0), x, lambda x: jnp.square(x).sum(1), 3)

    for given, found in (
        ("float64", "float64"),
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float16", "float32"),
    ):
        with jax.enable_x64(given == "float64"):
            x, info = jax.eval_shape(end, jax.ShapeDtypeStruct((3, 2), given))
        assert types((x, info)) == {found}


def test_a_round_of_a_sampling_buffer_keeps_all_types():
    config = config_of(sample__buffer_capacity=8, model__num_classes=10, sample__labels="3,5")
    play, params = ebm_jax.make_buffered_sample_fn(config), assemble.abstract_params(config)

    def rounds(params):
        buffer = ebm_jax.init_sampling_buffer(config, jax.random.key(0))
        asked = labels.sample_labels(config, jnp.arange(4, dtype=jnp.int32))
        return buffer, *play(params, jax.random.key(1), buffer, asked)

    buffer, images, found, after = outputs(rounds, params)
    assert (images.dtype, found.dtype) == (jnp.float32, jnp.int32)
    assert types(buffer) == types(after) == {"float32", "int32"}


def test_parameters_and_energies_of_wide_images_and_labels_have_the_same_bits():
    config = config_of(model__name="mlp", model__width=4, **POINTS)
    energy_fn = ebm_jax.make_energy_fn(config)

    def energies_of(x, y):
        params = assemble.init_params(config, jax.random.key(0))
        return params, energy_fn(params, x, y)

    plain = jax.jit(energies_of)(np.full((2, 2), 0.25, np.float32), np.zeros(2, np.int32))
    with jax.enable_x64(True):
        wide = jax.jit(energies_of)(np.full((2, 2), 0.25), np.zeros(2, np.int64))
    jax.tree.map(np.testing.assert_array_equal, plain, wide)
    assert types(wide) == {"float32"}


@pytest.mark.parametrize("mode", cli.MODES)
def test_run_py_turns_x64_off_in_every_mode(mode, monkeypatch):
    found = []

    def verb(*args, **keywords):
        del args, keywords
        found.append(jnp.zeros(1).dtype)
        return 0

    monkeypatch.setattr(cli, "parse", lambda argv: cli.Command(mode, None, None, "", ""))
    for module in (train, sample, evaluate, export, prepare):
        monkeypatch.setattr(module, module.__name__.removeprefix("ebm_jax."), verb)
    monkeypatch.setattr(report, "compile", verb)
    with jax.enable_x64(True):
        assert run.main(["run.py"]) == 0
        assert jnp.zeros(1).dtype == jnp.float64, "the caller's choice is back"
    assert found == [jnp.float32]
