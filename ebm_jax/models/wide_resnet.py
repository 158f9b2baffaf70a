"""The wide residual net of JEM (Grathwohl et al. 2020), without normalisation, after Zagoruyko & Komodakis 2016.

Release: wgrathwohl/JEM at 3d01161, wideresnet.py. WRN-28-10 is model.width=160 with model.wide_resnet.depth=28.
"""

import flax.linen as nn
import jax.numpy as jnp

from ebm_jax.models.common import Net
from ebm_jax.models.convolution import Features, Kernel
from ebm_jax.models.layers import (
    SECOND,
    Activation,
    ClassBias,
    Conv,
    convolution_second,
    leaky_relu,
    lecun_third,
)
from ebm_jax.types import BadInput, Energies, Images, Labels

STEM = 16  # channels
STAGES = (1, 2, 4)  # times the width; the later two halve the image


class HalvingConv(nn.Module):
    """A 3x3 convolution of every second pixel, with one row and column of zeros beyond each border, without bias."""

    features: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        kernel: Kernel = self.param("kernel", lecun_third, (3, 3, x.shape[-1], self.features), jnp.float32)
        return convolution_second(x, kernel.astype(x.dtype))


class WideBlock(nn.Module):
    """out = conv2(act(conv1(act(x)))) + s; s = x, or a 1x1 convolution of it; biases may depend on the class.

    Where it halves the image, conv2 does and s takes every second pixel.
    """

    features: int
    num_classes: int
    activation: Activation
    halve: bool

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        h = Conv(self.features, lecun_third, name="conv1")(self.activation(x))
        h = ClassBias(self.num_classes, name="bias1")(h, labels)
        second = (
            HalvingConv(self.features, name=SECOND) if self.halve else Conv(self.features, lecun_third, name=SECOND)
        )
        h = ClassBias(self.num_classes, name="bias2")(second(self.activation(h)), labels)
        if self.halve or x.shape[-1] != self.features:
            x = x[:, ::2, ::2] if self.halve else x
            x = nn.Dense(self.features, kernel_init=lecun_third, dtype=x.dtype, name="skip")(x)
        return h + x


class WideResNet(Net, kw_only=True):
    """A stem of 16 channels, three stages of (depth - 4) / 6 blocks, activation, mean over pixels, linear.

    It sees pixels from -1 to 1, as the release does. Kernels start as PyTorch's convolutions do, biases at 0.
    """

    width: int
    depth: int
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        h = Conv(STEM, lecun_third, name="stem")((2.0 * images - 1.0).astype(self.dtype))
        h = ClassBias(self.layer_classes, name="bias")(h, labels)
        for stage, times in enumerate(STAGES):
            for index in range((self.depth - 4) // 6):
                features, halve, name = times * self.width, stage > 0 and index == 0, f"stage{stage}_{index}"
                h = WideBlock(features, self.layer_classes, self.activation, halve, name=name)(h, labels)
        return self.energies(self.activation(h).astype(jnp.float32).mean((1, 2)), labels)


def wide_resnet(width: int, *, depth: int = 28, **common) -> WideResNet:
    """WRN-DEPTH-(width / 16).

    Args:
      depth: of its layers, 6 n + 4 with n blocks a stage.

    Raises:
      BadInput: there is no such number of blocks.
    """
    if depth < 10 or (depth - 4) % 6:
        raise BadInput(f"model.wide_resnet.depth {depth} is not 6 n + 4 with n of 1 or more; use 10, 16, 22, 28 or 40")
    return WideResNet(width=width, depth=depth, **common)
