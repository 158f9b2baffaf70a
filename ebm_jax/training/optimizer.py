"""Adam as the release runs it: β1 = 0 and every element of the gradient clipped by its own second moment."""

import jax
import jax.numpy as jnp
import optax


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
    learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, clip_scale: float = 3.0, clip_offset: float = 0.1
) -> optax.GradientTransformation:
    """The optimiser of the paper: `scale_by_clipped_adam`, then a descent of `learning_rate`."""
    return optax.chain(
        scale_by_clipped_adam(b1, b2, clip_scale, clip_offset), optax.scale_by_learning_rate(learning_rate)
    )
