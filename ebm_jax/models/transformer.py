"""Attention of several heads, and the transformer that turns an image into an energy (Balcerak et al. 2025).

Release: m1balcerak/EnergyMatching at 18176e4; its encoder is PyTorch's TransformerEncoder.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ebm_jax.models.common import gaussian
from ebm_jax.models.layers import dropout, lecun_third, space_to_depth
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

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        b, tokens, features = x.shape
        dense = partial(nn.Dense, features, dtype=x.dtype)
        query, key, value = (
            dense(kernel_init=lecun_third, name=name)(x).reshape(b, tokens, self.heads, -1)
            for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / jnp.sqrt(jnp.float32(query.shape[-1])))
        weights = dropped(self, weights, self.dropout).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return dense(kernel_init=self.out_init, name="out")(mixed)


class EncoderLayer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + perceptron(x)), with GELU, and dropout of each part."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=jnp.float32)
        dense = partial(nn.Dense, kernel_init=lecun_third, dtype=x.dtype)
        h = MultiHeadAttention(self.heads, dropout=self.dropout, name="attention")(x)
        x = norm(name="norm1")(x + dropped(self, h, self.dropout)).astype(x.dtype)
        h = nn.gelu(dense(WIDER * x.shape[-1], name="hidden")(x), approximate=False)
        h = dense(x.shape[-1], name="back")(dropped(self, h, self.dropout))
        return norm(name="norm2")(x + dropped(self, h, self.dropout)).astype(x.dtype)


class TransformerHead(nn.Module):
    """The energy of an image f: scale times a linear function of the mean token.

    A token is a square of pixels, linearly mapped, plus a learnt vector of its place, which starts at N(0, I): f starts
    at 0, and the norm of tokens of 0 would have a slope beyond 1e10. Layers see all tokens. The mean and the last layer
    are in float32.
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

    @nn.compact
    def __call__(self, x: Images, f: Images) -> Energies:
        del x
        self._check(f.shape[1:3])
        squares = space_to_depth(f, self.patch).astype(self.dtype)
        squares = squares.reshape(len(f), -1, squares.shape[-1])
        tokens = nn.Dense(self.width, kernel_init=lecun_third, dtype=self.dtype, name="token")(squares)
        places = self.param("places", gaussian(1.0), (1, *tokens.shape[1:]), jnp.float32)
        tokens = tokens + places.astype(self.dtype)
        for index in range(self.layers):
            tokens = EncoderLayer(self.heads, self.dropout, name=f"layer{index}")(tokens)
        mean = tokens.astype(jnp.float32).mean(1)
        return self.scale * nn.Dense(1, kernel_init=lecun_third, dtype=jnp.float32, name="head")(mean)[:, 0]

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
