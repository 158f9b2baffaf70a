"""Group normalisation against its formula in float64, with derivatives of both orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax.models.normalisation import group_norm


def formula(x, gain, bias, groups):
    """Image by image and group by group, as the paper writes it."""
    b, h, w, c = x.shape
    grouped = x.reshape(b, h, w, groups, c // groups)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    return ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * gain[None, None, None] + bias[
        None, None, None
    ]


def inputs(dtype, offset=0.0):
    x, gain, bias, direction = (
        np.random.default_rng(seed).normal(size=size)
        for seed, size in enumerate([(2, 3, 5, 12), 12, 12, (2, 3, 5, 12)])
    )
    return tuple(jnp.asarray(value, dtype) for value in (2 * x + offset, 1 + gain, bias, direction))


def everything(normalise, groups):
    """The value, its gradients, and the gradients of a loss of its input gradient."""

    def scalar(x, gain, bias, direction):
        return (direction * jnp.sin(normalise(x, gain, bias, groups))).sum()

    def loss(*arguments):
        return jnp.square(jax.grad(scalar)(*arguments)).sum()

    def all_of(*arguments):
        return (
            normalise(*arguments[:3], groups),
            jax.grad(scalar, (0, 1, 2))(*arguments),
            jax.grad(loss, (0, 1, 2))(*arguments),
        )

    return jax.jit(all_of)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_value_and_derivatives_of_both_orders_are_those_of_the_formula_in_float64(groups):
    with jax.enable_x64():
        exact = everything(formula, groups)(*inputs(jnp.float64))
    ours = everything(group_norm, groups)(*inputs(jnp.float32))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < 1e-5 * np.abs(np.asarray(other)).max()


def test_a_mean_of_ten_deviations_costs_two_digits_of_float32_and_no_more():
    arguments = inputs(jnp.float32, offset=20.0)[:3]
    with jax.enable_x64():
        exact = formula(*inputs(jnp.float64, offset=20.0)[:3], 3)
    assert np.abs(np.asarray(group_norm(*arguments, 3)) - np.asarray(exact)).max() < 1e-4


def test_bfloat16_images_are_normalised_in_float32_and_rounded_once():
    x, gain, bias, _ = inputs(jnp.float32)
    x = x.astype(jnp.bfloat16)
    expected = group_norm(x.astype(jnp.float32), gain, bias, 3)
    found = group_norm(x, gain, bias, 3)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def test_images_without_variance_become_the_bias():
    _, gain, bias, _ = inputs(jnp.float32)
    constant = jnp.full((2, 3, 5, 12), 0.1)
    value, gradient = jax.value_and_grad(lambda x: group_norm(x, gain, bias, 3)[0, 0, 0, 0])(constant)
    assert value == pytest.approx(float(bias[0]), abs=1e-4)
    assert np.isfinite(gradient).all()


def test_groups_that_do_not_divide_the_channels_are_refused():
    x, gain, bias, _ = inputs(jnp.float32)
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        group_norm(x, gain, bias, 5)
