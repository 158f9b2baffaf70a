"""Inputs are small integers, so that every sum is exact in float32 and equality needs no tolerance."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equations
from jax import lax

from ebm_jax.models import convolution as convolutions
from ebm_jax.models.convolution import convolution
from tools.compile import hlo

LARGEST_EXACT = 2**24
SAME = ((1, 1), (1, 1))
CONVOLUTIONS = [  # kernel size, padding
    ((3, 3), ((1, 1), (1, 1))),
    ((4, 4), ((1, 2), (1, 2))),
    ((2, 2), ((0, 0), (0, 0))),
    ((1, 5), ((0, 0), (4, 1))),
    ((3, 2), ((0, 2), (1, 0))),
    ((2, 3), ((3, 0), (0, 4))),
]


def integers(*shape, seed=0, largest=2):
    values = np.random.default_rng(seed).integers(-largest, largest, shape, endpoint=True)
    return jnp.asarray(values, jnp.float32)


def lax_convolution(x, kernel, padding, stride=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def value_and_gradients(fn, *inputs):
    """fn(*inputs) and the pullback of an integer cotangent onto each input."""

    def both(*inputs):
        value, pull = jax.vjp(fn, *inputs)
        return value, *pull(integers(*value.shape, seed=9))

    return jax.jit(both)(*inputs)


def assert_identical(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert 0 < np.abs(other).max() < LARGEST_EXACT
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("size", "padding"), CONVOLUTIONS)
def test_convolution_and_both_gradients_equal_those_of_lax(size, padding):
    x, kernel = integers(2, 6, 7, 3), integers(*size, 3, 4, seed=1)
    ours = value_and_gradients(lambda x, kernel: convolution(x, kernel, padding), x, kernel)
    assert_identical(ours, value_and_gradients(lambda x, kernel: lax_convolution(x, kernel, padding), x, kernel))


@pytest.mark.parametrize(("size", "padding"), CONVOLUTIONS[::2])
def test_derivatives_of_the_input_gradient_equal_those_of_lax(size, padding):
    x, kernel = integers(1, 5, 5, 2, largest=1), integers(*size, 2, 2, seed=1, largest=1)

    def input_gradient(convolve):
        return jax.grad(lambda x, kernel: 0.5 * jnp.square(convolve(x, kernel, padding)).sum())

    ours = value_and_gradients(input_gradient(convolution), x, kernel)
    assert_identical(ours, value_and_gradients(input_gradient(lax_convolution), x, kernel))


def test_input_gradient_inside_a_scan_equals_that_of_lax_outside():
    padding = ((1, 2), (2, 1))
    xs, kernel = integers(5, 2, 4, 5, 2), integers(4, 4, 2, 3, seed=1)

    def gradient(convolve, x, kernel):
        return jax.grad(lambda x: 0.5 * jnp.square(convolve(x, kernel, padding)).sum())(x)

    def scanned(kernel):
        def body(total, x):
            return total + gradient(convolution, x, kernel), None

        return lax.scan(body, jnp.zeros_like(xs[0]), xs)[0]

    def unrolled(kernel):
        return sum(gradient(lax_convolution, x, kernel) for x in xs)

    assert_identical(value_and_gradients(scanned, kernel), value_and_gradients(unrolled, kernel))


def test_input_gradient_of_any_order_has_the_layout_of_a_forward_convolution():
    x, kernel, padding = integers(2, 5, 6, 3), integers(3, 3, 3, 4), ((1, 1), (1, 1))

    def layouts(convolve):
        def gradient(x):
            return jax.grad(lambda x: jnp.square(convolve(x, kernel, padding)).sum())(x)

        forms = {"forward": lambda x: lax_convolution(x, kernel, padding)}
        forms |= {"gradient": gradient, "second": lambda x: jax.vjp(gradient, x)[1](x)[0]}
        found = {}
        for name, fn in forms.items():
            jaxpr = jax.make_jaxpr(fn)(x)
            found[name] = {
                str(equation.params["dimension_numbers"])
                for equation in equations(jaxpr)
                if equation.primitive.name == "conv_general_dilated" and equation.outvars[0].aval.shape[0] == len(x)
            }
        return found

    ours = layouts(convolution)
    assert len(ours["forward"]) == 1
    assert ours["gradient"] == ours["second"] == ours["forward"]
    assert layouts(lax_convolution)["gradient"] != ours["forward"]  # what autodiff alone would write


WINOGRAD = [  # side, side, channels in and out, padding
    (14, 15, 32, 40, ((1, 1), (1, 1))),
    pytest.param(15, 14, 32, 32, ((2, 0), (0, 2)), marks=pytest.mark.slow),
    (4, 7, 64, 64, ((1, 1), (1, 1))),
    (5, 3, 64, 65, ((0, 2), (2, 2))),
]


@pytest.mark.parametrize(("height", "width", "c_in", "c_out", "padding"), WINOGRAD)
def test_winograd_and_its_gradients_of_any_order_equal_those_of_lax(height, width, c_in, c_out, padding):
    x, kernel = integers(2, height, width, c_in, largest=1), integers(3, 3, c_in, c_out, seed=1, largest=1)

    def once(convolve):
        return lambda x, kernel: convolve(x, kernel, padding)

    def twice(convolve):
        return jax.grad(lambda x, kernel: 0.5 * jnp.square(convolve(x, kernel, padding)).sum())

    for of in (once, twice) if c_in < 64 else (once,):
        assert_identical(
            value_and_gradients(of(convolution), x, kernel), value_and_gradients(of(lax_convolution), x, kernel)
        )


def test_winograd_in_float32_rounds_like_a_plain_convolution_and_in_bfloat16_like_twice_its_inputs_rounding():
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (4, 16, 16, 64)), jax.random.normal(keys[1], (3, 3, 64, 64)) / 24.0
    with jax.enable_x64():
        exact = np.asarray(lax_convolution(x.astype(jnp.float64), kernel.astype(jnp.float64), SAME))

    def error(form, dtype):
        got = jax.jit(lambda x, kernel: form(x, kernel, SAME))(x.astype(dtype), kernel.astype(dtype))
        return np.sqrt(np.square(np.asarray(got, np.float64) - exact).mean()) / exact.std()

    assert error(convolutions.winograd, jnp.float32) < 2 * error(convolutions.plain, jnp.float32) < 1e-6
    assert error(convolutions.winograd, jnp.bfloat16) < 2 * error(convolutions.plain, jnp.bfloat16) < 0.01


def lowered(side, channels, dtype, platform):
    """The program of a convolution's input gradient before XLA optimises it."""
    x, kernel = jnp.zeros((2, side, side, channels), dtype), jnp.zeros((3, 3, channels, channels), dtype)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(convolution(x, kernel, SAME))))
    return gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()


def operations(*case):
    """Which of dot and convolution the program contains."""
    text = lowered(*case)
    return {name for name in ("dot_general", "convolution") if f"stablehlo.{name}" in text}


def test_products_of_bfloat16_add_up_in_float32_which_xla_needs_to_take_the_fast_instructions():
    # Without it JAX 0.10 reaches 100 to 150 GFLOP/s instead of 350 to 420
    types = re.findall(r"stablehlo.dot_general.* : (.*)", lowered(16, 64, "bfloat16", "cpu"))
    assert len(types) == 32 // 2
    assert all(re.fullmatch(r"\(tensor<.*xbf16>, tensor<.*xbf16>\) -> tensor<.*xf32>", one) for one in types)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_plain_convolution(platform):
    assert operations(16, 128, jnp.bfloat16, platform) == {"convolution"}


def test_on_a_cpu_winograd_is_taken_where_it_was_measured_to_win():
    cases = [(16, 32, "float32"), (8, 32, "float32"), (8, 64, "float32"), (8, 32, "bfloat16"), (16, 16, "bfloat16")]
    found = [operations(*case, "cpu") for case in cases]
    assert found == [{"dot_general"}, {"convolution"}, {"dot_general"}, {"dot_general"}, {"convolution"}]


def test_kernels_are_transformed_once_for_a_whole_chain():
    x, kernel = jnp.zeros((2, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    gradient = jax.grad(lambda x, kernel: jnp.square(convolution(x, kernel, SAME)).sum())

    def chain(x, kernel):
        return lax.scan(lambda x, _: (x - gradient(x, kernel), None), x, None, length=5)[0]

    program = hlo.parse(jax.jit(chain).lower(x, kernel).compile().as_text() or "")
    in_loop = [run for run in hlo.runs(program) if run.in_loop]
    kernels = [run for run in in_loop if any(array.dims[-2:] == (32, 32) for array in run.instruction.arrays)]
    assert len([run for run in in_loop if run.instruction.opcode == "dot"]) == 2 * 16
    assert not [run for run in kernels if run.instruction.opcode in ("add", "subtract", "multiply")]
