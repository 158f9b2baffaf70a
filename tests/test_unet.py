"""The U-Nets' energies: their scalars, their labels, their sizes."""

import math
import re
from ast import literal_eval
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, changed, mixed_derivatives
from test_networks import count, in_words, multiply_adds

import ebm_jax
from configs import cifar10_energy_matching, cifar10_equilibrium
from configs import digits_contrastive as digits
from ebm_jax import assemble, checks
from ebm_jax.labels import example_labels
from ebm_jax.models.energy import from_module
from ebm_jax.models.guided_unet import guided_unet
from ebm_jax.models.guided_unet import num_groups as guided_num_groups
from ebm_jax.models.layers import depth_to_space, enlarged, space_to_depth
from ebm_jax.models.networks import UNETS
from ebm_jax.models.unet import SCALARS, TRANSFORMER, num_groups, num_heads, unet
from ebm_jax.types import BadInput

ATTENDED = "down1_0_attention"
IMAGES = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
COMMON = {
    "width": 8, "num_classes": 3, "activation": jax.nn.swish, "dtype": jnp.float32, "multipliers": (1, 2), "blocks": 1,
    "patch": 2, "attention": 0, "head_channels": 0, "energy": "dot", "dropout": 0.0, "transformer_patch": 4,
    "transformer_width": 8, "transformer_layers": 2, "transformer_heads": 2, "transformer_scale": 10.0,
    "transformer_clamp": math.inf,
}  # fmt: skip


BOTH = pytest.mark.parametrize("make", [unet, guided_unet], ids=["unet", "guided_unet"])


@cache
def made(make=unet, **changes):
    """A network, and parameters that no longer are the first ones: second convolutions start at 0."""
    network = make(**COMMON | changes)
    params = jax.jit(network.init)(jax.random.key(1), IMAGES, jnp.zeros(4, jnp.int32))["params"]
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    return network, jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)


def energies(network, params, labels):
    return np.asarray(jax.jit(network.apply)({"params": params}, IMAGES, labels))


def test_the_scalars_are_one_functions_of_the_same_image():
    found = {}
    for name in SCALARS:
        network, params = unet(**COMMON | {"energy": name}), made()[1]
        found[name] = energies(network, params, jnp.zeros(4, jnp.int32))
    norm = np.square(2 * np.asarray(IMAGES) - 1).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(found["half_distance"], norm - found["dot"] + found["half_square"], rtol=1e-4)
    assert (found["half_square"] > 0).all()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((unet, name) for name in (*SCALARS, TRANSFORMER)),
        pytest.param(guided_unet, TRANSFORMER, marks=pytest.mark.whole),
    ],
)
def test_an_untrained_energy_has_a_gradient_in_the_last_layer(make, name):
    network = make(**COMMON | {"energy": name})
    labels = jnp.zeros(4, jnp.int32)
    params = jax.jit(network.init)(jax.random.key(1), IMAGES, labels)["params"]
    grad = jax.jit(jax.grad(lambda params: network.apply({"params": params}, IMAGES, labels).sum()))(params)
    assert float(jnp.abs(grad["out"]["kernel"]).max()) > 1e-3


@pytest.mark.whole
def test_before_training_the_transformer_gives_all_images_one_energy_and_its_norms_have_no_steep_slope():
    network = unet(**COMMON | {"energy": TRANSFORMER, "transformer_scale": 1000.0})
    labels = jnp.zeros(4, jnp.int32)
    params = jax.jit(network.init)(jax.random.key(1), IMAGES, labels)["params"]
    found = energies(network, params, labels)
    assert np.ptp(found) < 1e-5 * np.abs(found).max()

    def loss(params):
        slope = jax.grad(lambda x: network.apply({"params": params}, x, labels).sum())(jnp.asarray(IMAGES))
        return jnp.square(slope - 1.0).mean()

    gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert 0 < max(np.abs(leaf).max() for leaf in gradient) < 1e3, "in units of the scale, about 1"


@BOTH
def test_no_class_is_one_energy_whoever_asks_for_it_and_classes_differ(make):
    network, params = made(make, multipliers=(1,))
    labels = jnp.asarray([0, 1, 2, 0], jnp.int32)
    without = energies(network, params, None)
    np.testing.assert_array_equal(energies(network, params, network.unlabelled(labels)), without)
    with_class = energies(network, params, labels)
    assert (np.abs(with_class - without) > 1e-4).all()
    assert np.isnan(energies(network, params, labels + 4)).all(), "no class of this model"


@BOTH
def test_a_vector_that_names_one_class_is_that_class_and_nan_is_none(make):
    network, params = made(make, multipliers=(1,))
    labels = jnp.asarray([0, 1, 2, 0], jnp.int32)
    vectors = jnp.eye(3)[labels]
    np.testing.assert_allclose(energies(network, params, vectors), energies(network, params, labels), rtol=1e-5)
    np.testing.assert_allclose(
        energies(network, params, network.unlabelled(vectors)), energies(network, params, None), rtol=1e-6
    )


@BOTH
def test_a_network_of_one_class_ignores_labels(make):
    network, params = made(make, num_classes=1, multipliers=(1,))
    np.testing.assert_array_equal(
        energies(network, params, jnp.asarray([0, 5, 3, 1], jnp.int32)), energies(network, params, None)
    )


def test_for_28x28_and_width_32_it_has_about_240_thousand_parameters_as_the_prototype():
    network = unet(**COMMON | {"width": 32, "num_classes": 1})
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert 220_000 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 280_000


@pytest.mark.parametrize(
    "changes",
    [
        {"patch": 1, "multipliers": (1, 1, 2)}, {"attention": 2}, {"attention": 2, "head_channels": 4}, {"blocks": 2},
        {"energy": TRANSFORMER},
    ],
)  # fmt: skip
def test_any_depth_patch_and_attention_give_one_finite_energy_an_image(changes):
    network, params = made(**changes)
    found = energies(network, params, jnp.asarray([0, 1, 2, 0], jnp.int32))
    assert found.shape == (4,)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", UNETS)
def test_images_that_do_not_divide_are_refused_in_one_line(name):
    config = changed(digits.get_config(), model__name=name, model__spectral_norm=False, data__shape=(12, 28, 1))
    config = changed(config, model__unet__multipliers=(1, 2, 2))
    with pytest.raises(
        BadInput, match=r"^images of 12x28 pixels do not divide into squares of 8, as model.unet.patch 2"
    ):
        assemble.abstract_params(config)


def test_depth_to_space_undoes_space_to_depth_and_enlarged_repeats_pixels():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x)), x)
    np.testing.assert_array_equal(enlarged(x), np.asarray(x).repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(
    ("channels", "groups"), [(8, 1), (16, 2), (32, 4), (64, 8), (96, 8), (20, 2), (7, 1), (192, 8)]
)
def test_groups_divide_the_channels_and_have_8_or_more(channels, groups):
    assert num_groups(channels) == groups


@pytest.mark.parametrize(
    ("channels", "of_a_head", "heads"), [(128, 64, 2), (256, 64, 4), (96, 64, 1), (8, 64, 1), (100, 30, 2), (8, 1, 8)]
)
def test_heads_divide_the_channels_and_have_as_many_or_more(channels, of_a_head, heads):
    assert num_heads(channels, of_a_head) == heads


@pytest.mark.whole
@pytest.mark.parametrize(
    ("make", "energy", "attended"),
    [(unet, "dot", "fine1_attention0"), (unet, TRANSFORMER, "fine1_attention0"), (guided_unet, TRANSFORMER, ATTENDED)],
)
def test_the_gradient_of_its_slope_is_the_slope_of_its_gradient_with_attention_too(make, energy, attended):
    network, params = made(make, num_classes=1, attention=2, head_channels=4, energy=energy)
    pair = mixed_derivatives(from_module(network), params, IMAGES, IMAGES - 0.5)
    found, expected = (jax.tree.map(np.asarray, one) for one in pair)
    largest = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected))
    assert np.linalg.norm(expected[attended]["heads"]["value"]["kernel"]) > 1e-3 * largest
    for actual, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.linalg.norm(actual - wanted) <= 0.02 * np.linalg.norm(wanted) + 1e-3 * largest


ROW = re.compile(r"\| ([\d.]+ M) \| ([\d.]+ G) \| `([^`]*)` \|")
SIZES = ROW.findall((ROOT / "docs/matching.md").read_text())


PUBLISHED = {64: "1.60 G", 96: "3.53 G", 128: "6.22 G"}  # multiply-adds, by the width; with 8.95, 20.1, 35.75 M


def products_with_zeros(width):
    """Multiply-adds of the three halvings, whose 3x3 kernels have 7 more elements, all 0, here."""
    return sum(7 * channels**2 * side**2 for channels, side in ((width, 16), (2 * width, 8), (2 * width, 4)))


@pytest.mark.whole
@pytest.mark.parametrize(("parameters", "work", "keys"), SIZES, ids=[row[0] for row in SIZES])
def test_sizes_in_the_documentation_are_those_of_their_keys(parameters, work, keys):
    words = (word.split("=") for word in keys.split())
    found = {key: value if key.endswith("name") else literal_eval(value) for key, value in words}
    config = changed(cifar10_equilibrium.get_config(), model__num_classes=1, model__dtype="float32", **{
        key.replace("--config.", "").replace(".", "__"): value for key, value in found.items()
    })  # fmt: skip
    params, apply = assemble.abstract_params(config), assemble.make_apply(config)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert in_words(count(params), parameters) == parameters
    counted, width = multiply_adds(apply, params, images), config.model.width
    assert in_words(counted, work) == work
    if config.model.name == "guided_unet":
        assert in_words(counted - products_with_zeros(width), PUBLISHED[width]) == PUBLISHED[width]


@pytest.mark.whole
def test_the_config_of_energy_matching_has_the_published_size():
    config = changed(cifar10_energy_matching.get_config(), model__dtype="float32")
    params, images = assemble.abstract_params(config), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    assert in_words(count(params), "49.99 M") == "49.99 M"
    assert in_words(count(params["scalar"]), "14.24 M") == "14.24 M"
    work = multiply_adds(assemble.make_apply(config), params, images) - products_with_zeros(128)
    assert in_words(work, "7.15 G") == "7.15 G"


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 32), (48, 6), (8, 1), (7, 1)])
def test_a_guided_unets_norms_have_32_groups_or_where_those_do_not_divide_fewer_of_8_or_more_channels(channels, groups):
    assert guided_num_groups(channels) == groups


def test_dropout_of_a_guided_unet_acts_only_where_it_has_a_random_stream():
    network, params = made(guided_unet, num_classes=1, multipliers=(1,), dropout=0.5)
    plain, _ = made(guided_unet, num_classes=1, multipliers=(1,))
    np.testing.assert_array_equal(energies(network, params, None), energies(plain, params, None))
    drop = jax.jit(lambda seed: network.apply({"params": params}, IMAGES, rngs={"dropout": jax.random.key(seed)}))
    seen = [drop(seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (np.abs(seen[0] - seen[2]) > 1e-4).all()


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize(("key", "message"), [("spectral_norm", "other norms; use False"), ("logits", "use False, or")])
def test_what_no_unet_has_is_refused_in_one_line(name, key, message):
    config = equilibrium(model__name=name, **{f"model__{key}": True})
    with pytest.raises(BadInput, match=rf"^model.{key} True does not go with model.name {name}[,;].*{message}"):
        checks.check(config, 1)


def equilibrium(**changes):
    learnt = {"model__name": "unet", "model__spectral_norm": False, "model__num_classes": 3, "model__width": 8}
    learnt |= {"method__name": "equilibrium", "chain__base": "centred_normal"}
    return changed(digits.get_config(), **learnt | changes)


@pytest.mark.whole
def test_guidance_moves_the_energy_away_from_that_of_no_class():
    config = equilibrium()
    _, params = made()
    labels = example_labels(config, jnp.arange(4))
    plain, w = assemble.make_chain_energy(config), 0.7
    guided = assemble.make_chain_energy(changed(config, sample__guidance=w))
    with_class, without = plain(params, labels)(IMAGES), plain(params, jnp.full(4, 3))(IMAGES)
    np.testing.assert_allclose(guided(params, labels)(IMAGES), (1 + w) * with_class - w * without, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "untaught",
    [{"model__name": "small"}, {"method__equilibrium__class_dropout": 0.0}, {"method__name": "contrastive"}],
)
def test_an_energy_of_no_class_that_was_never_taught_neither_guides_nor_answers(untaught):
    config = equilibrium(sample__guidance=0.7, **untaught)
    with pytest.raises(BadInput, match=r"^sample.guidance 0.7 needs an energy of no class, and this model has none"):
        assemble.make_chain_energy(config)
    with pytest.raises(BadInput, match="conditional on 3 classes: give one label for each image"):
        assemble.labels_for(config, None, 4)


def test_images_without_labels_have_the_energy_of_no_class():
    _, params = made()
    energy_fn = ebm_jax.make_energy_fn(equilibrium())
    np.testing.assert_allclose(energy_fn(params, IMAGES), energies(made()[0], params, None), rtol=1e-4)
    assert (
        np.asarray(energy_fn(params, IMAGES)) != np.asarray(energy_fn(params, IMAGES, jnp.zeros(4, jnp.int32)))
    ).all()


@pytest.mark.whole
@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chains_of_any_batch_size_can_be_exported(dtype, guidance):
    config = equilibrium(
        sample__guidance=guidance, model__dtype=dtype, sample__descent_steps=2, sample__num_steps=2,
        sample__quiet_steps=1, chain__langevin__tied=True,
    )  # fmt: skip
    _, params = made()
    sample_fn = ebm_jax.make_sample_fn(config)

    def draw(params, init, labels):
        return sample_fn(params, jax.random.key(0), labels=labels, init=init)

    (b,) = jax.export.symbolic_shape("b")
    open_batch = jax.ShapeDtypeStruct((b, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((b,), jnp.int32)
    exported = jax.export.export(jax.jit(draw))(jax.tree.map(jnp.asarray, params), *open_batch)
    labels = jnp.asarray([0, 1, 2, 0], jnp.int32)
    np.testing.assert_allclose(
        exported.call(params, IMAGES, labels), draw(params, IMAGES, labels), atol=1e-2 if dtype == "bfloat16" else 1e-4
    )
