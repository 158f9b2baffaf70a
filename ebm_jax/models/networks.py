"""The networks: each maps images [b, h, w, c] and labels to energies [b].

With logits, a network is a classifier whose logits are energies, and has an energy of no class. Those of this file have
no normalisation layers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ebm_jax.models.common import Net, head, kernel_inits
from ebm_jax.models.guided_unet import guided_unet
from ebm_jax.models.layers import (
    Activation,
    ClassBias,
    ClassGain,
    Conv,
    ResidualBlock,
    SelfAttention,
    leaky_relu,
)
from ebm_jax.models.multiscale import multiscale
from ebm_jax.models.unet import unet
from ebm_jax.models.wide_resnet import wide_resnet
from ebm_jax.types import Energies, Images, Labels


class StridedNet(Net, kw_only=True):
    """A 3x3 stem, 4x4 convolutions of stride 2, a dense layer, a linear head.

    Every strided convolution is class-conditional like a residual block: a bias before it, a gain after it. The
    release's MnistNet takes labels but ignores them; its DspritesNet has a gain after the third convolution only.
    """

    stem: int
    features: tuple[int, ...]
    dense: int
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        init, _ = kernel_inits(self.spectral_norm)
        h = self.activation(Conv(self.stem, init, name="stem")(images.astype(self.dtype)))
        for index, features in enumerate(self.features):
            h = ClassBias(self.layer_classes, name=f"bias{index}")(h, labels)
            h = Conv(features, init, half=True, name=f"conv4x4_{index}")(h)
            h = self.activation(ClassGain(self.layer_classes, name=f"gain{index}")(h, labels))
        h = h.reshape(h.shape[0], -1)
        h = nn.Dense(self.dense, kernel_init=init, dtype=self.dtype, name="dense")(h)
        return self.energies(self.activation(h), labels)


def mnist(width: int, **common) -> StridedNet:
    """MnistNet, 28x28x1: 64 → 64, 128, 256 → dense 128 for width 64 (release models.py: MnistNet)."""
    return StridedNet(stem=width, features=(width, 2 * width, 4 * width), dense=2 * width, **common)


def dsprites(width: int, **common) -> StridedNet:
    """DspritesNet, 64x64x1: 32 → 64, 128, 128, 128 → dense 128 for width 64 (release models.py: DspritesNet)."""
    features = (width, 2 * width, 2 * width, 2 * width)
    return StridedNet(stem=width // 2, features=features, dense=2 * width, **common)


class Residual(NamedTuple):
    """A residual block of a `ResNet`: its channels, and whether it halves the image."""

    features: int
    downsample: bool = False


class Attention(NamedTuple):
    """A self-attention block of a `ResNet`, with `keys` channels of queries and keys."""

    keys: int


class ResNet(Net, kw_only=True):
    """The release's residual nets: a 3x3 stem, blocks, activation, SUM over pixels, linear.

    The release's unconditional nets put ReLU in place of the activation before the sum (models.py:254, 342). They use
    LeakyReLU in the stem or the first block even where the user asks for swish (models.py:416, 602).
    """

    stem: int
    blocks: tuple[Residual | Attention, ...]
    activation: Activation = leaky_relu
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        init, second_init = kernel_inits(self.spectral_norm)
        h = self.activation(Conv(self.stem, init, name="stem")(images.astype(self.dtype)))
        for index, spec in enumerate(self.blocks):
            name = f"block{index}"
            if isinstance(spec, Attention):
                h = SelfAttention(spec.keys, init, name=name)(h)
                continue
            block = ResidualBlock(
                spec.features,
                self.layer_classes,
                self.activation,
                init,
                second_init,
                downsample=spec.downsample,
                dropout=self.dropout,
                name=name,
            )
            h = block(h, labels)
        return self.energies(self.activation(h).astype(jnp.float32).sum((1, 2)), labels)


def resnet32(width: int, *, attention: bool = False, dropout: float = 0.0, **common) -> ResNet:
    """ResNet32, conditional CIFAR-10: 128 → 128D, 128, 256D, 256, 256D, 256 for width 128 (release models.py).

    Attention replaces the fourth block (models.py:247).
    """
    double = 2 * width
    blocks = (Residual(width, True), Residual(width), Residual(double, True))
    fourth = Attention(width // 2) if attention else Residual(double)
    return ResNet(
        stem=width, blocks=(*blocks, fourth, Residual(double, True), Residual(double)), dropout=dropout, **common
    )


def resnet32_large(width: int, *, attention: bool = False, dropout: float = 0.0, **common) -> ResNet:
    """ResNet32Large, unconditional CIFAR-10: 128 → 128D,128,128, 256D,256,256, 512D,512,512 (release models.py).

    Attention replaces the fifth block (models.py:327). The release trains this network with dropout 0.5.
    """
    blocks = _three_stages(width)
    if attention:
        blocks = (*blocks[:4], Attention(width), *blocks[5:])
    return ResNet(stem=width, blocks=blocks, dropout=dropout, **common)


def resnet32_wider(width: int, *, attention: bool = False, dropout: float = 0.0, **common) -> ResNet:
    """ResNet32Wider: stem 128, then ResNet32Large's blocks; width 192 (CIFAR-10), 256 (ImageNet-32) (release).

    Attention replaces the second block (models.py:418).
    """
    blocks = _three_stages(width)
    if attention:
        blocks = (blocks[0], Attention(width // 2), *blocks[2:])
    return ResNet(stem=128, blocks=blocks, dropout=dropout, **common)


def _three_stages(width: int) -> tuple[Residual | Attention, ...]:
    widths = (width, 2 * width, 4 * width)
    return tuple(Residual(features, index == 0) for features in widths for index in range(3))


def resnet128(width: int, *, attention: bool = False, dropout: float = 0.0, **common) -> ResNet:
    """ResNet128, ImageNet at 128x128: 64 → 64D, 128D, 256D, 512D, 512D, 512 for width 64 (release models.py).

    Attention comes after the first block, over 64x64 pixels (models.py:604).
    """
    first = (Residual(width, True), Attention(width // 2)) if attention else (Residual(width, True),)
    halving = tuple(Residual(factor * width, True) for factor in (2, 4, 8, 8))
    return ResNet(stem=width, blocks=(*first, *halving, Residual(8 * width)), dropout=dropout, **common)


class SmallNet(Net, kw_only=True):
    """Ours, for a laptop: strided 4x4 convolutions down to at most 7 pixels a side, a residual block, a dense head.

    Wide convolutions on small maps do nearly all of its work; there a CPU is fastest. For width 32 it has 308 k
    parameters on 28x28x1 and 140 k on 8x8x1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import networks
      >>> net, images = networks.SmallNet(width=4, num_classes=1, spectral_norm=False), jnp.zeros((3, 8, 8, 1))
      >>> variables = jax.jit(net.init)(jax.random.key(0), images)
      >>> jax.eval_shape(net.apply, variables, images)  # an energy an image
      ShapeDtypeStruct(shape=(3,), dtype=float32)
    """

    width: int

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        init, second_init = kernel_inits(self.spectral_norm)
        h, features = images.astype(self.dtype), self.width
        while min(h.shape[1:3]) > 7:
            h = self.activation(Conv(features, init, half=True, name=f"stem{h.shape[1]}")(h))
            features *= 2
        block = ResidualBlock(2 * self.width, self.layer_classes, self.activation, init, second_init, name="block")
        h = block(h, labels)
        h = nn.Dense(2 * self.width, kernel_init=init, dtype=self.dtype, name="dense")(h.reshape(h.shape[0], -1))
        return self.energies(self.activation(h), labels)


class Mlp(Net, kw_only=True):
    """For densities in a few dimensions, points [b, d] of the unit box: three hidden layers, no labels.

    It stretches points from [0, 1] to [-4, 4], and its kernels keep the variance (LeCun), so that the units of the
    first layer bend all over the box. Glorot's kernels are much smaller for small d: with them it learns rings and
    modes late.
    """

    width: int
    loops_well = True  # it has no convolutions

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        init = kernel_inits(True)[0] if self.spectral_norm else nn.initializers.lecun_normal()
        h = 8.0 * (images.astype(self.dtype) - 0.5)
        for index in range(3):
            h = self.activation(nn.Dense(self.width, kernel_init=init, dtype=self.dtype, name=f"dense{index}")(h))
        return head(h)


NETWORKS: Mapping[str, Callable[..., Any]] = {
    "resnet32": resnet32,
    "resnet32_large": resnet32_large,
    "resnet32_wider": resnet32_wider,
    "resnet128": resnet128,
    "mnist": mnist,
    "dsprites": dsprites,
    "small": SmallNet,
    "mlp": Mlp,
    "multiscale": multiscale,
    "unet": unet,
    "guided_unet": guided_unet,
    "wide_resnet": wide_resnet,
}
UNETS = ("unet", "guided_unet")
"""Those that have the keys of `model.unet`, norms of their own, and no logits."""
