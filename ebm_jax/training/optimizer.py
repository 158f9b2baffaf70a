"""Adam as the release runs it: β1 = 0 and every element of the gradient clipped by its own second moment."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ebm_jax.types import Scalar


def scale_by_clipped_adam(
    b1: float, b2: float, clip_scale: float = 3.0, clip_offset: float = 0.1
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` on gradients clipped to |g| <= clip_scale · sqrt(v̂) + clip_offset, element by element.

    v̂ is Adam's second moment before this gradient, v / (1 - b2^t) at update t >= 1 (release custom_adam.py:155), so
    the first gradients are clipped to about `clip_offset`. An infinite `clip_offset` gives plain Adam.
    """
    adam = optax.scale_by_adam(b1, b2)

    def update(updates, state, params=None):
        correction = 1.0 - b2 ** (state.count.astype(jnp.float32) + 1.0)

        def clip(gradient, second_moment):
            bound = clip_scale * jnp.sqrt(second_moment / correction) + clip_offset
            return jnp.clip(gradient, -bound, bound)

        return adam.update(jax.tree.map(clip, updates, state.nu), state, params)

    return optax.GradientTransformation(adam.init, update)


def clipped_adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    clip_scale: float = 3.0,
    clip_offset: float = 0.1,
    clip_norm: float = math.inf,
) -> optax.GradientTransformation:
    """The optimiser of the paper: `scale_by_clipped_adam`, then a descent of `learning_rate`.

    Args:
      clip_norm: above 0; a gradient with a larger norm is scaled to this norm first.
    """
    adam = scale_by_clipped_adam(b1, b2, clip_scale, clip_offset), optax.scale_by_learning_rate(learning_rate)
    return optax.chain(*adam) if clip_norm == math.inf else optax.chain(optax.clip_by_global_norm(clip_norm), *adam)


def schedule(learning_rate: float, warmup_steps: int, decay_steps: int, final_share: float) -> optax.ScalarOrSchedule:
    """The learning rate: a linear rise, then a cosine down to a share of itself that it keeps; a number if constant.

    Args:
      warmup_steps: of the rise, 0 or more: update t takes at most (t + 1) / warmup_steps of it.
      decay_steps: of rise and cosine together; 0: it stays at the top.
    """
    if not warmup_steps and not decay_steps:
        return learning_rate

    def at(step: Any) -> Scalar:
        rise = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
        gone = jnp.minimum(step / decay_steps, 1.0) if decay_steps else 0.0
        return learning_rate * rise * (final_share + (1.0 - final_share) * 0.5 * (1.0 + jnp.cos(jnp.pi * gone)))

    return at
