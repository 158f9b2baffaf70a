"""A U-Net whose image f(x) becomes one number, the energy: its gradient is as good as a U-Net's at every resolution."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

from ebm_jax.models.convolution import Features
from ebm_jax.models.layers import (
    Activation,
    ClassShift,
    Conv,
    SelfAttention,
    depth_to_space,
    dropout,
    enlarged,
    lecun_third,
    space_to_depth,
)
from ebm_jax.models.normalisation import group_norm
from ebm_jax.models.products import product_convolution
from ebm_jax.models.transformer import MultiHeadAttention, TransformerHead
from ebm_jax.types import BadInput, Energies, Images, Labels


def dot(x: Images, f: Images) -> Energies:
    """<x, f(x)>; not bounded below."""
    return (x * f).sum(tuple(range(1, x.ndim)))


def half_square(x: Images, f: Images) -> Energies:
    """½ |f(x)|²."""
    del x
    return 0.5 * jnp.square(f).sum(tuple(range(1, f.ndim)))


def half_distance(x: Images, f: Images) -> Energies:
    """½ |x - f(x)|²."""
    return half_square(x, x - f)


SCALARS: Mapping[str, Callable[[Images, Images], Energies]] = {
    "dot": dot,
    "half_square": half_square,
    "half_distance": half_distance,
}
"""From an image and the net's image of it to the energy (Wang & Du 2025, arXiv 2510.02300, section 3.4)."""
TRANSFORMER = "transformer"  # the name of the other one


Convolution = partial(Conv, convolve=product_convolution)
"""A convolution whose derivatives of both orders are fast on a CPU."""
GROUP = 8  # channels of a group of the normalisation, at least
MOST_GROUPS = 8


def num_groups(channels: int) -> int:
    """The largest number of groups, at most 8, that divides the channels into groups of 8 or more; else 1."""
    return max((n for n in range(1, MOST_GROUPS + 1) if channels % n == 0 and channels >= GROUP * n), default=1)


class Norm(nn.Module):
    """Group normalisation with a gain and a bias for each channel, and the activation, both in float32."""

    activation: Activation
    groups: Callable[[int], int] = num_groups
    """Their number, from that of the channels."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        gain = self.param("gain", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        normal = group_norm(x.astype(jnp.float32), gain, bias, self.groups(channels))
        return self.activation(normal).astype(x.dtype)


class Block(nn.Module):
    """A residual block: norm, activation, convolution, class shift, norm, activation, convolution that starts at 0."""

    features: int
    num_classes: int
    activation: Activation
    dropout: float

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        h = Convolution(self.features, lecun_third, name="conv1")(Norm(self.activation, name="norm1")(x))
        h = ClassShift(self.num_classes, name="shift")(h, labels)
        h = Norm(self.activation, name="norm2")(h)
        if self.dropout and self.has_rng("dropout"):
            h = dropout(self.make_rng("dropout"), h, self.dropout)
        h = Convolution(self.features, nn.initializers.zeros, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, kernel_init=lecun_third, dtype=x.dtype, name="skip")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Attention of several heads over all pixels after the norm, added; its last layer starts at 0."""

    heads: int
    groups: Callable[[int], int] = num_groups
    """Of the norm."""
    bias_init: Callable = nn.initializers.zeros
    """Of queries, keys and values."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        pixels = Norm(_itself, self.groups, name="norm")(x).reshape(len(x), -1, x.shape[-1])
        attention = MultiHeadAttention(self.heads, nn.initializers.zeros, bias_init=self.bias_init, name="heads")
        return x + attention(pixels).reshape(x.shape)


def num_heads(channels: int, of_a_head: int) -> int:
    """The largest number of heads that divides the channels into heads of `of_a_head` or more; else 1."""
    return max((n for n in range(1, channels // of_a_head + 1) if channels % n == 0), default=1)


class UNetBase(nn.Module):
    """The fields of the U-Nets. They see pixels from 0 to 1 as 2 x - 1.

    Without labels, or under those of `unlabelled`, the energy is that of no class.
    """

    width: int
    multipliers: tuple[int, ...]
    """Channels of each resolution, the finest first, in units of the width."""
    num_classes: int
    scalar: Callable[[Images, Images], Energies]
    blocks: int
    """Residual blocks of each resolution, each way."""
    patch: int
    """Pixels a side of a square that space to depth makes one pixel."""
    attention: int
    """Self-attention follows the blocks of the maps of so many pixels a side; 0: none."""
    head_channels: int
    """Channels of a head of it, at least; 0: the residual nets' attention, of one head."""
    dropout: float
    activation: Activation
    dtype: DTypeLike
    starts_at_0: bool
    """Whether the last convolution, and so the image f, does."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, the finest first."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def loops_well(self) -> bool:
        """Whether its convolutions are matrix products, which XLA's CPU backend does as fast inside a loop."""
        return jnp.dtype(self.dtype) == jnp.bfloat16

    def unlabelled(self, labels: Labels) -> Labels:
        """As many labels that stand for no class."""
        if jnp.issubdtype(labels.dtype, jnp.floating):
            return jnp.full_like(labels, jnp.nan)
        return jnp.full_like(labels, self.num_classes)


class UNet(UNetBase):
    """Space to depth, a 3x3 stem, residual blocks on ever smaller maps and back with skips, depth to space; a scalar.

    Maps are halved by 4x4 convolutions of stride 2, and enlarged by repeating pixels.
    """

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        check_size(images.shape[1:3], self.patch, len(self.widths))
        x = 2.0 * images - 1.0
        channels = images.shape[3] * self.patch**2
        h = Convolution(self.widths[0], lecun_third, name="stem")(space_to_depth(x, self.patch).astype(self.dtype))
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                h = Convolution(width, lecun_third, half=True, name=f"down{level}")(h)
            h = self._blocks(f"fine{level}", width, h, labels)
            skips.append(h)
        for level, width in reversed(list(enumerate(self.widths))):
            if level < len(self.widths) - 1:
                h = Convolution(width, lecun_third, name=f"up{level}")(h)
                h = jnp.concatenate([enlarged(h), skips[level]], -1)
            h = self._blocks(f"coarse{level}", width, h, labels)
        out_init = nn.initializers.zeros if self.starts_at_0 else lecun_third
        h = Convolution(channels, out_init, name="out")(Norm(self.activation, name="norm")(h)).astype(jnp.float32)
        h = h + self.param("bias", nn.initializers.zeros, (1, 1, 1, channels), jnp.float32)
        return self.scalar(x, depth_to_space(h, self.patch))

    def _blocks(self, name: str, width: int, h: Features, labels: Labels | None) -> Features:
        for index in range(self.blocks):
            block = Block(width, self.num_classes, self.activation, self.dropout, name=f"{name}_{index}")
            h = block(h, labels)
            if h.shape[1] == self.attention:
                h = self._attend(f"{name}_attention{index}", h)
        return h

    def _attend(self, name: str, h: Features) -> Features:
        channels = h.shape[-1]
        if self.head_channels:
            return AttentionBlock(num_heads(channels, self.head_channels), name=name)(h)
        return SelfAttention(max(channels // 2, 1), lecun_third, name=name)(h)


def check_size(size: Sequence[int], patch: int, levels: int) -> None:
    """Refuse images that cannot be halved so often.

    Raises:
      BadInput: with the size, and what divides it.
    """
    block = patch * 2 ** (levels - 1)
    if any(side % block for side in size):
        raise BadInput(
            f"images of {size[0]}x{size[1]} pixels do not divide into squares of {block}, as model.unet.patch {patch} "
            f"and {levels} resolutions need; use fewer model.unet.multipliers, or another data.shape"
        )


def from_keys(
    make: Callable[..., UNetBase],
    width: int,
    num_classes: int,
    activation: Activation,
    dtype: DTypeLike,
    *,
    multipliers: Sequence[int],
    blocks: int,
    patch: int,
    attention: int,
    head_channels: int,
    energy: str,
    dropout: float,
    transformer_patch: int,
    transformer_width: int,
    transformer_layers: int,
    transformer_heads: int,
    transformer_scale: float,
    transformer_clamp: float,
) -> UNetBase:
    """The U-Net of these values of `model` and `model.unet`, with `width` times the multipliers as channels.

    Args:
      make: the network's class.
      energy: a row of SCALARS, or transformer: a `TransformerHead` of what is named transformer_*. Its image f starts
        at 0, as in the release, so that no slope is random and 1,000 times too steep.
    """
    head = TransformerHead(
        patch=transformer_patch,
        width=transformer_width,
        layers=transformer_layers,
        heads=transformer_heads,
        scale=transformer_scale,
        dropout=dropout,
        dtype=dtype,
        clamp=transformer_clamp,
    )
    scalar = head if energy == TRANSFORMER else SCALARS[energy]
    common = (blocks, patch, attention, head_channels, dropout, activation, dtype, energy == TRANSFORMER)
    return make(width, tuple(multipliers), num_classes, scalar, *common)


unet = partial(from_keys, UNet)
"""The U-Net of our own; for width 32 and (1, 2) about 240 k parameters."""


def _itself(x: Array) -> Array:
    return x
