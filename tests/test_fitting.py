"""Own networks and own arrays through one call; what it cannot use it refuses before it writes."""

import ast
import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ebm_jax
from ebm_jax import registry
from ebm_jax.arrays import pixels
from ebm_jax.models.network import as_network
from ebm_jax.models.outside import as_init_and_apply
from ebm_jax.types import BadInput

RNG = np.random.default_rng(0)
IMAGES = RNG.random((32, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(32) % 3
QUICK = {"sample.num_steps": 2, "sample.quiet_steps": 1, "chain.num_steps": 2, "log.every": 2, "buffer.capacity": 32}


class Dense(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, images):
        h = nn.swish(nn.Dense(self.width)(images.reshape(len(images), -1)))
        return nn.Dense(1)(h)[:, 0]


class ByClass(nn.Module):
    @nn.compact
    def __call__(self, images, labels):
        return nn.Dense(3)(jnp.square(images).reshape(len(images), -1))[jnp.arange(len(images)), labels]


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(64, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)])

    def __call__(self, images):
        return self.layers[1](nnx.swish(self.layers[0](images.reshape(len(images), -1))))[:, 0]


class WithBatchNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(64, rngs=rngs)

    def __call__(self, images):
        return self.norm(images.reshape(len(images), -1)).sum(1)


def bowl(params, images):
    return params["scale"] * jnp.square(images - params["centres"][0][None]).sum((1, 2, 3))


DESCENT = {"sample.descent_steps": 2}
BOWL = {"scale": jnp.ones(()), "centres": [jnp.full((8, 8, 1), 0.3)]}


def fit(net, folder=None, images=IMAGES, labels=None, *, steps=2, method="denoising", changes=None, **rest):
    return ebm_jax.fit(
        net,
        images,
        labels,
        steps=steps,
        method=method,
        folder=folder,
        changes=QUICK | (changes or {}),
        **rest,
    )


def direct(net, params, images):
    """The energies of a network of each kind by its own library's call."""
    if params is not None:
        return net(params, images)
    return net(images) if isinstance(net, nnx.Module) else jax.vmap(net)(images)


def equinox_net():
    eqx = pytest.importorskip("equinox")

    class Own(eqx.Module):
        layer: eqx.nn.Linear
        power: int = 2  # what is no array stays

        def __call__(self, image):
            return jnp.sum(jax.nn.swish(self.layer(image.reshape(-1))) ** self.power)

    return Own(eqx.nn.Linear(64, 4, key=jax.random.key(0)))


OUTSIDE = {
    "nnx": lambda: (OfNnx(nnx.Rngs(0)), None),
    "function": lambda: (bowl, BOWL),
    "equinox": lambda: (equinox_net(), None),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_network_of_another_library_keeps_its_energies_and_each_parameter_has_its_gradient(kind):
    net, params = OUTSIDE[kind]()
    made = as_network(as_init_and_apply(net, params))
    images = jnp.asarray(IMAGES)
    tree = made.init(jax.random.key(1), images, jnp.zeros(32, jnp.int32))
    np.testing.assert_allclose(made.apply(tree, images), direct(net, params, images), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda tree: made.apply(tree, images).sum()))(tree)
    assert len(tree) == {"nnx": 4, "function": 2, "equinox": 2}[kind]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", [*OUTSIDE, "linen"])
def test_five_lines_train_an_own_network_and_the_run_samples_and_gives_its_energies(kind, tmp_path):
    net, params = OUTSIDE[kind]() if kind in OUTSIDE else (Dense(), None)
    run = fit(net, tmp_path / "run", params=params)
    assert (run.step, run.folder) == (2, tmp_path / "run")
    images = run.sample(jax.random.key(0), 5)
    assert images.shape == (5, 8, 8, 1)
    energies = run.energy(images)
    np.testing.assert_allclose(
        energies, as_network(as_init_and_apply(net, params)).apply(run.params, jnp.asarray(images)), rtol=1e-5
    )


@pytest.mark.whole
def test_the_example_of_its_docstring_gives_what_it_says():
    [example] = doctest.DocTestFinder(recurse=False).find(ebm_jax.fit, "fit")
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example).failed == 0


def test_a_run_goes_on_bit_for_bit_and_other_images_are_refused(tmp_path):
    whole = fit(Dense(), tmp_path / "whole", steps=4)
    fit(Dense(), tmp_path / "parts", steps=2, changes={"checkpoint.every": 1})
    parts = fit(Dense(), tmp_path / "parts", steps=4)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_array_equal(one, other)
    before = sorted(path.name for path in (tmp_path / "parts").iterdir())
    with pytest.raises(BadInput, match="images"):
        fit(Dense(), tmp_path / "parts", images=1.0 - IMAGES, steps=4)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == before


@pytest.mark.whole
def test_more_steps_than_the_schedule_has_are_one_line_whose_cure_goes_on(tmp_path):
    fit(Dense(), tmp_path / "run", method="equilibrium", changes=DESCENT)
    with pytest.raises(BadInput, match=r"steps 4 is another schedule .* of 2 steps; to go on") as refused:
        fit(Dense(), tmp_path / "run", method="equilibrium", steps=4, changes=DESCENT)
    assert "\n" not in str(refused.value)
    cure = ast.literal_eval(str(refused.value).partition("changes=")[2].partition(", or")[0])
    assert fit(Dense(), tmp_path / "run", method="equilibrium", steps=4, changes=DESCENT | cure).step == 4


def test_labels_make_a_conditional_model_and_samples_of_the_class_asked_for(tmp_path):
    run = fit(ByClass(), labels=LABELS, method="equilibrium", changes=DESCENT)
    assert run.config.model.num_classes == 3
    one = run.energy(IMAGES[:2], np.array([0, 1]))
    assert one.shape == (2,)
    assert run.sample(jax.random.key(0), 2, labels=1).shape == (2, 8, 8, 1)
    with pytest.raises(BadInput, match=r"sample\.labels"):
        run.sample(jax.random.key(0), 2, labels=3)


def test_a_new_process_opens_the_run_with_the_same_network_and_with_no_other(tmp_path, monkeypatch):
    run = fit(Dense(), tmp_path / "run")
    expected = run.energy(IMAGES)
    monkeypatch.setattr(registry, "_given", {})
    with pytest.raises(BadInput, match=r"model\.name python:Dense-.* is an object that ebm_jax\.fit was given"):
        ebm_jax.open_run(tmp_path / "run")
    with pytest.raises(BadInput, match="give the network that it was trained with"):
        ebm_jax.open_run(tmp_path / "run", net=Dense(5))
    np.testing.assert_array_equal(ebm_jax.open_run(tmp_path / "run", net=Dense()).energy(IMAGES), expected)


def test_a_run_is_saved_to_a_new_folder_and_never_over_another(tmp_path):
    run = fit("small", changes={"model.width": 4})
    kept = run.save(tmp_path / "kept")
    np.testing.assert_array_equal(ebm_jax.open_run(kept.folder).energy(IMAGES), run.energy(IMAGES))
    with pytest.raises(BadInput, match="exists already"):
        run.save(tmp_path / "kept")


def test_images_of_all_forms_are_the_samepixels():
    levels = np.floor(256 * IMAGES.astype(np.float64)).astype(np.uint8)
    for form in (
        IMAGES,
        levels,
        IMAGES[..., 0],
        iter([IMAGES[:10], IMAGES[10:]]),
        jnp.asarray(IMAGES),
        list(IMAGES[None]),
    ):
        np.testing.assert_array_equal(pixels(form), levels)
    assert pixels(np.ones((4, 8, 8))).max() == 255


def test_an_iterator_without_an_end_is_read_for_as_many_images_as_the_steps_take_or_as_there_are_labels(tmp_path):
    def endless():
        while True:
            given.append(1)
            yield IMAGES

    given = []
    run = fit(Dense(), tmp_path / "run", endless(), steps=3, changes={"buffer.capacity": 64})
    assert len(given) == 6  # of 32 images; 3 steps take 64 each
    assert len(run.data("train").images) == 3 * 64
    given.clear()
    with pytest.raises(BadInput, match=r"labels is int64 \(32,\); give integers \[64\]"):
        fit(Dense(), tmp_path / "labelled", endless(), LABELS)
    assert len(given) == 2


def test_numbers_of_numpy_are_values_of_keys_too():
    run = fit(Dense(), changes={"optim.learning_rate": np.float32(0.5), "train.num_steps": np.int64(1)})
    assert (run.config.optim.learning_rate, run.step) == (0.5, 1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"images": IMAGES[0]}, r"images of shape \(8, 8, 1\) is one image; give many"),
        ({"images": IMAGES[0, :, :, 0]}, "is one image"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"channels come last: give images\.transpose\(0, 2, 3, 1\)"),
        ({"images": 2 * IMAGES - 1}, r"values from -0\.\d+ to .*give \(images \+ 1\) / 2"),
        ({"images": 255 * IMAGES}, "give images / 255"),
        ({"images": 1.1 * IMAGES}, r"give images\.clip\(0, 1\)"),
        ({"images": 60_000 * IMAGES}, r"give images / images\.max\(\)"),
        ({"images": 4 * IMAGES - 2}, r"give \(images - images\.min\(\)\) / \(images\.max\(\) - images\.min\(\)\)"),
        ({"images": np.where(IMAGES.min() == IMAGES, np.nan, IMAGES)}, "1 values of 2,048 that are not finite"),
        ({"images": (255 * IMAGES).astype(np.int32)}, r"images is of int32; give uint8.*images\.astype\(np\.uint8\)"),
        ({"images": IMAGES > 0.5}, r"images is of bool.*images\.astype\(float\)"),
        (
            {"images": (IMAGES > 0.5).astype(np.uint8)},
            r"values from 0 to 1, and white is 255; give images \* np\.uint8",
        ),
        ({"images": IMAGES.repeat(4, 3)}, r"give images\[\.\.\., :3\], without alpha"),
        ({"images": IMAGES.repeat(2, 3)}, r"give images\[\.\.\., :1\]"),
        ({"images": IMAGES.reshape(32, 64)}, r"flat ones as images\.reshape\(-1, 8, 8\)"),
        ({"images": 3}, "images is of the type int"),
        ({"images": "photos"}, "images is of the type str.*a folder of images is trained by the command"),
        ({"images": ["a.png", "b.png"]}, "images gives batches of the type str; give arrays"),
        ({"images": [(IMAGES, LABELS)]}, r"images gives batches of the type tuple.*labels=\.\.\. apart"),
        ({"images": list(IMAGES[..., 0])}, r"single images of shape \(8, 8\), not batches; give np\.stack\(images\)"),
        ({"images": [IMAGES, IMAGES[:, 1:]]}, "images has batches of 2 shapes"),
        ({"images": []}, "images has batches of 0 shapes"),
        ({"labels": LABELS[:-1]}, r"labels is int64 \(31,\); give integers \[32\]"),
        ({"labels": LABELS - 1}, "labels has the class -1"),
        ({"labels": LABELS}, r"net Dense takes images alone, and labels are given; let it take .*, or give no labels"),
        ({"net": bowl, "params": {"weight": jnp.ones(3)}}, r"net bowl: its apply fails .*KeyError: 'scale'"),
        ({"net": Dense}, r"net is the class Dense; give a network made from it, such as Dense\(\)"),
        ({"net": OfNnx}, "net is the class OfNnx"),
        ({"net": 3}, "net is of the type int; give a Flax or Equinox module"),
        ({"net": WithBatchNorm(nnx.Rngs(0))}, "WithBatchNorm keeps BatchStat beside its parameters"),
        ({"net": "smal"}, "did you mean small"),
        ({"method": "equilibrum"}, "did you mean equilibrium"),
        ({"steps": 0}, "steps 0 is out of range"),
        ({"changes": {"optim.learning_rat": 1.0}}, r"no key of a config; did you mean optim\.learning_rate"),
        ({"changes": {"model.width": "wide"}}, r"model\.width 'wide' is of the type str; it must be a whole number"),
        ({"seed": True}, "seed True is out of range; give a whole number"),
        ({"changes": {"optim.learning_rate": -1.0}}, r"optim\.learning_rate -1\.0 is out of range"),
        ({"params": BOWL, "net": 3}, "with params give a function"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(changed, words, tmp_path):
    with pytest.raises(BadInput, match=words) as refused:
        fit(**({"net": Dense(), "folder": tmp_path / "run"} | changed))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("run/*"))
