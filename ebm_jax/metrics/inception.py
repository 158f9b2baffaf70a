"""Inception v3 of the Fréchet Inception Distance: the graph of TensorFlow's release of 2015-12-05.

Unlike in the paper's network (Szegedy 2015), averages leave out the padding, the last block pools by a maximum, and
there are 1,008 classes. Layers have their names in the PyTorch FID weights file.
"""

import functools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float

from ebm_jax.types import BadInput, Images, Params

SIDE = 299  # pixels that the network sees
NUM_FEATURES = 2048
NUM_CLASSES = 1008
EPSILON = 1e-3  # in the normalisations, beside the variance
CONVENTION = (
    "resized to 299x299 by bilinear interpolation between pixel centres (align_corners=False, no antialiasing), gray "
    "repeated over three channels, float32"
)

Features = Float[Array, "b _ _ _"]  # NHWC
WITHOUT_PADDING = "VALID"
NORMALISATION = ("weight", "bias", "running_mean", "running_var")
Convolution = partial(nn.Conv, precision=lax.Precision.HIGHEST)  # TPUs round float32 to bfloat16 elsewhere


def resized(images: Images) -> Float[Array, "b 299 299 3"]:
    """Images [b, h, w, 1 or 3] in [0, 1] as the network takes them: [b, 299, 299, 3] in [-1, 1].

    Bilinear between pixel centres and without antialiasing, as PyTorch's `interpolate(align_corners=False)`. The
    TensorFlow 1 code of the FID paper aligned corners of pixels instead, which shifts small images by up to half a
    pixel. Compare distances under one convention only.
    """
    shape = (images.shape[0], SIDE, SIDE, images.shape[3])
    large = jax.image.resize(images, shape, "linear", antialias=False, precision=lax.Precision.HIGHEST)
    return 2.0 * jnp.broadcast_to(large, (*shape[:3], 3)) - 1.0


def average_pool(x: Features) -> Features:
    """3x3 means of stride 1; pixels outside the image do not count."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x: Features) -> Features:
    """3x3 maxima of stride 1; pixels outside the image do not count."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def halved(x: Features) -> Features:
    """3x3 maxima of stride 2, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2), padding=WITHOUT_PADDING)


class Layer(nn.Module):
    """A convolution, into which the normalisation after it is folded, then ReLU."""

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Features) -> Features:
        strides = (self.stride, self.stride)
        return nn.relu(Convolution(self.features, self.size, strides, self.padding, name="conv")(x))


class BlockA(nn.Module):
    """35x35: 1x1, 5x5 and twice 3x3, and pooled."""

    pooled: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        wide = Layer(64, (5, 5), name="branch5x5_2")(Layer(48, name="branch5x5_1")(x))
        deep = Layer(96, (3, 3), name="branch3x3dbl_2")(Layer(64, name="branch3x3dbl_1")(x))
        deep = Layer(96, (3, 3), name="branch3x3dbl_3")(deep)
        pooled = Layer(self.pooled, name="branch_pool")(average_pool(x))
        return jnp.concatenate([Layer(64, name="branch1x1")(x), wide, deep, pooled], -1)


class BlockB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        small = Layer(384, (3, 3), 2, WITHOUT_PADDING, name="branch3x3")(x)
        deep = Layer(96, (3, 3), name="branch3x3dbl_2")(Layer(64, name="branch3x3dbl_1")(x))
        deep = Layer(96, (3, 3), 2, WITHOUT_PADDING, name="branch3x3dbl_3")(deep)
        return jnp.concatenate([small, deep, halved(x)], -1)


class BlockC(nn.Module):
    """17x17: 1x1, rows and columns of seven once and twice, and pooled."""

    inner: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        row, column, inner = (1, 7), (7, 1), self.inner
        once = Layer(inner, row, name="branch7x7_2")(Layer(inner, name="branch7x7_1")(x))
        once = Layer(192, column, name="branch7x7_3")(once)
        twice = Layer(inner, column, name="branch7x7dbl_2")(Layer(inner, name="branch7x7dbl_1")(x))
        twice = Layer(inner, column, name="branch7x7dbl_4")(Layer(inner, row, name="branch7x7dbl_3")(twice))
        twice = Layer(192, row, name="branch7x7dbl_5")(twice)
        pooled = Layer(192, name="branch_pool")(average_pool(x))
        return jnp.concatenate([Layer(192, name="branch1x1")(x), once, twice, pooled], -1)


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        small = Layer(192, name="branch3x3_1")(x)
        small = Layer(320, (3, 3), 2, WITHOUT_PADDING, name="branch3x3_2")(small)
        large = Layer(192, (1, 7), name="branch7x7x3_2")(Layer(192, name="branch7x7x3_1")(x))
        large = Layer(192, (7, 1), name="branch7x7x3_3")(large)
        large = Layer(192, (3, 3), 2, WITHOUT_PADDING, name="branch7x7x3_4")(large)
        return jnp.concatenate([small, large, halved(x)], -1)


class BlockE(nn.Module):
    """8x8: 1x1, rows beside columns of three, and pooled: by the mean, in the last block by the maximum."""

    last: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        small = self._both(Layer(384, name="branch3x3_1")(x), "branch3x3_2")
        deep = Layer(384, (3, 3), name="branch3x3dbl_2")(Layer(448, name="branch3x3dbl_1")(x))
        deep = self._both(deep, "branch3x3dbl_3")
        pooled = Layer(192, name="branch_pool")(max_pool(x) if self.last else average_pool(x))
        return jnp.concatenate([Layer(320, name="branch1x1")(x), *small, *deep, pooled], -1)

    def _both(self, x: Features, name: str) -> tuple[Features, Features]:
        return Layer(384, (1, 3), name=f"{name}a")(x), Layer(384, (3, 1), name=f"{name}b")(x)


class Inception(nn.Module):
    """Maps images [b, h, w, 1 or 3] in [0, 1] to features [b, 2048] and class probabilities [b, 1008].

    The probabilities are the softmax of the logits without their bias, as in the code of the Inception Score's paper
    (openai/improved-gan: inception_score/model.py).
    """

    @nn.compact
    def __call__(self, images: Images) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        x = Layer(32, (3, 3), 2, WITHOUT_PADDING, name="Conv2d_1a_3x3")(resized(images))
        x = Layer(32, (3, 3), 1, WITHOUT_PADDING, name="Conv2d_2a_3x3")(x)
        x = halved(Layer(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Layer(80, name="Conv2d_3b_1x1")(x)
        x = halved(Layer(192, (3, 3), 1, WITHOUT_PADDING, name="Conv2d_4a_3x3")(x))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pooled, name=name)(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = BlockC(inner, name=name)(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(last=True, name="Mixed_7c")(BlockE(last=False, name="Mixed_7b")(x))
        features = x.mean((1, 2))
        logits = nn.Dense(NUM_CLASSES, use_bias=False, precision=lax.Precision.HIGHEST, name="fc")(features)
        return features, jax.nn.softmax(logits)


@functools.cache
def shapes() -> Any:
    """The tree of the network's parameters as shapes and types."""
    variables = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    return variables["params"]


def params_of(state: dict[str, np.ndarray]) -> Params:
    """The parameters in a state dict of the PyTorch FID Inception, normalisations folded into the convolutions.

    Args:
      state: "Mixed_5b.branch1x1.conv.weight" and the like, convolutions as [out, in, height, width].

    Raises:
      BadInput: a weight is missing, unknown, of another shape or not finite, or a variance is negative.
    """
    tree: Any = traverse_util.flatten_dict(shapes())
    layers = {path: leaf.shape for path, leaf in tree.items() if path[-2] == "conv"}
    _check(state, {".".join(path[:-2]): shape for path, shape in layers.items() if path[-1] == "kernel"})
    params = {("fc", "kernel"): state["fc.weight"].T.astype(np.float32)}
    for *layer, _ in {path[:-1] for path in layers}:
        kernel, bias = _folded(state, ".".join(layer))
        params |= {(*layer, "conv", "kernel"): kernel, (*layer, "conv", "bias"): bias}
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params))


def _folded(state: dict[str, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [h, w, in, out] and bias [out] of a convolution together with the normalisation after it."""
    weight = state[f"{layer}.conv.weight"].astype(np.float64)
    scale, offset, mean, variance = (state[f"{layer}.bn.{part}"].astype(np.float64) for part in NORMALISATION)
    factor = scale / np.sqrt(variance + EPSILON)
    kernel = (weight * factor[:, None, None, None]).transpose(2, 3, 1, 0)
    return kernel.astype(np.float32), (offset - mean * factor).astype(np.float32)


def _check(state: dict[str, np.ndarray], kernels: dict[str, tuple[int, ...]]) -> None:
    """Raise BadInput unless `state` is the state of a network with these kernels [h, w, in, out]."""
    expected: dict[str, tuple[int, ...]] = {"fc.weight": (NUM_CLASSES, NUM_FEATURES), "fc.bias": (NUM_CLASSES,)}
    for layer, (height, width, c_in, c_out) in kernels.items():
        expected[f"{layer}.conv.weight"] = (c_out, c_in, height, width)
        expected |= {f"{layer}.bn.{part}": (c_out,) for part in NORMALISATION}
    for name, shape in expected.items():
        array = state.get(name)
        if array is None or array.shape != shape:
            found = "missing" if array is None else f"of the shape {array.shape}"
            raise BadInput(f"{name} is {found}, the FID Inception has it as {shape}; take the file of its weights")
        if not np.isfinite(array).all() or (name.endswith("running_var") and array.min() < 0):
            raise BadInput(f"{name} has values that cannot be its; copy the file of the weights anew")
    for name in state:
        if name not in expected and not name.endswith("num_batches_tracked"):
            raise BadInput(f"{name} is no weight of the FID Inception; take the file of its weights")
