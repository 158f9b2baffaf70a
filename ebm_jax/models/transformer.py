"""Attention of several heads, and the transformer that turns an image into an energy (Balcerak et al. 2025).

Release: m1balcerak/EnergyMatching at 18176e4; its encoder is PyTorch's TransformerEncoder.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ebm_jax.models.layers import dense, dropout, lecun_third, space_to_depth, uniform
from ebm_jax.types import BadInput, Energies, Images

Tokens = Float[Array, "b tokens features"]
EPSILON = 1e-5  # of the layer norm
WIDER = 4  # times the tokens' features: the perceptron's hidden ones


class MultiHeadAttention(nn.Module):
    """softmax(q kᵀ / sqrt(d)) v for each head of d features, side by side, and a linear layer (Vaswani et al. 2017)."""

    heads: int
    out_init: Callable = lecun_third
    dropout: float = 0.0
    """Of the attention's weights."""
    kernel_init: Callable = lecun_third
    """Of queries, keys and values."""
    bias_init: Callable = nn.initializers.zeros
    """Of theirs."""

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        b, tokens, features = x.shape
        linear = partial(nn.Dense, features, dtype=x.dtype)
        given = partial(linear, kernel_init=self.kernel_init, bias_init=self.bias_init)
        query, key, value = (
            given(name=name)(x).reshape(b, tokens, self.heads, -1) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / jnp.sqrt(jnp.float32(query.shape[-1])))
        weights = dropped(self, weights, self.dropout).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return linear(kernel_init=self.out_init, name="out")(mixed)


class EncoderLayer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + perceptron(x)), with GELU, and dropout of each part."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=jnp.float32)
        glorot = uniform(math.sqrt(6.0 / (4.0 * width)))  # of queries, keys and values as one matrix
        h = MultiHeadAttention(self.heads, dropout=self.dropout, kernel_init=glorot, name="attention")(x)
        x = norm(name="norm1")(x + dropped(self, h, self.dropout)).astype(x.dtype)
        h = nn.gelu(dense(WIDER * width, width, dtype=x.dtype, name="hidden")(x), approximate=False)
        h = dense(width, WIDER * width, dtype=x.dtype, name="back")(dropped(self, h, self.dropout))
        return norm(name="norm2")(x + dropped(self, h, self.dropout)).astype(x.dtype)


class TransformerHead(nn.Module):
    """The energy of an image f: scale times a linear function of the mean token, softly within ±clamp.

    A token is a square of pixels, linearly mapped, plus a learnt vector of its place. Layers see all tokens. The mean
    and the last layer are in float32. Parameters start as the release's: places at 0, and tokens at the random bias of
    the map, since f starts at 0 and norms of tokens of 0 would have a slope of 300 each.
    """

    patch: int
    """Pixels a side of a square."""
    width: int
    """Features of a token."""
    layers: int
    heads: int
    scale: float
    dropout: float
    dtype: DTypeLike
    clamp: float = math.inf
    """The energy is clamp · tanh(energy / clamp)."""

    @nn.compact
    def __call__(self, x: Images, f: Images) -> Energies:
        del x
        self._check(f.shape[1:3])
        squares = space_to_depth(f, self.patch).astype(self.dtype)
        squares = squares.reshape(len(f), -1, squares.shape[-1])
        pixels = squares.shape[-1]
        glorot = uniform(math.sqrt(6.0 / (pixels + self.patch**2 * self.width)))  # of a convolution, as there
        bias_init = uniform(pixels**-0.5)
        tokens = nn.Dense(self.width, kernel_init=glorot, bias_init=bias_init, dtype=self.dtype, name="token")(squares)
        places = self.param("places", nn.initializers.zeros, (1, *tokens.shape[1:]), jnp.float32)
        tokens = tokens + places.astype(self.dtype)
        for index in range(self.layers):
            tokens = EncoderLayer(self.heads, self.dropout, name=f"layer{index}")(tokens)
        mean = tokens.astype(jnp.float32).mean(1)
        energies = self.scale * dense(1, self.width, dtype=jnp.float32, name="head")(mean)[:, 0]
        return energies if math.isinf(self.clamp) else self.clamp * jnp.tanh(energies / self.clamp)

    def _check(self, size: Sequence[int]) -> None:
        """Refuse what does not divide.

        Raises:
          BadInput: with the values.
        """
        if any(side % self.patch for side in size):
            raise BadInput(
                f"images of {size[0]}x{size[1]} pixels do not divide into squares of model.unet.transformer.patch "
                f"{self.patch}; use a divisor of both"
            )
        if self.width % self.heads:
            raise BadInput(
                f"model.unet.transformer.width {self.width} is not divisible by model.unet.transformer.heads "
                f"{self.heads}; use a multiple"
            )


def dropped(module: nn.Module, x: Array, rate: float) -> Array:
    """`layers.dropout`, where the module has the random stream "dropout"."""
    return dropout(module.make_rng("dropout"), x, rate) if rate and module.has_rng("dropout") else x
