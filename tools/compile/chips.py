"""The limits of TPU chips: their arithmetic, and the size and bandwidth of their memory."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """The limits of one JAX device of a kind."""

    flops: float
    """Peak FLOP/s of matrix products of bfloat16, to which XLA rounds float32 operands unless told otherwise."""
    bandwidth: float
    """Bytes per second between the HBM and the chip."""
    hbm: float
    """Bytes of HBM that XLA gives to a program: as its out-of-memory errors say, less than the chip's capacity."""
    source: str
    """Of the first two."""


DOCS = "docs.cloud.google.com/tpu/docs"
CHIPS = {  # by the kind that JAX gives a device; all read in November 2026, the HBM from libtpu 0.0.42.1
    "TPU v4": Chip(275e12, 1200e9, 30.75 * GIB, f"{DOCS}/v4"),
    "TPU v5 lite": Chip(197e12, 819e9, 15.75 * GIB, f"{DOCS}/v5e"),
    "TPU v5": Chip(459e12, 2765e9, 95.74 * GIB, f"{DOCS}/v5p"),
    "TPU v6 lite": Chip(918e12, 1638e9, 31.25 * GIB, f"{DOCS}/v6e"),
}
NAMES = ("v4", "v5e", "v5p", "v6e")
"""Of the kinds above, in the name of a topology."""
