"""The networks: each maps images [b, h, w, c] and labels [b] to energies [b]; none has normalisation layers.

Where the release normalises spectrally, kernels start at N(0, 1) and second convolutions at N(0, 1e-10), as in its
utils.py: get_weight. Without spectral normalisation they start at Glorot uniform and at zero.
"""

from collections.abc import Callable

import flax.linen as nn

from ebm_jax.models.layers import Activation, Conv, ResidualBlock, class_rows, leaky_relu
from ebm_jax.models.spectral import HEAD
from ebm_jax.types import Energies, Images, Labels

glorot = nn.initializers.glorot_uniform()


def kernel_inits(spectral_norm: bool) -> tuple[Callable, Callable]:
    """Initialisers of ordinary kernels and of second convolutions."""
    if spectral_norm:
        return nn.initializers.normal(1.0), nn.initializers.normal(1e-10)
    return glorot, nn.initializers.zeros


class MnistNet(nn.Module):
    """28x28x1 (release models.py: MnistNet): 3x3 stem, three 4x4 convolutions of stride 2, a dense layer.

    The release is unconditional here but for a label image beside the input; ours conditions as the residual nets do.
    """

    width: int
    num_classes: int
    spectral_norm: bool
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None, *, training: bool = False) -> Energies:
        init, _ = kernel_inits(self.spectral_norm)
        h = self.activation(Conv(self.width, init, name="stem")(images))
        for index, features in enumerate((self.width, 2 * self.width, 4 * self.width)):
            bias = self.param(f"bias{index}", nn.initializers.zeros, (self.num_classes, h.shape[-1]))
            gain = self.param(f"gain{index}", nn.initializers.ones, (self.num_classes, features))
            h = Conv(features, init, half=True, name=f"conv4x4_{index}")(h + class_rows(bias, labels))
            h = self.activation(h * class_rows(gain, labels))
        h = self.activation(nn.Dense(2 * self.width, kernel_init=init, name="dense")(h.reshape(h.shape[0], -1)))
        return nn.Dense(1, kernel_init=glorot, name=HEAD)(h)[:, 0]


class ResNet(nn.Module):
    """The release's residual nets for 32x32 images: a 3x3 stem, residual blocks, activation, SUM over pixels, linear.

    `blocks` names each block's width and whether it halves the image. The release's unconditional nets put ReLU in
    place of the activation before the sum (models.py:254, 342).
    """

    width: int
    blocks: tuple[tuple[int, bool], ...]
    num_classes: int
    spectral_norm: bool
    activation: Activation = leaky_relu

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None, *, training: bool = False) -> Energies:
        init, second_init = kernel_inits(self.spectral_norm)
        h = self.activation(Conv(self.width, init, name="stem")(images))
        for index, (features, downsample) in enumerate(self.blocks):
            block = ResidualBlock(
                features, self.num_classes, self.activation, init, second_init, downsample, name=f"block{index}"
            )
            h = block(h, labels, training)
        h = self.activation(h).sum((1, 2))
        return nn.Dense(1, kernel_init=glorot, name=HEAD)(h)[:, 0]


def resnet32(width: int, **kwargs) -> ResNet:
    """ResNet32, conditional CIFAR-10: 128 → 128D, 128, 256D, 256, 256D, 256 for width 128 (release models.py)."""
    blocks = ((width, True), (width, False), (2 * width, True), (2 * width, False), (2 * width, True))
    return ResNet(width=width, blocks=(*blocks, (2 * width, False)), **kwargs)


class SmallNet(nn.Module):
    """Ours, for a laptop: strided 4x4 convolutions down to at most 7 pixels a side, a residual block, a dense head.

    Nearly all of its work is in wide convolutions on small maps, where a CPU is fastest. 308 k parameters on 28x28x1,
    140 k on 8x8x1, both for width 32.
    """

    width: int
    num_classes: int
    spectral_norm: bool
    activation: Activation = nn.swish

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None, *, training: bool = False) -> Energies:
        init, second_init = kernel_inits(self.spectral_norm)
        h, features = images, self.width
        while min(h.shape[1:3]) > 7:
            h = self.activation(Conv(features, init, half=True, name=f"stem{h.shape[1]}")(h))
            features *= 2
        block = ResidualBlock(2 * self.width, self.num_classes, self.activation, init, second_init, name="block")
        h = block(h, labels, training)
        h = nn.Dense(2 * self.width, kernel_init=init, name="dense")(h.reshape(h.shape[0], -1))
        return nn.Dense(1, kernel_init=glorot, name=HEAD)(self.activation(h))[:, 0]


class Mlp(nn.Module):
    """For densities in a few dimensions [b, d]: three hidden layers, no labels."""

    width: int
    activation: Activation = nn.swish

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None, *, training: bool = False) -> Energies:
        h = images
        for index in range(3):
            h = self.activation(nn.Dense(self.width, name=f"dense{index}")(h))
        return nn.Dense(1, name=HEAD)(h)[:, 0]
