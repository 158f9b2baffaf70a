"""Every shipped config builds, has the shapes it says in a full training step, and runs when shrunk."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import few

from ebm_jax import assemble, checks, labels, program, samplers, schema
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.models.networks import UNETS
from ebm_jax.schema import flat

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
ASKED_FOR = """cifar10 cifar10_conditional cifar10_wider_conditional imagenet32 imagenet128 mnist fashion_mnist
fashion_mnist_conditional dsprites_shape dsprites_size dsprites_position dsprites_rotation shapes_shape shapes_position
density2d folder folder_contrastive digits digits_contrastive fashion_mnist_contrastive cifar10_equilibrium
shapes_shape_equilibrium shapes_position_equilibrium density2d_equilibrium"""


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_every_experiment_has_its_config():
    assert set(ASKED_FOR.split()) <= set(NAMES)


OF_EACH_KIND = ("digits", "digits_contrastive", "density2d", "fashion_mnist_conditional", "dsprites_position")


@pytest.mark.parametrize("name", few(NAMES, OF_EACH_KIND))
def test_a_full_step_gives_back_a_state_of_the_same_shapes_and_scalar_metrics(name):
    config, mesh = config_of(name), parallel.device_mesh()
    checks.check(config, mesh.size)
    state = program.abstract_state(config, mesh)
    after, metrics = jax.eval_shape(program.make_step(config, mesh), state, program.abstract_batch(config, mesh))
    assert shapes(after) == shapes(state)
    assert all(metric.shape == () for metric in metrics.values())


# Each of the others takes up to half a minute to compile; test_networks.py tests their networks
@pytest.mark.parametrize(
    "name", few(NAMES, ("digits_contrastive", "density2d", "shapes_shape", "fashion_mnist_conditional"))
)
def test_shrunk_by_the_documented_override_it_takes_three_real_steps(name):
    config, mesh = schema.dry_run(config_of(name)), parallel.device_mesh()
    checks.check(config, mesh.size)
    state, step = program.make_state(config, mesh), program.make_step(config, mesh)
    fast_compile = {"xla_backend_optimization_level": 0}
    before = jax.device_get(state.params)
    with sources.open_batches(config, pytest.fail) as batches:
        batch = batches(0)
        assert shapes(batch) == shapes(
            jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), program.abstract_batch(config, mesh))
        )
        if config.model.num_classes == 1 and labels.label_shape(config) is None:
            assert (batch.labels == 0).all(), "an unconditional model sees no classes"
        step = step.lower(state, program.place_batch(config, mesh, batch)).compile(compiler_options=fast_compile)
        for index in range(config.train.num_steps):
            state, metrics = step(state, program.place_batch(config, mesh, batches(index)))
    assert int(state.step) == 3
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), before, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved["out" if config.model.name in UNETS else "head"]["kernel"])), "the last layer"
    chains = assemble.make_method(config).chains(state.memory)
    assert chains is None or (jax.device_get(chains.visits) > 0).any() == (config.method.then.after < 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_work_on_one_device_as_it_is(name):
    checks.check(config_of(name), 1)


@pytest.mark.parametrize("name", few(NAMES, OF_EACH_KIND))
def test_samples_have_the_configs_shape(name):
    config = config_of(name)
    params = jax.eval_shape(lambda: assemble.init_params(config, jax.random.key(0)))
    images = jax.eval_shape(samplers.make_sample_fn(config), params, jax.random.key(0))
    assert images.shape == (config.sample.num_images, *config.data.shape)
    assert images.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_locked_and_has_the_keys_of_default(name):
    config = config_of(name)
    assert flat(config).keys() == flat(config_of("default")).keys()
    with pytest.raises((AttributeError, KeyError)):
        config.chain.nmu_steps = 3


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"default"}))
def test_a_configs_docstring_gives_its_command_and_what_was_measured(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python run.py --config=configs/{name}.py" in text
    assert re.search(r"[Nn]ot measured|\d+ (steps|s\b)", text)


def test_the_meaning_of_every_key_says_what_its_value_is():
    """Not only what it is of, and no symbol alone: a word such as share, weight, number or steps comes first."""
    vague = r"(of|or|in which|per|the same|apart)\b"
    found = [name for name, key in schema.KEYS.items() if re.match(vague, key.meaning) or key.meaning.count(" ") < 2]
    assert found == []


def test_every_key_is_read_by_the_package():
    files = [path for path in Path(assemble.__file__).parent.rglob("*.py") if path.name != "schema.py"]
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in files)))
    assert [name for name in schema.KEYS if name.rpartition(".")[2] not in words] == []
