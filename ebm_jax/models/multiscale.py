"""The residual network of three image resolutions of improved contrastive divergence (Du et al. 2021).

Release: yilundu/improved_contrastive_divergence at 7d3d4ee, models.py: ResNetModel.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_jax.models.common import Net, kernel_inits
from ebm_jax.models.convolution import Features, Kernel
from ebm_jax.models.layers import Activation, ClassBias, ClassGain, Conv, SelfAttention, convolution_same
from ebm_jax.models.normalisation import group_norm
from ebm_jax.models.products import product_convolution
from ebm_jax.types import Energies, Images, Labels

Convolution = partial(Conv, convolve=product_convolution)
Taps = tuple[float, float, float]
MEAN, BINOMIAL = (1 / 3, 1 / 3, 1 / 3), (1 / 4, 1 / 2, 1 / 4)
STAGES = (4, 3, 2)  # of the networks at full, half and quarter resolution
ATTENTION_AFTER = 2  # stages, of the network at full resolution
OWN_NORM, GROUPS = 128, 32  # up to so many channels each is normalised alone; more form so many groups
TINY = 1e-5  # added to a kernel's standard deviation


def halved(x: Features, taps: Taps = MEAN, mode: str = "constant") -> Features:
    """Every second pixel of the 3x3 filter with these taps along each axis: [b, h, w, c] -> [b, ⌈h/2⌉, ⌈w/2⌉, c].

    Args:
      taps: weights of a pixel's neighbours and its own.
      mode: of `jnp.pad`, for the pixels beyond the border; "constant" are zeros.
    """
    for axis in (1, 2):
        pads = [(1, 1) if axis == other else (0, 0) for other in range(x.ndim)]
        padded, size = jnp.pad(x, pads, mode), -(-x.shape[axis] // 2)
        places = ([slice(None)] * axis + [slice(i, i + 2 * size - 1, 2)] for i in range(3))
        x = sum((tap * padded[tuple(place)] for tap, place in zip(taps, places, strict=True)), jnp.zeros((), x.dtype))
    return x


Halve = Callable[[Features], Features]
anti_aliased = partial(halved, taps=BINOMIAL, mode="reflect")


def standardised(kernel: Kernel) -> Kernel:
    """A kernel whose part for each output channel has mean 0 and standard deviation 1 (Qiao et al. 2019)."""
    centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
    number = math.prod(kernel.shape[:3])
    deviation = jnp.sqrt(jnp.square(centred).sum((0, 1, 2), keepdims=True) / (number - 1))
    return centred / (deviation + TINY)


class StandardisedConv(nn.Module):
    """A 3x3 convolution with a `standardised` kernel."""

    features: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: Features) -> Features:
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), jnp.float32)
        return convolution_same(x, standardised(kernel), product_convolution)


def num_groups(channels: int) -> int:
    """A group for each channel, up to 128 channels; of more the largest number that divides both them and 32."""
    return channels if channels <= OWN_NORM else math.gcd(GROUPS, channels)


class ClassNorm(nn.Module):
    """Group normalisation with a gain and a bias for each channel and class, in float32."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        ones, zeros = jnp.ones(x.shape[-1], jnp.float32), jnp.zeros(x.shape[-1], jnp.float32)
        h = group_norm(x.astype(jnp.float32), ones, zeros, num_groups(x.shape[-1]))
        h = ClassGain(self.num_classes, name="gain")(h, labels)
        return ClassBias(self.num_classes, name="bias")(h, labels).astype(x.dtype)


class Block(nn.Module):
    """x + h, where h is x after two convolutions, each with the norm and the activation.

    Kernels are standardised, unless they are spectrally normalised.
    """

    num_classes: int
    activation: Activation
    spectral_norm: bool

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Features:
        init, _ = kernel_inits(self.spectral_norm)
        convolution = Convolution if self.spectral_norm else StandardisedConv
        h = x
        for index in ("1", "2"):
            h = convolution(x.shape[-1], init, name=f"convolution{index}")(h)
            h = self.activation(ClassNorm(self.num_classes, name=f"norm{index}")(h, labels))
        return x + h


class Scale(nn.Module):
    """The network of one resolution: a stem, stages, the mean over pixels; channels double after all but the first.

    A stage is a block, another one, a convolution, halving, the activation.
    """

    width: int
    stages: int
    num_classes: int
    activation: Activation
    spectral_norm: bool
    attention: bool
    halve: Halve

    @nn.compact
    def __call__(self, x: Features, labels: Labels | None) -> Float[Array, "b features"]:
        init, _ = kernel_inits(self.spectral_norm)

        def biased(name: str, features: int, h: Features) -> Features:
            return ClassBias(1, name=f"{name}_bias")(Convolution(features, init, name=name)(h), None)

        h = self.activation(biased("stem", self.width, x))
        for stage in range(self.stages):
            for place in "ab":
                block = Block(self.num_classes, self.activation, self.spectral_norm, name=f"block{stage}{place}")
                h = block(h, labels)
            h = self.activation(self.halve(biased(f"down{stage}", self.width * 2**stage, h)))
            if self.attention and stage + 1 == ATTENTION_AFTER:
                keys = max(h.shape[-1] // 8, 1)
                h = SelfAttention(keys, init, activation=_itself, name="attention")(h)
        return self.activation(h).astype(jnp.float32).mean((1, 2))


class MultiScale(Net, kw_only=True):
    """Residual networks of an image at full, half and quarter resolution; their energies are summed.

        U(x) = E₁(x) + E₂(x) + E₃(x),      E_s linear in the features of network s

    The heads are the parts of one linear layer on all features, with one bias for their three, so that logits too are
    sums over the resolutions.

    The release keeps the three energies of an image apart. Its chains descend their sum, which is U. Its loss takes
    means over images and energies, so ours of U differs by constant factors:

    - mean U(x⁺) - mean U(x⁻), and the energy of the moved chains, are 3 times the release's.
    - Its λ term is λ/3 Σ_s (E_s(x⁺)² + E_s(x⁻)²). Ours, λ' (U(x⁺)² + U(x⁻)²), is 3 times that for λ' = λ/3 where the
      three energies are equal, and else smaller: it leaves their differences free.
    - The entropy term has no mean over energies, so its weight times 3 has the same share of the loss.

    Adam does not see the factor 3; a clip of the gradient's norm does.

    Other differences to the release: a class has a gain and a bias in place of the norm's own, not on top of it;
    attention's values and the convolutions of blocks have no bias, which the next layer's makes up for but in groups of
    several channels; initial values.
    """

    width: int
    attention: bool
    halve: Halve

    @nn.compact
    def __call__(self, images: Images, labels: Labels | None = None) -> Energies:
        x, features = images.astype(self.dtype), []
        for index, stages in enumerate(STAGES):
            x = halved(x) if index else x
            scale = Scale(
                self.width,
                stages,
                self.layer_classes,
                self.activation,
                self.spectral_norm,
                self.attention and not index,
                self.halve,
                name=f"scale{index}",
            )
            features.append(scale(x, labels))
        return self.energies(jnp.concatenate(features, 1), labels)


def multiscale(width: int, *, attention: bool = True, antialias: bool = False, **common) -> MultiScale:
    """The network of improved contrastive divergence: 64 → 64D, 128D, 256D, 512D and the same at lower resolutions.

    Args:
      attention: self-attention over the pixels of the largest network after its second halving; on in the release.
      antialias: halve maps by the filter (1, 2, 1) / 4 on mirrored borders, a flag of the release that is off; else by
        the mean of 3x3 pixels, zeros beyond the border. Images are halved by the mean.
    """
    return MultiScale(width=width, attention=attention, halve=anti_aliased if antialias else halved, **common)


def _itself(x: Array) -> Array:
    return x
