"""Inputs are small integers, so that every sum is exact in float32 and equality needs no tolerance."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_convolution import SAME, assert_identical, integers, lax_convolution, value_and_gradients

from ebm_jax.distributed import parallel
from ebm_jax.models import products
from ebm_jax.models.convolution import convolution
from ebm_jax.models.products import product_convolution, product_convolution_same

CONVOLUTIONS = [  # kernel size, padding, channels in and out
    ((3, 3), ((1, 1), (1, 1)), 2, 4),
    ((3, 3), ((1, 1), (1, 1)), 3, 5),
    ((2, 2), ((1, 0), (1, 0)), 4, 2),
    ((1, 1), ((0, 0), (0, 0)), 4, 3),
    ((3, 2), ((0, 2), (1, 0)), 2, 2),
    ((1, 5), ((0, 0), (4, 1)), 2, 3),
]


def loss_of_input_gradient(convolve, padding):
    """A loss like equilibrium matching's, of a product of convolutions: its input gradient is quadratic in kernels."""

    def loss(x, kernel):
        gradient = jax.grad(lambda x: 0.5 * jnp.square(convolve(x, kernel, padding)).sum())(x)
        return 0.5 * jnp.square(gradient).sum()

    return loss


@pytest.mark.parametrize(("size", "padding", "c_in", "c_out"), CONVOLUTIONS)
def test_the_products_for_a_cpu_are_the_convolution_and_its_kernel_gradient(size, padding, c_in, c_out):
    x, kernel = integers(2, 5, 6, c_in), integers(*size, c_in, c_out, seed=1)
    expected, pull = jax.vjp(lambda kernel: lax_convolution(x, kernel, padding), kernel)
    grad_out = integers(*expected.shape, seed=2)
    for dtype in (jnp.float32, jnp.bfloat16):
        y = jax.jit(products.products, static_argnums=2)(x.astype(dtype), kernel.astype(dtype), padding)
        np.testing.assert_array_equal(y.astype(jnp.float32), expected.astype(dtype).astype(jnp.float32))
        assert y.dtype == dtype
        gradient = jax.jit(products.gradient_products, static_argnums=2)(
            x.astype(dtype), grad_out.astype(dtype), padding
        )
        assert_identical(gradient, pull(grad_out)[0])


@pytest.mark.parametrize(("size", "padding", "c_in", "c_out"), CONVOLUTIONS[::2])
def test_gradients_of_both_orders_equal_those_of_lax(size, padding, c_in, c_out):
    x, kernel = integers(1, 4, 5, c_in, largest=1), integers(*size, c_in, c_out, seed=1, largest=1)

    def ours(x, kernel):
        return product_convolution(x, kernel, padding)

    def theirs(x, kernel):
        return lax_convolution(x, kernel, padding)

    assert_identical(value_and_gradients(ours, x, kernel), value_and_gradients(theirs, x, kernel))
    both = [
        jax.jit(jax.grad(loss_of_input_gradient(convolve, padding), (0, 1)))(x, kernel)
        for convolve in (product_convolution, lax_convolution)
    ]
    assert_identical(*both)


def test_derivatives_of_the_kernel_gradient_equal_those_of_lax():
    x, kernel = integers(1, 4, 5, 2, largest=1), integers(3, 3, 2, 3, seed=1, largest=1)

    def of(convolve):
        def loss(x, kernel):
            gradient = jax.grad(lambda kernel: 0.5 * jnp.square(convolve(x, kernel, SAME)).sum())(kernel)
            return 0.5 * jnp.square(gradient).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    assert_identical(of(product_convolution), of(lax_convolution))


def test_the_gradient_of_a_loss_of_an_input_gradient_rounds_like_that_of_lax_in_float32():
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (2, 8, 8, 16)), jax.random.normal(keys[1], (3, 3, 16, 16)) / 12.0
    ours, theirs = (
        jax.jit(jax.grad(loss_of_input_gradient(convolve, SAME), 1))(x, kernel)
        for convolve in (product_convolution, lax_convolution)
    )
    assert np.abs(ours - theirs).max() < 2e-6 * np.abs(theirs).max()


def test_in_bfloat16_a_gradient_of_the_second_order_errs_as_much_as_its_factors_rounding():
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (4, 7, 7, 16)), jax.random.normal(keys[1], (3, 3, 16, 16)) / 12.0
    x, kernel = (value.astype(jnp.bfloat16).astype(jnp.float32) for value in (x, kernel))
    exact = jax.jit(jax.grad(loss_of_input_gradient(lax_convolution, SAME), 1))(x, kernel)
    rounded = jax.jit(jax.grad(loss_of_input_gradient(product_convolution, SAME), 1))(x.astype(jnp.bfloat16), kernel)
    assert rounded.dtype == jnp.float32  # the kernel's own type, so that both orders add up in it
    error = np.sqrt(np.square(rounded - exact).mean()) / np.asarray(exact).std()
    assert error < 4 * 2.0**-8  # a loss of four convolutions, each rounded to 8 bits


def lowered(dtype, platform, convolve=product_convolution, channels=32):
    """The program of a second-order gradient before XLA optimises it."""
    x, kernel = jnp.zeros((2, 8, 8, channels), dtype), jnp.zeros((3, 3, channels, channels))
    gradient = jax.jit(jax.grad(loss_of_input_gradient(convolve, SAME), 1))
    return gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def test_on_a_cpu_every_convolution_of_both_orders_is_one_product_of_bfloat16_with_float32_sums():
    text = lowered(jnp.bfloat16, "cpu")
    assert "stablehlo.convolution" not in text
    types = re.findall(r"stablehlo.dot_general.* : (.*)", text)
    assert len(types) == 3 + 2  # x * K, its input gradient, that one's gradient; two kernel gradients
    assert all(re.fullmatch(r"\(tensor<.*xbf16>, tensor<.*xbf16>\) -> tensor<.*xf32>", one) for one in types)


@pytest.mark.parametrize(("dtype", "platform"), [("float32", "cpu"), ("bfloat16", "cuda"), ("bfloat16", "tpu")])
def test_elsewhere_convolutions_are_those_of_xla(dtype, platform):
    text = lowered(dtype, platform)
    assert "stablehlo.convolution" in text
    assert "stablehlo.dot_general" not in text


@pytest.mark.parametrize(("convolve", "channels"), [(product_convolution, 32), (convolution, 8)])
def test_in_float32_every_convolution_has_the_layout_that_is_fast_inside_a_loop(convolve, channels):
    text = lowered(jnp.float32, "cpu", convolve, channels)
    layouts = re.findall(r"stablehlo.convolution.*dim_numbers = (.*?),? window", text)
    assert len(layouts) == text.count("stablehlo.convolution") >= 3 + 2  # x * K, two input gradients; two of kernels
    assert set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


def test_a_scan_gives_the_gradients_of_the_second_order_that_its_steps_give_outside():
    xs, kernel = integers(3, 1, 4, 5, 2, largest=1), integers(3, 3, 2, 2, seed=1, largest=1)
    gradient = jax.grad(loss_of_input_gradient(product_convolution, SAME), 1)
    inside = jax.jit(lambda kernel: lax.scan(lambda _, x: (None, gradient(x, kernel)), None, xs)[1])(kernel)
    expected = jnp.stack([jax.grad(loss_of_input_gradient(lax_convolution, SAME), 1)(x, kernel) for x in xs])
    assert_identical(inside, expected)


def test_same_padding_keeps_the_size_and_is_that_of_lax():
    x, kernel = integers(1, 5, 6, 2), integers(4, 3, 2, 2, seed=1)
    same = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_identical(product_convolution_same(x, kernel), same)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_device_gets_the_gradient_of_its_own_images_and_no_sum_over_devices(dtype):
    images, kernel = integers(4, 4, 4, 2, largest=1).astype(dtype), integers(3, 3, 2, 2, seed=1, largest=1)
    loss = loss_of_input_gradient(product_convolution, SAME)

    def gradient(kernel, images):
        return jax.grad(lambda kernel: loss(images, kernel).astype(jnp.float32))(kernel)

    def of_device(kernel, images):
        return gradient(parallel.varying(kernel), images)[None]

    mesh, specs = parallel.device_mesh(jax.devices()[:2]), (parallel.REPLICATED, parallel.SHARDED)
    found = parallel.over_devices(of_device, mesh, specs, parallel.SHARDED)(kernel, images)
    for of_half, half in zip(found, (images[:2], images[2:]), strict=True):
        assert_identical(of_half, jax.jit(gradient)(kernel, half))
