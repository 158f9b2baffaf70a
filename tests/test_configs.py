"""Every shipped config builds, and a full training step of it has the shapes it says."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ebm_jax import build, parallel
from ebm_jax.io.workdir import flat
from ebm_jax.types import Batch

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "__init__")


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def abstract_batch(config):
    size = config.train.batch_size
    images = jax.ShapeDtypeStruct((size, *config.data.shape), jnp.uint8)
    return Batch(images, jax.ShapeDtypeStruct((size,), jnp.int32))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", NAMES)
def test_a_full_step_gives_back_a_state_of_the_same_shapes_and_finite_many_metrics(name):
    config, mesh = config_of(name), parallel.device_mesh()
    build.check(config, mesh.size)
    state = build.abstract_state(config, mesh)
    after, metrics = jax.eval_shape(build.make_step(config, mesh), state, abstract_batch(config))
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after) == jax.tree.map(
        lambda _: True, state
    )
    assert all(metric.shape == () for metric in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_configs_shape(name):
    config = config_of(name)
    params = jax.eval_shape(lambda: build.init_params(config, jax.random.key(0)))
    images = jax.eval_shape(build.make_sample_fn(config), params, jax.random.key(0))
    assert images.shape == (config.sample.num_images, *config.data.shape)
    assert images.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_locked_and_has_the_keys_of_default(name):
    config = config_of(name)
    assert flat(config).keys() == flat(config_of("default")).keys()
    with pytest.raises((AttributeError, KeyError)):
        config.chain.nmu_steps = 3


def test_every_key_is_explained_beside_it_or_by_its_name():
    source = (Path(__file__).parents[1] / "configs" / "default.py").read_text()
    plain = {"split", "seed", "num_images"}
    lines = [
        line.strip()
        for line in source.splitlines()
        if line.strip().startswith("config.") and "ConfigDict()" not in line
    ]
    bare = [line for line in lines if "#" not in line and line.split(" = ")[0].split(".")[-1] not in plain]
    assert not bare


def test_every_key_is_read_by_the_package():
    package = "".join(path.read_text() for path in (Path(build.__file__).parent).rglob("*.py"))
    unread = [key for key in flat(config_of("default")) if key.split(".")[1] not in package.replace("_" + key, "")]
    assert not unread
