"""The stride-1 convolution of networks that learn through their input gradient: fast on a CPU in both orders."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ebm_jax.models.convolution import Features, Kernel, Padding, plain, plain_kernel_gradient


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product_convolution(x: Features, kernel: Kernel, padding: Padding) -> Features:
    """Stride-1 convolution of x, NHWC, with a kernel, HWIO, in x's type; the kernel's type may be wider.

    A convolution Y = x * K is linear in x and in K. So its derivatives of any order are such convolutions and the
    kernel's gradient, whose derivatives are convolutions again:

        x̄ = Ȳ * flip K      K̄ = G(x, Ȳ)      and of G(x, Ȳ):  x̄ = Ȳ * flip K̿,  Ȳ̄ = x * K̿

    This pair of rules is all that the gradient of a loss of an input gradient needs. Autodiff would derive each form
    from the one before. On a CPU with bfloat16, both are one matrix product of bfloat16 factors with float32 sums,
    which XLA gives to the fast instructions; XLA's convolutions of bfloat16 compute in float32, and its kernel
    gradients take twice as long (docs/performance.md). Otherwise both are XLA's convolutions. Reverse mode only.
    """
    return _forward(x, kernel.astype(x.dtype), padding)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x: Features, grad_out: Features, padding: Padding) -> Kernel:
    """The gradient of Σ grad_out ⊙ (x * K) with respect to K, in float32."""
    return _kernel_gradient(x, grad_out, padding)


def product_convolution_same(x: Features, kernel: Kernel) -> Features:
    """`product_convolution` with SAME padding."""
    return product_convolution(x, kernel, tuple(((size - 1) // 2, size // 2) for size in kernel.shape[:2]))


def _convolution_forward(x, kernel, padding):
    return product_convolution(x, kernel, padding), (x, kernel)


def _convolution_backward(padding, residuals, grad_out):
    x, kernel = residuals
    grad_kernel: Kernel = kernel_gradient(x, grad_out, padding)  # pyright: ignore[reportAssignmentType]
    return _input_gradient(grad_out, kernel, padding), grad_kernel.astype(kernel.dtype)


def _gradient_forward(x, grad_out, padding):
    return kernel_gradient(x, grad_out, padding), (x, grad_out)


def _gradient_backward(padding, residuals, grad_kernel):
    x, grad_out = residuals
    return _input_gradient(grad_out, grad_kernel, padding), product_convolution(x, grad_kernel, padding)


product_convolution.defvjp(_convolution_forward, _convolution_backward)
kernel_gradient.defvjp(_gradient_forward, _gradient_backward)


def _input_gradient(grad_out: Features, kernel: Kernel, padding: Padding) -> Features:
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    mirrored = tuple(
        (size - 1 - low, size - 1 - high) for size, (low, high) in zip(kernel.shape, padding, strict=False)
    )
    return product_convolution(grad_out, flipped, mirrored)


@partial(jax.jit, static_argnums=2, inline=True)  # traced once for all convolutions of one shape
def _forward(x: Features, kernel: Kernel, padding: Padding) -> Features:
    if x.dtype != jnp.bfloat16:
        return plain(x, kernel, padding)
    return lax.platform_dependent(
        x, kernel, cpu=partial(products, padding=padding), default=partial(plain, padding=padding)
    )


@partial(jax.jit, static_argnums=2, inline=True)  # as _forward is
def _kernel_gradient(x: Features, grad_out: Features, padding: Padding) -> Kernel:
    def plainly(x, grad_out):
        return plain_kernel_gradient(x, grad_out, padding).astype(jnp.float32)

    if x.dtype != jnp.bfloat16:
        return plainly(x, grad_out)
    return lax.platform_dependent(x, grad_out, cpu=partial(gradient_products, padding=padding), default=plainly)


def products(x: Features, kernel: Kernel, padding: Padding) -> Features:
    """The convolution as one matrix product: columns of x side by side in, rows of the result side by side out.

        Z[i] = Σ_j x[:, w + j] K[i, j]      Y[h] = Σ_i Z[i][h + i]

    A product over all of a kernel's taps at once would copy x once for each tap; this copies it once for each column.
    """
    (b, height, _, _), (rows, columns, c_in, c_out) = x.shape, kernel.shape
    (top, bottom), (left, right) = padding
    out_height = height + top + bottom - rows + 1
    shifted = side_by_side(x, columns, left, right)
    flat = kernel.transpose(1, 2, 0, 3).reshape(columns * c_in, rows * c_out)
    z = _product(shifted.reshape(-1, columns * c_in), flat).reshape(b, height, -1, rows, c_out)
    parts = [_shift_rows(z[:, :, :, i], top - i, out_height, axis=1) for i in range(rows)]
    return sum(parts[1:], parts[0]).astype(x.dtype)


def gradient_products(x: Features, grad_out: Features, padding: Padding) -> Kernel:
    """The kernel's gradient as one matrix product: the transpose of `products`, summed over all pixels."""
    (b, height, width, c_in), (_, out_height, out_width, c_out) = x.shape, grad_out.shape
    (top, bottom), (left, right) = padding
    rows, columns = height + top + bottom - out_height + 1, width + left + right - out_width + 1
    shifted = side_by_side(x, columns, left, right).reshape(-1, columns * c_in)
    transposed = _transposed(grad_out).reshape(c_out, b, out_height, out_width)
    lines = jnp.stack([_shift_rows(transposed, i - top, height, axis=2) for i in range(rows)])
    lines = _numbers(lines, x.dtype).reshape(rows * c_out, -1)
    return _product(lines, shifted).reshape(rows, c_out, columns, c_in).transpose(0, 2, 3, 1)


def side_by_side(x: Features, columns: int, left: int, right: int) -> Features:
    """Each pixel with its next `columns` - 1 to the right, as channels, after padding with zeros."""
    if columns == 1 and left == right == 0:
        return x
    bits = _bits(x)
    padded = lax.pad(bits, jnp.zeros((), bits.dtype), [(0, 0, 0), (0, 0, 0), (left, right, 0), (0, 0, 0)])
    padded = lax.optimization_barrier(padded)  # fused into the copies it would be computed anew for each
    width = padded.shape[2] - columns + 1
    return _numbers(jnp.concatenate([padded[:, :, j : j + width] for j in range(columns)], 3), x.dtype)


def _transposed(x: Features) -> Array:
    """The `_bits` of x as channels by pixels.

    XLA multiplies by a transposed left factor 10 to 50 times slower than by a written out transpose. Pairs of channels
    move as one word. Pairing is a reduction to XLA, so it computes x once, and not anew for each use of the transpose.
    """
    b, h, w, c = x.shape
    if x.dtype != jnp.bfloat16 or c % 2:
        return lax.optimization_barrier(_bits(x).reshape(-1, c).T)
    words = lax.bitcast_convert_type(x.reshape(b * h * w, c // 2, 2), jnp.uint32)
    words = lax.optimization_barrier(words.T)
    halves = [(words >> shift).astype(jnp.uint16) for shift in (0, 16)]
    return lax.optimization_barrier(jnp.stack(halves, 1)).reshape(c, -1)


def _bits(x: Array) -> Array:
    """bfloat16 as integers, which XLA's CPU backend copies as they are; numbers it takes through float32."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _numbers(bits: Array, dtype: jnp.dtype) -> Array:
    return lax.bitcast_convert_type(bits, dtype) if dtype == jnp.bfloat16 else bits


def _shift_rows(x: Array, low: int, size: int, axis: int) -> Array:
    """x with `low` rows of zeros before it along the axis, or without its first -`low`, cut or padded to `size`."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (low, size - x.shape[axis] - low, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _product(left: Float[Array, "n k"], right: Float[Array, "k m"]) -> Float[Array, "n m"]:
    return lax.dot(left, right, preferred_element_type=jnp.float32)
