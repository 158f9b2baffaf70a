"""The reader of optimised HLO: work times loop lengths, bytes as they lie, communication, donation, copies."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from ebm_jax.distributed import parallel
from tools.compile import hlo

ROWS, PIXELS, DRAWN = 400, 24, 8


def compiled(fn, *args, **options):
    return hlo.parse(jax.jit(fn, **options).lower(*args).compile().as_text())


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((7, 9, 4, 6, 3, 3), {"padding": "SAME"}),
        ((8, 8, 4, 6, 4, 4), {"padding": "SAME", "window_strides": (2, 2)}),
        ((5, 6, 4, 6, 3, 2), {"padding": ((2, 1), (0, 3)), "lhs_dilation": (2, 3)}),
        ((9, 9, 4, 6, 3, 3), {"padding": "VALID", "rhs_dilation": (2, 1)}),
        ((6, 6, 2, 6, 3, 3), {"padding": "SAME", "feature_group_count": 2}),
    ],
)
def test_the_products_of_a_convolution_are_those_that_a_convolution_of_ones_adds_up(sizes, options):
    height, width, channels, features, *window = sizes
    ones = jnp.ones((3, height, width, channels * options.get("feature_group_count", 1)))
    kernel = jnp.ones((*window, channels, features))
    options = {"window_strides": (1, 1)} | options

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    assert hlo.flops(compiled(convolve, ones, kernel)) == 2 * convolve(ones, kernel).sum()


def test_work_in_nested_loops_counts_as_often_as_they_run():
    def loop(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w), None

        return lax.scan(lambda x, _: (lax.scan(inner, x, None, 5)[0], None), x, None, 7)[0]

    program = compiled(loop, jnp.ones((16, 32)), jnp.ones((32, 32)))
    assert hlo.flops(program) == 7 * 5 * 2 * 16 * 32 * 32


def test_a_loops_length_is_also_in_its_condition():
    def loop(x, w):
        return lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, 11)[0]

    text = jax.jit(loop).lower(jnp.ones((16, 32)), jnp.ones((32, 32))).compile().as_text()
    assert "known_trip_count" in text
    silent = hlo.parse(re.sub(r'"known_trip_count":\{[^}]*\}', "", text))
    assert [
        hlo.trip_count(silent, run.instruction) for run in hlo.runs(silent) if run.instruction.opcode == "while"
    ] == [11]


def test_a_loop_whose_length_depends_on_values_is_refused():
    program = compiled(
        lambda x: lax.while_loop(lambda x: x.sum() < x[0], lambda x: x @ jnp.ones((4, 4)), x), jnp.ones(4)
    )
    with pytest.raises(ValueError, match="length of the loop"):
        hlo.flops(program)


def test_a_matrix_product_moves_its_operands_and_its_result():
    program = compiled(lambda x, w: x @ w, jnp.ones((64, 96)), jnp.ones((96, 32)))
    assert hlo.traffic(program) == 4 * (64 * 96 + 96 * 32 + 64 * 32)


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("f32[1250,3072]{1,0:T(8,128)}", 1256 * 3072 * 4),
        ("f32[1250,784]{0,1:T(8,128)}", 1280 * 784 * 4),
        ("u8[16,8,8,1]{0,2,3,1:T(8,128)(4,1)}", 8 * 1 * 8 * 128),
        ("bf16[3,3,32,64]{3,2,1,0:T(8,128)(2,1)S(1)}", 3 * 3 * 32 * 128 * 2),
        ("s32[]{:T(128)}", 128 * 4),
        ("pred[10]{0}", 10),
    ],
)
def test_an_arrays_bytes_are_those_of_its_padded_tiles(array, size):
    (parameter,) = hlo.parse(
        f"HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {{\n  ROOT %x = {array} parameter(0)\n}}\n"
    ).parameters.values()
    assert [part.size for part in parameter.arrays] == [size]
    assert parameter.arrays[0].space == ("S(1)" in array)


def replace_rows(buffer, slots):
    return buffer.at[slots].set(buffer[slots] + 1.0, unique_indices=True)


@pytest.mark.parametrize("donated", [True, False])
def test_a_buffer_is_copied_whole_where_it_is_not_donated_and_only_there(donated):
    args = jnp.ones((ROWS, PIXELS)), jnp.arange(DRAWN)
    program = compiled(replace_rows, *args, donate_argnums=(0,) if donated else ())
    assert program.aliased == (frozenset({0}) if donated else frozenset())
    copies = hlo.whole_copies(program, ROWS, ROWS * PIXELS)
    assert bool(copies) is not donated
    assert (hlo.traffic(program) < ROWS * PIXELS * 4) is donated


def test_a_buffer_laid_out_anew_is_found():
    tpu = """HloModule m, input_output_alias={ {}: (0, {}, may-alias) }

ENTRY %main (b: f32[400,24]) -> f32[400,24] {
  %b = f32[400,24]{0,1:T(8,128)} parameter(0), metadata={op_name="state.memory.images"}
  %copy-start = (f32[400,24]{0,1:T(8,128)S(1)}, f32[400,24]{0,1:T(8,128)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = f32[400,24]{0,1:T(8,128)S(1)} copy-done(%copy-start)
  %copy.1 = f32[400,24]{1,0:T(8,128)S(1)} copy(%copy-done)
  ROOT %copy.2 = f32[400,24]{0,1:T(8,128)} copy(%copy.1)
}
"""
    assert hlo.whole_copies(hlo.parse(tpu), ROWS, ROWS * PIXELS) == {"copy": 2}


def test_a_slice_that_is_fetched_into_the_chips_own_memory_moves_its_own_bytes_alone():
    tpu = """HloModule m

ENTRY %main (k: f32[4,8,128]) -> f32[1,8,128] {
  %k = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %slice-start = ((f32[4,8,128]{2,1,0:T(8,128)}), f32[1,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%k), slice={[0:1], [0:8], [0:128]}
  ROOT %slice-done = f32[1,8,128]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
}
"""  # noqa: E501
    assert hlo.traffic(hlo.parse(tpu)) == 4 * 8 * 128


@pytest.mark.parametrize("in_loop", [True, False])
def test_a_collective_in_a_loop_is_told_from_one_after_it(in_loop):
    mesh = parallel.device_mesh(jax.devices()[:4])

    def device(x):
        def body(x, _):
            x = jnp.sin(x)
            return (parallel.varying(parallel.mean_over_devices(x)) if in_loop else x), None

        x = lax.scan(body, x, None, 3)[0]
        return x if in_loop else parallel.mean_over_devices(x)

    out = parallel.SHARDED if in_loop else parallel.REPLICATED
    mapped = parallel.over_devices(device, mesh, parallel.SHARDED, out)
    program = hlo.parse(mapped.lower(jnp.ones((8, 5))).compile().as_text())
    assert hlo.collectives(program) == [hlo.Collective("all-reduce", 2 * 5 * 4, in_loop)]
