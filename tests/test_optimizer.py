import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ebm_jax.training import optimizer

FLOAT32 = float(np.finfo(np.float32).eps)
ADAM_EPSILON = 1e-8


def gradients(num_steps, seed=0):
    """A tree of gradients for each step; those of steps 2 and 5 are ten times as large."""
    generator = np.random.default_rng(seed)
    for step in range(num_steps):
        scale = 10.0 if step in (2, 5) else 1.0
        yield {name: np.float32(scale * generator.normal(size=shape)) for name, shape in {"a": 7, "b": (3, 2)}.items()}


def updates_of(transformation, steps, compiled=True):
    state = transformation.init(jax.tree.map(jnp.zeros_like, steps[0]))
    update = jax.jit(transformation.update) if compiled else transformation.update
    for gradient in steps:
        updates, state = update(jax.tree.map(jnp.asarray, gradient), state)
        yield updates


class ClippedAdam:
    """The equations, element by element, in float64."""

    def __init__(self, b1, b2, clip_scale, clip_offset):
        self.b1, self.b2, self.clip_scale, self.clip_offset = b1, b2, clip_scale, clip_offset
        self.m = self.v = self.t = 0
        self.clipped = 0

    def __call__(self, gradient):
        self.t += 1
        bound = self.clip_scale * np.sqrt(self.v / (1 - self.b2**self.t)) + self.clip_offset
        clipped = np.minimum(np.maximum(gradient, -bound), bound)
        self.clipped += np.sum(clipped != gradient)
        self.m = self.b1 * self.m + (1 - self.b1) * clipped
        self.v = self.b2 * self.v + (1 - self.b2) * clipped**2
        m_hat, v_hat = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return m_hat / (np.sqrt(v_hat) + ADAM_EPSILON)


@pytest.mark.parametrize(("b1", "b2"), [(0.0, 0.999), (0.9, 0.99)])
@pytest.mark.parametrize("clip", [(3.0, 0.1), (0.5, 2.0)])
def test_clipped_adam_is_its_equations(b1, b2, clip):
    steps = list(gradients(8))
    ours = updates_of(optimizer.scale_by_clipped_adam(b1, b2, *clip), steps)
    equations = {name: ClippedAdam(b1, b2, *clip) for name in steps[0]}
    for gradient, updates in zip(steps, ours, strict=True):
        for name, value in gradient.items():
            expected = equations[name](np.float64(value))
            rounding = len(steps) * FLOAT32 / (1 - b2)  # 1 - b2^t is a difference of float32 numbers near 1
            np.testing.assert_allclose(updates[name], expected, rtol=rounding)
    num_values = sum(value.size for gradient in steps for value in gradient.values())
    assert 0 < sum(equation.clipped for equation in equations.values()) < num_values


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_infinite_clip_offset_is_adam_of_optax_to_the_bit(b1):
    steps = list(gradients(6))
    transformations = (optimizer.clipped_adam(1e-3, b1, 0.999, clip_offset=np.inf), optax.adam(1e-3, b1, 0.999))
    both = (updates_of(transformation, steps, compiled=False) for transformation in transformations)
    for updates, expected in zip(*both, strict=True):  # not compiled: another fusion rounds otherwise
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_first_gradients_are_clipped_to_the_offset():
    offset, learning_rate = 0.25, 1e-2
    transformation = optimizer.clipped_adam(learning_rate, 0.0, 0.5, clip_offset=offset)
    gradient = np.array([-100.0, -0.125, 0.125, 100.0], np.float32)
    state = transformation.init(jnp.zeros(4))
    updates, state = transformation.update(jnp.asarray(gradient), state)
    np.testing.assert_array_equal(state[0].nu, 0.5 * np.minimum(np.abs(gradient), offset) ** 2)
    np.testing.assert_allclose(updates, -learning_rate * np.sign(gradient), rtol=ADAM_EPSILON / 0.1 + 4 * FLOAT32)


def test_with_b1_zero_no_update_outlives_its_gradient():
    steps = [np.float32([3.0, -3.0]), np.float32([0.0, -1.0])]
    _, second = updates_of(optimizer.clipped_adam(1e-2, 0.0, 0.9), steps)
    assert second[0] == 0
    assert second[1] > 0
