"""A user's own network goes through the whole package by its import path; anything else is refused in one line."""

import io
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

import ebm_jax
from configs import digits_contrastive as digits
from ebm_jax import assemble, export, program, samplers, schema
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.models import energy, networks, spectral
from ebm_jax.models.network import as_network
from ebm_jax.storage import exported
from ebm_jax.training.state import network_params
from ebm_jax.types import BadInput


class Bumps(nn.Module):
    """Smooth bumps of projections, shifted by a row for each class; no layer has a name of ours."""

    width: int
    num_classes: int

    @nn.compact
    def __call__(self, pictures, classes):
        h = nn.Dense(self.width, name="projection")(pictures.reshape(len(pictures), -1))
        shift = nn.Embed(self.num_classes, self.width, name="shift")(classes)
        return nn.Dense(1, name="total")(nn.softplus(h + shift))[:, 0]


def bowl(steepness=1.0):
    """U(x) = steepness / 2 |x - centre|², without labels; the centre starts white."""

    def init(key, images):
        del key
        return {"centre": jnp.ones(images.shape[1:])}

    def apply(params, images):
        return 0.5 * steepness * jnp.square(images - params["centre"][None]).sum((1, 2, 3))

    return SimpleNamespace(init=init, apply=apply)


def config_of(name, **values):
    config = schema.dry_run(digits.get_config()).unlock()
    config.model.name, config.model.width = f"test_network:{name}", 5
    return changed(config, **values)


def kept(state):
    """A copy that no step consumes."""
    return jax.tree.map(jnp.copy, state._replace(key=None))


def trained_states(config, steps):
    """The states after 0, 1, ... steps on one device, and the batches."""
    mesh = parallel.device_mesh(jax.devices()[:1])
    state, step = program.make_state(config, mesh), program.make_step(config, mesh)
    states, taken = [kept(state)], []
    with sources.open_batches(config, pytest.fail) as batches:
        for index in range(steps):
            taken.append(batches(index))
            state, _ = step(state, program.place_batch(config, mesh, taken[-1]))
            states.append(kept(state))
    return states, taken


def test_an_own_object_of_two_functions_trains_samples_and_exports():
    states, batches = trained_states(config_of("bowl", optim__learning_rate=0.05), 4)
    centres = [state.params["centre"] for state in states]
    mean = np.mean([batch.images for batch in batches], (0, 1)) / 256
    distances = [np.abs(centre - mean).mean() for centre in centres]
    assert distances == sorted(distances, reverse=True), "it learns where the data are"
    assert distances[-1] < distances[0] - 0.05

    still = {"sample__num_steps": 4, "sample__quiet_steps": 4, "chain__step_size": 0.125, "chain__grad_clip": 10.0}
    config = config_of("bowl", **still)
    params, start = network_params(states[-1], ema=True), jnp.full((3, 8, 8, 1), 0.5).at[1:, :, 2].set(0.125)
    away = np.asarray(start) - np.asarray(params["centre"])
    expected = np.asarray(start) + away * ((1 - 0.125) ** 4 - 1)  # noise-free descent of a parabola
    sample_fn = samplers.make_sample_fn(config)
    images = sample_fn(params, jax.random.key(0), init=start)
    np.testing.assert_allclose(images, np.clip(expected, 0, 1), atol=1e-6)
    files = export.artifact(config, params, 4)
    with np.load(io.BytesIO(files[exported.PARAMS])) as arrays:
        plain = exported.nested(dict(arrays))
    program = jax.export.deserialize(bytearray(files[exported.ENERGY]))
    found = program.call(plain, start, np.zeros(3, np.int32))
    np.testing.assert_allclose(found, 0.5 * np.square(away).sum((1, 2, 3)), rtol=1e-5)


def numpy_bumps(params, images, labels):
    h = images.reshape(len(images), -1) @ params["projection"]["kernel"] + params["projection"]["bias"]
    h = np.logaddexp(0, h + params["shift"]["embedding"][labels])
    return (h @ params["total"]["kernel"] + params["total"]["bias"])[:, 0]


@pytest.mark.whole
def test_an_own_flax_module_of_other_names_trains_normalised_is_an_ensemble_and_samples():
    config = config_of("Bumps", model__num_classes=10, model__spectral_norm=True, sample__num_images=20)
    states, _ = trained_states(config, 2)
    assert set(states[0].spectral) == {"projection.kernel", "shift.embedding", "total.kernel"}
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), states[0].params, states[-1].params)))
    members = [network_params(state, ema=False) for state in (states[0], states[-1])]
    images, labels = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1)), jnp.array([3, 0, 9, 3])
    expected = [numpy_bumps(jax.device_get(params), np.asarray(images), np.asarray(labels)) for params in members]
    energy_fn = samplers.make_energy_fn(config)
    for params, alone in zip(members, expected, strict=True):
        np.testing.assert_allclose(energy_fn(params, images, labels), alone, rtol=1e-5)
    both = energy.stack(members)
    np.testing.assert_allclose(energy_fn(both, images, labels), np.mean(expected, 0), rtol=1e-5)
    drawn = samplers.make_sample_fn(config)(both, jax.random.key(0))
    assert drawn.shape == (20, 8, 8, 1)
    assert 0 <= drawn.min() < drawn.max() <= 1


class Dropped(nn.Module):
    """The mean of the pixels that dropout leaves."""

    @nn.compact
    def __call__(self, images):
        scale = self.param("scale", nn.initializers.ones, ())
        kept = nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(images)
        return scale * kept.mean((1, 2, 3))


def test_dropout_of_an_own_module_acts_where_a_dropout_key_is_given():
    apply = assemble.make_apply(config_of("Dropped"))
    params, images = {"scale": jnp.float32(3.0)}, jnp.full((2, 8, 8, 1), 0.5)
    np.testing.assert_allclose(apply(params, images), [1.5, 1.5], rtol=1e-6)
    kept = np.asarray(apply(params, images, dropout_key=jax.random.key(0))) / 3.0 * 64  # 1 for each pixel that stays
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    assert (np.abs(kept - 32) < 5 * 4).all()  # standard deviation 4
    assert kept[0] != 32 or kept[1] != 32


class Keywords(nn.Module):
    """A network of one parameter; `got` holds what its factory was given."""

    got: tuple = ()

    @nn.compact
    def __call__(self, images, labels):
        return images.mean((1, 2, 3)) * self.param("scale", nn.initializers.ones, ())


GOT = []


def all_keywords(**keywords):
    GOT.append(sorted(keywords))
    return Keywords()


def some_keywords(width, attention, other=3):
    GOT.append([width, attention, other])
    return Keywords()


def test_a_factory_gets_the_keywords_that_its_signature_takes():
    GOT.clear()
    assemble.make_network(config_of("all_keywords"))
    assemble.make_network(config_of("some_keywords", model__resnet__attention=True))
    common = ["activation", "dtype", "num_classes", "spectral_norm", "width"]
    assert [common, [5, True, 3]] == GOT


class Formed(nn.Module):
    """A network that says how its kernels are normalised."""

    @nn.compact
    def __call__(self, images):
        h = nn.Dense(3, name="free")(images.reshape(len(images), -1))
        h = nn.Dense(3, name="never_enlarged")(nn.Dense(3, name="unit")(h))
        return nn.Dense(1, name="last")(h)[:, 0]

    def spectral_form(self, path):
        return {"unit": "normalised", "never_enlarged": "bounded"}.get(path[0])


def test_a_network_says_which_kernels_are_normalised_and_which_bounded():
    config = config_of("Formed", model__spectral_norm=True)
    raw, vectors = assemble.raw_params(config, jax.random.key(0))
    assert {name: type(pair) for name, pair in vectors.items()} == {
        "never_enlarged.kernel": spectral.Bounded,
        "unit.kernel": tuple,
    }
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, raw)
    seen = spectral.normalise(small, vectors)
    for name in ("free", "never_enlarged", "last"):  # far below norm 1 already
        np.testing.assert_allclose(seen[name]["kernel"], small[name]["kernel"], rtol=1e-6)
    assert np.linalg.norm(seen["unit"]["kernel"], 2) > 0.5


@pytest.mark.parametrize("name", [name for name in networks.NETWORKS if name not in networks.UNETS])
def test_every_network_of_ours_normalises_all_kernels_but_the_head_and_bounds_second_convolutions(name):
    residual = {"attention": True} if name.startswith("resnet") else {}
    network = as_network(networks.NETWORKS[name](width=4, num_classes=3, spectral_norm=True, **residual))
    shape = (2,) if name == "mlp" else (32, 32, 3)
    images, labels = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), images, labels))
    kernels = {path for path, leaf in flat(params).items() if leaf.ndim > 1 and path[-1] == "kernel"}
    forms = {path: network.spectral_form(path) for path, leaf in flat(params).items() if leaf.ndim > 1}
    assert {path for path, form in forms.items() if form} == kernels - {("head", "kernel")}
    assert {path for path, form in forms.items() if form == "bounded"} == {path for path in kernels if "conv2" in path}


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


# What is no network


def two_functions(init, apply):
    return lambda: SimpleNamespace(init=init, apply=apply)


def scale(key, images, labels):
    del key, images, labels
    return {"scale": jnp.ones(())}


def mean(params, images, labels):
    del labels
    return params["scale"] * images.mean((1, 2, 3))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, images, labels):
        return nn.BatchNorm(use_running_average=False)(images).mean((1, 2, 3))


NUMBER = 3
no_network = lambda: {}  # noqa: E731
refusing = two_functions  # misses its two parameters
column = two_functions(scale, lambda params, images, labels: mean(params, images, labels)[:, None])
total = two_functions(scale, lambda params, images, labels: mean(params, images, labels).sum())
halves = two_functions(scale, lambda params, images, labels: mean(params, images, labels).astype(jnp.bfloat16))
failing = two_functions(scale, lambda params, images, labels: params["weight"] * images)
listed = two_functions(lambda key, images, labels: [jnp.ones(3)], lambda params, images, labels: images.mean((1, 2, 3)))
whole = two_functions(lambda key, images, labels: {"n": jnp.ones(3, int)}, lambda params, images, labels: images)
slashed = two_functions(lambda key, images, labels: {"a/b": jnp.ones(3)}, lambda params, images, labels: images)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("NUMBER", {}, "is no code for this package"),
        ("no_network", {}, "a dict is no network; give a Flax linen module, or an object with init"),
        ("refusing", {}, r"asks for init, which is none of .*; give it a default, or a value as model.own.init"),
        ("column", {}, r"its energies of 3 images are .*shape=\(3, 1\).*return .*shape=\(3,\)"),
        ("total", {}, r"its energies of 3 images are .*shape=\(\)"),
        ("halves", {}, r"its energies of 3 images are .*bfloat16.*return .*float32"),
        ("failing", {}, r"its apply fails for images \(3, 8, 8, 1\) \(KeyError: 'weight'\)"),
        ("listed", {}, "its parameters are no nested dicts of floating-point arrays"),
        ("whole", {}, "its parameters are no nested dicts of floating-point arrays"),
        ("slashed", {}, "its parameters are no nested dicts .* names free of '.' and '/'"),
        ("Normed", {}, "Normed keeps batch_stats beside its parameters, which nothing here updates"),
        (
            "bowl",
            {"model__num_classes": 3},
            "it takes images alone; let it take labels too, or use model.num_classes=1",
        ),
        ("bowl", {"data__condition": "size"}, "it takes images alone; let it take labels too"),
        ("bowll", {}, "is not in test_network"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line_before_a_state_is_made(name, values, message):
    config = config_of(name, **values)
    with pytest.raises(BadInput, match=message) as caught:
        program.abstract_state(config, parallel.device_mesh(jax.devices()[:1]))
    assert str(caught.value).startswith(f"model.name 'test_network:{name}'")
    assert "\n" not in str(caught.value)


DOORS = {
    "init_params": lambda config: ebm_jax.init_params(config, jax.random.key(0)),
    "make_energy_fn": ebm_jax.make_energy_fn,
    "make_sample_fn": ebm_jax.make_sample_fn,
}
broken = two_functions(lambda key, images, labels: {"w": jnp.ones((3, 3)) @ images}, mean)
eager = two_functions(scale, lambda params, images, labels, temperature: mean(params, images, labels))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("column", r"its energies of 3 images are .*return .*shape=\(3,\)"),
        ("broken", r"its init fails for images \(3, 8, 8, 1\) \(TypeError: "),
        ("eager", r"its apply fails for images \(3, 8, 8, 1\) \(TypeError: .*temperature"),
        ("bowll", "is not in test_network"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line_by_the_python_functions_too(door, name, message):
    with pytest.raises(BadInput, match=f"model.name 'test_network:{name}'.*{message}") as caught:
        DOORS[door](config_of(name))
    assert "\n" not in str(caught.value)


def test_an_own_network_that_reads_labels_gets_zeros_where_an_unconditional_energy_is_given_none():
    config = config_of("Bumps")
    params = ebm_jax.init_params(config, jax.random.key(0))
    energy_fn, images = ebm_jax.make_energy_fn(config), jnp.full((2, 8, 8, 1), 0.5)
    np.testing.assert_array_equal(energy_fn(params, images), energy_fn(params, images, jnp.zeros(2, jnp.int32)))
    with pytest.raises(BadInput, match=r"params are of another network than the config's: centre is absent there"):
        ebm_jax.make_energy_fn(config_of("bowl"))(params, images)
