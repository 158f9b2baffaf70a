"""Work, counted before anything is compiled: the convolutions and matrix products of a function, from its jaxpr."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

from tools.compile import hlo

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
Origins = frozenset[int]
"""The arguments that a value depends on, by their places."""


class Product(NamedTuple):
    """A convolution or a matrix product."""

    flops: int
    """A multiplication and an addition each; what falls on padding is not counted, as `hlo.flops` does not."""
    result: int
    """Bytes."""
    operands: tuple[Origins, Origins]

    def on(self, place: int) -> int:
        """How many of its operands depend on the argument at a place."""
        return sum(place in origins for origins in self.operands)


def products(fn: Callable, *arguments: Any) -> list[Product]:
    """All products of `fn(*arguments)`, in their plain form even if a platform has its own.

    Raises:
      ValueError: there is a loop.
    """
    jaxpr = jax.make_jaxpr(fn)(*arguments).jaxpr
    origins = [frozenset([place]) for place, tree in enumerate(arguments) for _ in jax.tree.leaves(tree)]
    found: list[Product] = []
    _walk(jaxpr, origins, found)
    return found


def _walk(jaxpr: Any, origins: Sequence[Origins], found: list[Product]) -> list[Origins]:
    """Append a jaxpr's products, given the origins of its inputs, and return the origins of its outputs."""
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def of(atoms: Sequence[Any]) -> list[Origins]:
        return [frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset()) for atom in atoms]

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, of(equation.invars)
        outputs = [frozenset().union(*inputs)] * len(equation.outvars)
        if name in ("dot_general", "conv_general_dilated"):
            result = equation.outvars[0].aval
            flops = 2 * (_dot if name == "dot_general" else _convolution)(equation)
            found.append(Product(flops, result.size * result.dtype.itemsize, (inputs[0], inputs[1])))
        elif name in CALLS:
            outputs = _walk(_open(equation.params[CALLS[name]]), inputs, found)
        elif name == "cond":  # lax.platform_dependent's: the last branch is for all platforms that it does not name
            outputs = _walk(_open(equation.params["branches"][-1]), inputs[1:], found)
        elif name in ("scan", "while"):
            raise ValueError(f"what a {name} computes is not counted")
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return of(jaxpr.outvars)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _dot(equation: Any) -> int:
    """The multiplications of a dot_general."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """The multiplications of a conv_general_dilated."""
    left, kernel = (atom.aval.shape for atom in equation.invars)
    result, params = equation.outvars[0].aval.shape, equation.params
    dimensions = params["dimension_numbers"]
    images, features = (result[axis] for axis in dimensions.out_spec[:2])
    found = images * features * kernel[dimensions.rhs_spec[1]]
    windows = zip(
        *(spec[2:] for spec in (dimensions.lhs_spec, dimensions.out_spec, dimensions.rhs_spec)),
        *(params[name] for name in ("window_strides", "lhs_dilation", "rhs_dilation", "padding")),
        strict=True,
    )
    for left_axis, out_axis, kernel_axis, stride, dilation, kernel_dilation, (low, _) in windows:
        sizes = left[left_axis], result[out_axis], kernel[kernel_axis]
        found *= hlo.taps(*sizes, stride, dilation, kernel_dilation, low)
    return found
