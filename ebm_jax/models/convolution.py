"""The stride-1 convolution of all networks: fast inside a scan, and by Winograd's method where a CPU gains from it."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Features = Float[Array, "b _ _ _"]  # NHWC
Kernel = Float[Array, "_ _ _ _"]  # HWIO
Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros: (above, below), (left, right)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x: Features, kernel: Kernel, padding: Padding) -> Features:
    """Stride-1 convolution of x, NHWC, with a kernel, HWIO; its input gradient is an ordinary convolution too.

    XLA's CPU backend rewrites convolutions into the layout of its fast kernel only outside loops. Autodiff writes the
    input gradient in another layout, so inside a Langevin scan it falls back to naive loops: 4 times slower on JAX
    0.10, 34 times on 0.12 (benchmarks/conv_in_scan.py). Reverse mode only: `jax.jvp` through it raises.

    Only here do platforms differ: on a CPU, 3x3 convolutions of many channels use `winograd`; all others use `plain`.
    """
    return _forward(x, kernel, padding)


def _winograd_wins(x: Features, kernel: Kernel) -> bool:
    """Whether `winograd` is faster on a CPU, as benchmarks/convolution.py measured (docs/performance.md)."""
    easy = x.dtype == jnp.bfloat16 or min(x.shape[1:3]) >= 14
    return kernel.shape[:2] == (3, 3) and min(kernel.shape[2:]) >= (32 if easy else 64)


@partial(jax.jit, static_argnums=2, inline=True)  # traced once for all convolutions of one shape
def _forward(x: Features, kernel: Kernel, padding: Padding) -> Features:
    if not _winograd_wins(x, kernel):
        return plain(x, kernel, padding)
    return lax.platform_dependent(
        x, kernel, cpu=partial(winograd, padding=padding), default=partial(plain, padding=padding)
    )


def plain(x: Features, kernel: Kernel, padding: Padding) -> Features:
    """XLA's convolution of stride 1."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def winograd(x: Features, kernel: Kernel, padding: Padding) -> Features:
    """3x3 convolution as 16 matrix products, F(2x2, 3x3): 2.25 times fewer multiplications than `plain`.

        Y = Aᵀ [Σ_c (G g_c Gᵀ) ⊙ (Bᵀ d_c B)] A      g: 3x3 kernel, d: 4x4 square of inputs, Y: 2x2 of outputs

    Sums are float32. For float32 inputs it rounds like a plain convolution. For bfloat16 inputs it rounds the factors
    of the products to bfloat16; this error is about twice the error of rounding x itself (Lavin & Gray 2016, section
    4.1).
    """
    (b, height, width, _), features = x.shape, kernel.shape[3]
    out = [size + low + high - 2 for size, (low, high) in zip((height, width), padding, strict=True)]
    rows, columns = (-(-size // 2) for size in out)
    more = [(low, high + size % 2) for size, (low, high) in zip(out, padding, strict=True)]
    squares = jnp.pad(x, ((0, 0), *more, (0, 0)))

    down = _inputs([squares[:, i : i + 2 * rows - 1 : 2] for i in range(4)])
    kernels = [_kernels([line[i] for i in range(3)]) for line in _kernels([kernel[i] for i in range(3)])]
    products = []
    for line, kernel_line in zip(down, kernels, strict=True):
        across = _inputs([line[:, :, j : j + 2 * columns - 1 : 2] for j in range(4)])
        products.append([_product(data, g, x.dtype) for data, g in zip(across, kernel_line, strict=True)])
    halves = [_outputs(lines) for lines in zip(*products, strict=True)]
    quarters = [_outputs(line) for line in zip(*halves, strict=True)]
    tiles = [[y.reshape(b, rows, 1, columns, 1, features).astype(x.dtype) for y in line] for line in quarters]
    whole = jnp.concatenate([jnp.concatenate(line, 4) for line in tiles], 2)
    return whole.reshape(b, 2 * rows, 2 * columns, features)[:, : out[0], : out[1]]


def _inputs(d: Sequence[Array]) -> list[Array]:
    """Bᵀ d, in float32."""
    d = [part.astype(jnp.float32) for part in d]
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernels(g: Sequence[Array]) -> list[Array]:
    """G g, in float32."""
    g = [part.astype(jnp.float32) for part in g]
    return [g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]]


def _outputs(m: Sequence[Array]) -> list[Array]:
    """Aᵀ m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _product(data: Float[Array, "b h w c"], kernel: Float[Array, "c o"], dtype: jnp.dtype) -> Float[Array, "n o"]:
    """The matrix product of factors of type `dtype`, summed in float32; some CPUs multiply bfloat16 faster."""
    rows = data.reshape(-1, data.shape[-1]).astype(dtype)
    return lax.dot(rows, kernel.astype(dtype), preferred_element_type=jnp.float32)


def _convolution_forward(x, kernel, padding):
    return convolution(x, kernel, padding), (x, kernel)


def _convolution_backward(padding, residuals, grad_out):
    x, kernel = residuals
    transposed = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    mirrored = tuple(
        (size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, padding, strict=False)
    )
    return convolution(grad_out, transposed, mirrored), _kernel_gradient(x, kernel, grad_out, padding)


@partial(jax.jit, static_argnums=3, inline=True)  # as _forward is
def _kernel_gradient(x: Features, kernel: Kernel, grad_out: Features, padding: Padding) -> Kernel:
    if not _winograd_wins(x, kernel):
        return plain_kernel_gradient(x, grad_out, padding)
    _, pull = jax.vjp(lambda kernel: _forward(x, kernel, padding), kernel)
    return pull(grad_out)[0]


def plain_kernel_gradient(x: Features, grad_out: Features, padding: Padding) -> Kernel:
    """The gradient of Σ grad_out ⊙ `plain`(x, K) with respect to K, in x's type.

    It is a convolution as well, of x with grad_out, images as channels. On a CPU in float32 it is written as one in the
    layout of XLA's fast kernel. Autodiff writes it in another one, with which a step inside a loop of training steps or
    models takes 2 to 19 times as long (docs/performance.md). In bfloat16 the bits would be others outside loops too.
    """
    autodiff = partial(_gradient_by_autodiff, padding=padding)
    if x.dtype != jnp.float32:
        return autodiff(x, grad_out)
    return lax.platform_dependent(x, grad_out, cpu=partial(_gradient_convolution, padding=padding), default=autodiff)


def _gradient_convolution(x: Features, grad_out: Features, padding: Padding) -> Kernel:
    channels_first = lax.optimization_barrier(x.transpose(3, 1, 2, 0))  # fused into its reads it is slower
    taps = lax.optimization_barrier(grad_out.transpose(1, 2, 0, 3))
    return plain(channels_first, taps, padding).transpose(1, 2, 0, 3)


def _gradient_by_autodiff(x: Features, grad_out: Features, padding: Padding) -> Kernel:
    sides = zip(x.shape[1:3], grad_out.shape[1:3], padding, strict=True)
    size = tuple(inside + low + high - outside + 1 for inside, outside, (low, high) in sides)
    # Made of x, so that it varies over devices as x does: shard_map would sum the gradient of another one over them
    kernel = jnp.zeros((*size, x.shape[3], grad_out.shape[3]), x.dtype) + 0 * x[:1, :1, :1, :1]
    return jax.vjp(lambda kernel: plain(x, kernel, padding), kernel)[1](grad_out)[0]


convolution.defvjp(_convolution_forward, _convolution_backward)
