"""The U-Net of guided diffusion (Dhariwal & Nichol 2021), as torchcfm has it, whose image f(x) becomes one number.

With a transformer as its scalar it is the network of energy matching (Balcerak et al. 2025).
Release: m1balcerak/EnergyMatching at 18176e4, network_transformer_vit.py; torchcfm 1.0.7, models/unet/unet.py.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_jax.models import unet
from ebm_jax.models.convolution import Features
from ebm_jax.models.layers import (
    Activation,
    ClassShift,
    convolution_same,
    convolution_second,
    dense,
    depth_to_space,
    dropout,
    enlarged,
    lecun_third,
    space_to_depth,
    uniform,
)
from ebm_jax.models.products import product_convolution
from ebm_jax.models.unet import AttentionBlock, Norm, UNetBase, check_size, from_keys, num_heads
from ebm_jax.types import Energies, Images, Labels

Time = Float[Array, "_ features"]
TIME = 0.5  # of all images: the energy does not depend on it
SLOWEST = 10_000.0  # in units of the fastest period of time's embedding
WIDER = 4  # times the width: time's embedding
GROUPS = 32


def num_groups(channels: int) -> int:
    """Of the normalisation: 32 as published, or where that does not divide the channels, those of `models.unet`.

    Of 32 channels each is a group by itself, and the norm takes off what the time or the class added.
    """
    return unet.num_groups(channels) if channels % GROUPS else GROUPS


def sinusoids(time: float, features: int) -> Float[Array, "1 features"]:
    """cos and sin of the time, at frequencies from 1 to nearly 1 / 10,000; a 0 more where their number is odd."""
    half = features // 2
    angles = time * SLOWEST ** -(np.arange(half) / max(half, 1))
    return jnp.asarray(np.concatenate([np.cos(angles), np.sin(angles), np.zeros(features % 2)])[None], jnp.float32)


class Convolution(nn.Module):
    """3x3, with a bias and zeros beyond the border, of every pixel or, to `halve` the map, of every second one."""

    features: int
    halve: bool = False
    starts_at_0: bool = False

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        zeros = nn.initializers.zeros
        kernel_init, bias_init = (zeros, zeros) if self.starts_at_0 else (lecun_third, uniform((9 * channels) ** -0.5))
        kernel = self.param("kernel", kernel_init, (3, 3, channels, self.features), jnp.float32)
        bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        convolved = (convolution_second if self.halve else convolution_same)(x, kernel, product_convolution)
        return convolved + bias[None, None, None].astype(x.dtype)


class Block(nn.Module):
    """h = conv1(act(norm(x))) + W act(time) + b; out = conv2(dropout(act(norm(h)))) + x, or a linear map of x.

    conv2 starts at 0.
    """

    features: int
    activation: Activation
    dropout: float

    @nn.compact
    def __call__(self, x: Features, time: Time) -> Features:
        norm = partial(Norm, self.activation, num_groups)
        h = Convolution(self.features, name="conv1")(norm(name="norm1")(x))
        shift = dense(self.features, time.shape[-1], dtype=jnp.float32, name="shift")(self.activation(time))
        h = norm(name="norm2")(h + shift[:, None, None].astype(x.dtype))
        if self.dropout and self.has_rng("dropout"):
            h = dropout(self.make_rng("dropout"), h, self.dropout)
        h = Convolution(self.features, starts_at_0=True, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, x.shape[-1], dtype=x.dtype, name="skip")(x)
        return h + x


class GuidedUNet(UNetBase):
    """A stem; `blocks` residual blocks of each resolution, two at the end, and `blocks` + 1 back, each with a skip.

    Maps are halved by convolutions, and enlarged by repeating pixels before one. Attention follows the blocks of the
    maps of `attention` pixels a side, and stands between the two at the end. Every block gets an embedding of a time,
    which is always ½. Where there are classes, each adds a row to it, as does "no class".
    """

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        check_size(images.shape[1:3], self.patch, len(self.multipliers))
        x, time = 2.0 * images - 1.0, self._time(len(images), labels)
        channels = images.shape[3] * self.patch**2
        h = Convolution(self.widths[0], name="stem")(space_to_depth(x, self.patch).astype(self.dtype))
        skips = [h]
        for level, width in enumerate(self.widths):
            if level:
                h = Convolution(h.shape[-1], halve=True, name=f"halve{level}")(h)
                skips.append(h)
            for index in range(self.blocks):
                h = self._block(f"down{level}_{index}", width, h, time)
                skips.append(h)
        h = self._residual("middle0", self.widths[-1], h, time)
        h = self._residual("middle1", self.widths[-1], self._attend("middle_attention", h), time)
        for level, width in reversed(list(enumerate(self.widths))):
            for index in range(self.blocks + 1):
                h = self._block(f"up{level}_{index}", width, jnp.concatenate([h, skips.pop()], -1), time)
            if level:
                h = Convolution(width, name=f"enlarge{level}")(enlarged(h))
        h = Norm(self.activation, num_groups, name="norm")(h)
        f = Convolution(channels, starts_at_0=self.starts_at_0, name="out")(h).astype(jnp.float32)
        return self.scalar(x, depth_to_space(f, self.patch))

    def _time(self, n: int, labels: Labels | None) -> Time:
        features = WIDER * self.width
        h = dense(features, self.width, dtype=jnp.float32, name="time1")(sinusoids(TIME, self.width))
        h = dense(features, features, dtype=jnp.float32, name="time2")(self.activation(h))
        if self.num_classes == 1 and (labels is None or jnp.issubdtype(labels.dtype, jnp.integer)):
            return h
        of_all = jnp.broadcast_to(h[:, None, None], (n, 1, 1, features))
        return ClassShift(self.num_classes, name="classes")(of_all, labels)[:, 0, 0]

    def _block(self, name: str, width: int, h: Features, time: Time) -> Features:
        h = self._residual(name, width, h, time)
        return self._attend(f"{name}_attention", h) if h.shape[1] == self.attention else h

    def _residual(self, name: str, width: int, h: Features, time: Time) -> Features:
        return Block(width, self.activation, self.dropout, name=name)(h, time)

    def _attend(self, name: str, h: Features) -> Features:
        channels = h.shape[-1]
        heads = num_heads(channels, self.head_channels) if self.head_channels else 1
        return AttentionBlock(heads, num_groups, uniform(channels**-0.5), name=name)(h)


guided_unet = partial(from_keys, GuidedUNet)
"""The published U-Net, of the keys of `model.unet`; `patch` is 1 there. For width 128 and (1, 2, 2, 2), 35.75 M."""
