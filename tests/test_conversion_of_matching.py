"""Energy matching's checkpoints as this package's energies: against PyTorch on random weights, and against plain NumPy.

The first needs torch and torchcfm in an environment of its own: set EBM_JAX_TORCH_PYTHON to its interpreter, and give
-m slow.
"""

import math
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_conversion import PYTHON, correlated
from test_torch_file import saved, training
from test_transformer import softmax

import ebm_jax
from ebm_jax import conversion
from ebm_jax.storage import weights
from ebm_jax.types import BadInput

RNG = np.random.default_rng(0)
SIDE, WIDTH, WIDTHS, HEAD, PATCH, EMBEDDED, LAYERS, HEADS = 8, 32, (32, 128), 64, 2, 8, 2, 4


def of_a_block(name, before, after):
    yield f"{name}.in_layers.0", (before,)
    yield f"{name}.in_layers.2", (after, before, 3, 3)
    yield f"{name}.emb_layers.1", (after, 4 * WIDTH)
    yield f"{name}.out_layers.0", (after,)
    yield f"{name}.out_layers.3", (after, after, 3, 3)
    if before != after:
        yield f"{name}.skip_connection", (after, before, 1, 1)


def of_attention(name, channels):
    yield f"{name}.norm", (channels,)
    yield f"{name}.qkv", (3 * channels, channels, 1)
    yield f"{name}.proj_out", (channels, channels, 1)


def names_and_shapes():
    """The state dict of the release's network, with one block a resolution and attention at 4x4 pixels."""
    yield "time_embed.0", (4 * WIDTH, WIDTH)
    yield "time_embed.2", (4 * WIDTH, 4 * WIDTH)
    yield "input_blocks.0.0", (32, 3, 3, 3)
    yield from of_a_block("input_blocks.1.0", 32, 32)
    yield "input_blocks.2.0.op", (32, 32, 3, 3)
    yield from of_a_block("input_blocks.3.0", 32, 128)
    yield from of_attention("input_blocks.3.1", 128)
    yield from of_a_block("middle_block.0", 128, 128)
    yield from of_attention("middle_block.1", 128)
    yield from of_a_block("middle_block.2", 128, 128)
    yield from of_a_block("output_blocks.0.0", 128 + 128, 128)
    yield from of_attention("output_blocks.0.1", 128)
    yield from of_a_block("output_blocks.1.0", 128 + 32, 128)
    yield from of_attention("output_blocks.1.1", 128)
    yield "output_blocks.1.2.conv", (128, 128, 3, 3)
    yield from of_a_block("output_blocks.2.0", 128 + 32, 32)
    yield from of_a_block("output_blocks.3.0", 32 + 32, 32)
    yield "out.0", (32,)
    yield "out.2", (3, 32, 3, 3)
    yield "patch_embed.patch_embed", (EMBEDDED, 3, PATCH, PATCH)
    for index in range(LAYERS):
        name = f"transformer_encoder.layers.{index}"
        yield f"{name}.self_attn.out_proj", (EMBEDDED, EMBEDDED)
        yield f"{name}.linear1", (4 * EMBEDDED, EMBEDDED)
        yield f"{name}.linear2", (EMBEDDED, 4 * EMBEDDED)
        yield f"{name}.norm1", (EMBEDDED,)
        yield f"{name}.norm2", (EMBEDDED,)
    yield "final_linear", (1, EMBEDDED)


def drawn(*shape, scale=1.0):
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def state_dict():
    arrays = {"patch_embed.pos_embed": drawn(1, (SIDE // PATCH) ** 2, EMBEDDED, scale=0.5)}
    for name, shape in names_and_shapes():
        if len(shape) == 1:
            arrays[f"{name}.weight"] = 1.0 + drawn(*shape, scale=0.2)
        else:
            arrays[f"{name}.weight"] = drawn(*shape, scale=1.0 / math.sqrt(math.prod(shape[1:])))
        arrays[f"{name}.bias"] = drawn(shape[0], scale=0.2)
    for index in range(LAYERS):
        name = f"transformer_encoder.layers.{index}.self_attn"
        arrays[f"{name}.in_proj_weight"] = drawn(3 * EMBEDDED, EMBEDDED, scale=EMBEDDED**-0.5)
        arrays[f"{name}.in_proj_bias"] = drawn(3 * EMBEDDED, scale=0.2)
    return arrays


class Published:
    """The release's network in float64, from its description, [n, c, h, w] as there."""

    def __init__(self, arrays):
        self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
        angles = 0.5 / 10_000 ** (np.arange(WIDTH // 2) / (WIDTH // 2))
        sinusoids = np.concatenate([np.cos(angles), np.sin(angles)])
        self.time = self.linear("time_embed.2", self.swish(self.linear("time_embed.0", sinusoids)))

    def both(self, name):
        return self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]

    def linear(self, name, x):
        kernel, bias = self.both(name)
        return x @ kernel.reshape(kernel.shape[:2]).T + bias

    def convolved(self, name, x, stride=1):
        return correlated(x, *self.both(name), stride)

    def swish(self, x):
        return x / (1.0 + np.exp(-x))

    def normalised(self, name, x):
        """In 32 groups of neighbouring channels."""
        gain, bias = self.both(name)
        groups = x.reshape(len(x), 32, -1)
        groups = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
        return groups.reshape(x.shape) * gain[:, None, None] + bias[:, None, None]

    def block(self, name, x):
        h = self.convolved(f"{name}.in_layers.2", self.swish(self.normalised(f"{name}.in_layers.0", x)))
        h = h + self.linear(f"{name}.emb_layers.1", self.swish(self.time))[:, None, None]
        h = self.convolved(f"{name}.out_layers.3", self.swish(self.normalised(f"{name}.out_layers.0", h)))
        skips = f"{name}.skip_connection.weight" in self.arrays
        return h + (self.convolved(f"{name}.skip_connection", x) if skips else x)

    def attended(self, name, x):
        """Heads of 64 channels over all pixels: queries, keys and values of a head are neighbours."""
        rows = self.normalised(f"{name}.norm", x).reshape(*x.shape[:2], -1).swapaxes(1, 2)
        given = self.linear(f"{name}.qkv", rows)
        mixed = []
        for first in range(0, given.shape[2], 3 * HEAD):
            query, key, value = np.split(given[:, :, first : first + 3 * HEAD], 3, 2)
            mixed.append(softmax(query @ key.swapaxes(1, 2) / math.sqrt(HEAD)) @ value)
        return x + self.linear(f"{name}.proj_out", np.concatenate(mixed, 2)).swapaxes(1, 2).reshape(x.shape)

    def image(self, x):
        """The U-Net's image of an image from -1 to 1."""
        skips = [self.convolved("input_blocks.0.0", x)]
        skips.append(self.block("input_blocks.1.0", skips[-1]))
        skips.append(self.convolved("input_blocks.2.0.op", skips[-1], 2))
        skips.append(self.attended("input_blocks.3.1", self.block("input_blocks.3.0", skips[-1])))
        h = self.attended("middle_block.1", self.block("middle_block.0", skips[-1]))
        h = self.block("middle_block.2", h)
        for place in range(4):
            h = self.block(f"output_blocks.{place}.0", np.concatenate([h, skips.pop()], 1))
            h = self.attended(f"output_blocks.{place}.1", h) if place < 2 else h
            if place == 1:
                h = self.convolved("output_blocks.1.2.conv", h.repeat(2, 2).repeat(2, 3))
        return self.convolved("out.2", self.swish(self.normalised("out.0", h)))

    def layer_normalised(self, name, x):
        gain, bias = self.both(name)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + bias

    def encoded(self, name, x):
        given = x @ self.arrays[f"{name}.self_attn.in_proj_weight"].T + self.arrays[f"{name}.self_attn.in_proj_bias"]
        query, key, value = (np.split(part, HEADS, 2) for part in np.split(given, 3, 2))
        size = math.sqrt(EMBEDDED / HEADS)
        mixed = [softmax(q @ k.swapaxes(1, 2) / size) @ v for q, k, v in zip(query, key, value, strict=True)]
        attended = self.linear(f"{name}.self_attn.out_proj", np.concatenate(mixed, 2))
        x = self.layer_normalised(f"{name}.norm1", x + attended)
        gelu = np.vectorize(lambda value: 0.5 * value * (1.0 + math.erf(value / math.sqrt(2.0))))
        return self.layer_normalised(
            f"{name}.norm2", x + self.linear(f"{name}.linear2", gelu(self.linear(f"{name}.linear1", x)))
        )

    def energies(self, images):
        image = self.image(2.0 * images.astype(np.float64).transpose(0, 3, 1, 2) - 1.0)
        kernel, bias = self.both("patch_embed.patch_embed")
        places = range(0, SIDE, PATCH)
        squares = [image[:, :, i : i + PATCH, j : j + PATCH] for i in places for j in places]
        tokens = np.stack([np.einsum("ncij,ocij->no", square, kernel) for square in squares], 1) + bias
        tokens = tokens + self.arrays["patch_embed.pos_embed"]
        for index in range(LAYERS):
            tokens = self.encoded(f"transformer_encoder.layers.{index}", tokens)
        return 1000.0 * self.linear("final_linear", tokens.mean(1))[:, 0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file in the release's format, and its running mean and last step's weights."""
    arrays = {"ema_model": state_dict(), "net_model": state_dict()}
    path = tmp_path_factory.mktemp("checkpoint") / "cifar10_main_training_147000.pt"
    return saved(path, arrays | training(arrays["net_model"]["out.2.weight"])), arrays


def images_of(n=3):
    return RNG.random((n, SIDE, SIDE, 3), np.float32)


@pytest.mark.whole
def test_a_converted_energy_is_the_published_networks_in_numpy_and_says_where_it_is_from(checkpoint, tmp_path):
    path, arrays = checkpoint
    run = conversion.energy_matching(path, tmp_path / "given", license="mit", notes="By somebody.")
    images = images_of()
    expected = Published(arrays["ema_model"]).energies(images)
    np.testing.assert_allclose(run.energy(images), expected, rtol=1e-5, atol=1e-2)
    assert expected.std() > 100.0, "the case would say nothing"
    card = (tmp_path / "given" / "README.md").read_text()
    assert f"Converted from {path.name}, SHA-256 {weights.digest_of(path, '')}" in card
    assert "By somebody." in card
    assert "trained elsewhere" in card
    config = ebm_jax.load(tmp_path / "given")[0]
    assert (config.data.name, config.sample.descent_steps, config.sample.num_steps) == ("cifar10", 100, 225)
    assert (config.model.width, config.model.unet.multipliers, config.model.unet.blocks) == (32, (1, 4), 1)
    assert (config.model.unet.attention, config.data.shape) == (4, (8, 8, 3))


def test_imagenets_energies_have_a_clamp_and_the_last_steps_weights_are_others(checkpoint, tmp_path):
    path, arrays = checkpoint
    run = conversion.energy_matching(path, tmp_path / "given", weights_of="raw", data="imagenet32")
    assert run.config.model.unet.transformer.clamp == 10_000.0
    assert (run.config.data.name, run.config.sample.num_steps) == ("imagenet_resized/32x32", 150)
    assert run.config.sample.weights == "raw"
    kernel = np.asarray(run.params["out"]["kernel"])
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), arrays["net_model"]["out.2.weight"])
    assert (kernel.transpose(3, 2, 0, 1) != arrays["ema_model"]["out.2.weight"]).all()


def without(name):
    return lambda arrays: arrays.pop(name)


def with_another(name, *shape):
    return lambda arrays: arrays.update({name: np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("middle_block.1.qkv.bias"), r"lacks middle_block\.1\.qkv\.bias"),
        (without("output_blocks.1.2.conv.weight"), r"lacks output_blocks\.1\.2\.conv\.weight"),
        (without("final_linear.weight"), r"lacks final_linear\.weight"),
        (with_another("label_emb.weight", 10, 128), r"it has label_emb\.weight"),
        (with_another("output_blocks.2.0.in_layers.2.bias", 31), r"it has the shape \(31,\) for up0_0/conv1/bias, not"),
        (with_another("patch_embed.pos_embed", 3), "of no network that is known here"),
        (with_another("middle_block.1.proj_out.bias", 100), "100 channels, which do not divide into heads of 64"),
        (with_another("out.2.weight", 3), "of no network that is known here"),
        (dict.clear, "holds no dict of tensors"),
    ],
)
def test_another_network_is_refused_in_one_line_and_nothing_is_written(checkpoint, tmp_path, change, words):
    arrays = dict(checkpoint[1]["ema_model"])
    change(arrays)
    path = saved(tmp_path / "other.pt", {"ema_model": arrays, "net_model": arrays})
    with pytest.raises(BadInput, match=words) as raised:
        conversion.energy_matching(path, tmp_path / "given")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "given").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"data": "mnist"}, r"^data 'mnist' is unknown; use one of cifar10, imagenet32$"),
        ({"weights_of": "mean"}, r"^weights_of 'mean' is unknown; use one of ema, raw$"),
        ({"sha256": "00"}, "has the SHA-256"),
    ],
)
def test_other_words_are_refused_in_one_line(checkpoint, tmp_path, asked, words):
    with pytest.raises(BadInput, match=words):
        conversion.energy_matching(checkpoint[0], tmp_path / "given", **asked)


def test_a_file_of_another_method_is_refused_in_one_line(tmp_path):
    path = saved(tmp_path / "other.pt", {"model_state_dict": state_dict()})
    with pytest.raises(BadInput, match="it has no part ema_model"):
        conversion.energy_matching(path, tmp_path / "given")


def largest(found, expected):
    """The largest difference."""
    return np.abs(np.asarray(found) - expected).max()


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no interpreter that has torch and torchcfm")
@pytest.mark.parametrize(("width", "multipliers", "layers"), [(32, "1,2", 2), (128, "1,2,2,2", 8)])
def test_energies_and_input_gradients_are_pytorchs(width, multipliers, layers, tmp_path):
    images = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    files = [str(tmp_path / name) for name in ("images.npy", "checkpoint.pt", "legacy.pt", "out.npz")]
    script = str(ROOT / "benchmarks" / "energy_matching_torch.py")
    subprocess.run([os.environ[PYTHON], script, str(width), multipliers, str(layers), *files], check=True)
    expected = np.load(tmp_path / "out.npz")
    for file, of, data, kind in ((files[1], "ema", "cifar10", "energy"), (files[2], "raw", "imagenet32", "clamped")):
        run = conversion.energy_matching(file, tmp_path / of, weights_of=of, data=data)
        energies = largest(run.energy(images), expected[f"{of}_{kind}"]) / 1000.0  # the scale, of sums of order one
        print(f"{of}: energies {expected[f'{of}_{kind}']}, off by {energies:.1e} of the scale")
        assert energies < 1e-6
        assert np.ptp(expected[f"{of}_{kind}"]) > 1.0, "the case would say nothing"
    run = ebm_jax.open_run(tmp_path / "ema")
    energy_fn = run.energy_fn()
    grad = jax.jit(jax.grad(lambda images: energy_fn(images).sum()))(jnp.asarray(images))
    gradients = largest(grad, expected["ema_grad"]) / np.abs(expected["ema_grad"]).max()
    print(f"gradient: standard deviation {expected['ema_grad'].std():.3g}, off by {gradients:.1e} of the largest")
    assert gradients < 1e-5
