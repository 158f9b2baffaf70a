"""JEM's checkpoints as this package's energies: against PyTorch on random weights, and against plain NumPy.

The first needs torch in an environment of its own: set EBM_JAX_TORCH_PYTHON to its interpreter, and give -m slow.
"""

import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_networks import abstract_params, conv, count, dense

import ebm_jax
from ebm_jax import conversion
from ebm_jax.models.wide_resnet import wide_resnet
from ebm_jax.storage import torch_file, weights
from ebm_jax.types import BadInput

PYTHON = "EBM_JAX_TORCH_PYTHON"
RNG = np.random.default_rng(0)
SIDE, CLASSES, WIDEN, BLOCKS = 8, 10, 1, 1


def names_and_shapes(blocks=BLOCKS, widen=WIDEN, classes=CLASSES):
    """The state dict of JEM's network, from its published layout."""
    yield "f.conv1", (16, 3, 3, 3)
    before = 16
    for stage in range(3):
        after = 16 * widen * 2**stage
        for index in range(blocks):
            name = f"f.layer{stage + 1}.{index}"
            yield f"{name}.conv1", (after, before, 3, 3)
            yield f"{name}.conv2", (after, after, 3, 3)
            if before != after or (stage and not index):
                yield f"{name}.shortcut.0", (after, before, 1, 1)
            before = after
    yield "f.linear", (classes, before)
    yield "energy_output", (1, before)
    yield "class_output", (classes, before)


def state_dict(**of):
    arrays = {}
    for name, shape in names_and_shapes(**of):
        scale = 1.5 / np.sqrt(np.prod(shape[1:]))
        arrays[f"{name}.weight"] = (scale * RNG.standard_normal(shape)).astype(np.float32)
        arrays[f"{name}.bias"] = (0.1 * RNG.standard_normal(shape[0])).astype(np.float32)
    return arrays


def correlated(x, kernel, bias, stride):
    """PyTorch's Conv2d [n, c, h, w] of an odd kernel with zeros beyond the border, pixel by pixel."""
    reach = kernel.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    places = range(0, x.shape[2], stride)
    size = kernel.shape[2]
    rows = [
        [np.einsum("ncij,ocij->no", padded[:, :, i : i + size, j : j + size], kernel) for j in places] for i in places
    ]
    return np.asarray(rows).transpose(2, 3, 0, 1) + bias[None, :, None, None]


def logits_by_numpy(arrays, images):
    """The network of the release in float64, from its description."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}

    def layer(name, x, stride=1):
        return correlated(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"], stride)

    def act(x):
        return np.where(x > 0, x, 0.2 * x)

    h = layer("f.conv1", 2.0 * images.astype(np.float64).transpose(0, 3, 1, 2) - 1.0)
    for stage in range(3):
        name, stride = f"f.layer{stage + 1}.0", 2 if stage else 1
        skip = layer(f"{name}.shortcut.0", h, stride) if f"{name}.shortcut.0.weight" in arrays else h
        h = layer(f"{name}.conv2", act(layer(f"{name}.conv1", act(h))), stride) + skip
    return act(h).mean((2, 3)) @ arrays["class_output.weight"].T + arrays["class_output.bias"]


def network_of(shape):
    depth = shape["model.wide_resnet.depth"]
    return wide_resnet(shape["model.width"], depth=depth, num_classes=CLASSES, spectral_norm=False, logits=True)


@pytest.mark.parametrize("side", [SIDE, 7])
def test_energies_are_those_of_the_published_network_in_numpy(side):
    arrays, images = state_dict(), RNG.random((3, side, side, 3), np.float32)
    params, shape = conversion.jem_params(arrays)
    assert shape == {
        "model.width": 16,
        "model.wide_resnet.depth": 10,
        "model.num_classes": 10,
        "data.name": "cifar10",
    }
    apply = jax.jit(network_of(shape).apply)
    logits = logits_by_numpy(arrays, images)
    for label in (0, 9):
        found = apply({"params": params}, images, jnp.full(3, label))
        np.testing.assert_allclose(found, -logits[:, label], rtol=0, atol=1e-5)
    total = -np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(apply({"params": params}, images), total, rtol=0, atol=1e-5)
    assert logits.std() > 0.1, "the case would say nothing"


def test_wrn_28_10_has_the_published_parameters():
    layers = list(names_and_shapes(blocks=4, widen=10))
    expected = sum(
        int(np.prod(shape)) + shape[0] for name, shape in layers if name not in ("f.linear", "energy_output")
    )
    network = wide_resnet(160, num_classes=10, spectral_norm=False, logits=True)
    assert count(abstract_params(network, (32, 32, 3))) == expected
    assert round(expected / 1e6, 1) == 36.5
    assert expected > dense(640, 10) + 7 * conv(3, 640, 640)


def test_a_depth_that_no_such_net_has_is_refused():
    with pytest.raises(BadInput, match=r"model\.wide_resnet\.depth 12 is not 6 n \+ 4"):
        wide_resnet(16, depth=12, num_classes=1, spectral_norm=False)


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """A file whose content is this state dict: how PyTorch's files are read is in test_torch_file.py."""
    arrays, path = state_dict(), tmp_path / "CIFAR10_MODEL.pt"
    path.write_bytes(b"PyTorch")

    def read_tensors(file, part):
        assert (file, part) == (path, "model_state_dict")
        return arrays

    monkeypatch.setattr(torch_file, "read_tensors", read_tensors)
    return path, arrays


def test_a_converted_energy_is_opened_sampled_and_says_where_it_is_from(checkpoint, tmp_path):
    path, arrays = checkpoint
    run = conversion.jem(path, tmp_path / "jem", license="mit", notes="By somebody.")
    images = RNG.random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(run.energy(images, [1, 2]), -logits_by_numpy(arrays, images)[[0, 1], [1, 2]], atol=1e-5)
    card = (tmp_path / "jem" / "README.md").read_text()
    assert f"Converted from CIFAR10_MODEL.pt, SHA-256 {weights.digest_of(path, '')}" in card
    assert "By somebody." in card
    assert "trained elsewhere" in card
    assert ebm_jax.load(tmp_path / "jem")[0].data.name == "cifar10"


def without(name):
    return lambda arrays: arrays.pop(name)


def normalised(arrays):
    arrays["f.layer1.0.bn1.weight"] = np.ones(16, np.float32)


def of_three_classes(arrays):
    arrays["class_output.weight"] = arrays["class_output.weight"][:3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("f.layer2.0.conv2.weight"), r"lacks f\.layer2\.0\.conv2\.weight"),
        (without("class_output.bias"), r"lacks class_output\.bias"),
        (normalised, r"it has f\.layer1\.0\.bn1\.weight"),
        (of_three_classes, "it has 3 classes, not 10 or 100"),
        (dict.clear, r"lacks f\.conv1\.weight"),
    ],
)
def test_another_network_is_refused_in_one_line_and_nothing_is_written(checkpoint, tmp_path, change, words):
    path, arrays = checkpoint
    change(arrays)
    with pytest.raises(BadInput, match=words) as raised:
        conversion.jem(path, tmp_path / "jem")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "jem").exists()


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no interpreter that has torch")
@pytest.mark.parametrize(("depth", "widen"), [(10, 2), (28, 10)])
def test_energies_and_input_gradients_are_pytorchs(depth, widen, tmp_path):
    images = RNG.random((2, 32, 32, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    names = ("images.npy", "checkpoint.pt", "legacy.pt", "out.npz")
    words = [str(depth), str(widen), *(str(tmp_path / name) for name in names)]
    subprocess.run([os.environ[PYTHON], str(ROOT / "benchmarks" / "jem_torch.py"), *words], check=True)
    expected = np.load(tmp_path / "out.npz")
    for name in names[1:3]:
        run = conversion.jem(tmp_path / name, tmp_path / f"folder of {name}")
        np.testing.assert_allclose(run.energy(images), -expected["total"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(run.energy(images, [3, 7]), -expected["logits"][[0, 1], [3, 7]], rtol=0, atol=1e-5)
        energy_fn = run.energy_fn()
        grad = jax.jit(jax.grad(lambda images, of=energy_fn: of(images).sum()))(jnp.asarray(images))
        print("gradient", np.abs(grad + expected["grad"]).max(), "of", expected["grad"].std())
        np.testing.assert_allclose(grad, -expected["grad"], rtol=0, atol=min(1e-5, 0.02 * expected["grad"].std()))
