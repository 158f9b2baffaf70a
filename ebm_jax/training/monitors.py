"""What one device sees of a run's health in a training step: scalars that join the step's one all-reduce."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ebm_jax.distributed import parallel
from ebm_jax.models import spectral
from ebm_jax.types import Images, Metrics, Params, Scalar


def of_chains(start: Images, end: Images) -> Metrics:
    """How far the chains of a batch moved, and where they ended.

    `chain_movement`: mean |x_K - x_0| of a pixel, in [0, 1]. `saturated`: share of the pixels of x_K that are exactly
    0 or 1.
    """
    return {"chain_movement": jnp.abs(end - start).mean(), "saturated": ((end == 0.0) | (end == 1.0)).mean()}


def of_values(values: PyTree) -> Metrics:
    """`non_finite`: how many values are infinite or NaN on all devices together, once averaged over the devices."""
    return {"non_finite": non_finite(values) * parallel.num_devices()}


def of_kernels(params: Params, vectors: spectral.Vectors) -> Metrics:
    """`spectral_norm`: the largest σ = uᵀWv of the kernels before normalisation; nothing where there are no vectors."""
    return {"spectral_norm": spectral.largest(params, vectors)} if vectors else {}


def non_finite(values: PyTree) -> Scalar:
    """The number of infinite or NaN values in the leaves of real numbers."""
    leaves = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.asarray(sum(jnp.sum(~jnp.isfinite(leaf), dtype=jnp.float32) for leaf in leaves), jnp.float32)
