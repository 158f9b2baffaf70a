"""What one device sees of a run's health in a training step: scalars that join the step's one all-reduce."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ebm_jax.distributed import parallel
from ebm_jax.models import spectral
from ebm_jax.types import Metrics, Params, Scalar


def of_values(values: PyTree) -> Metrics:
    """`non_finite`: the count of infinite or NaN values times the number of devices; its mean is the devices' total."""
    return {"non_finite": non_finite(values) * parallel.num_devices()}


def of_kernels(params: Params, vectors: spectral.Vectors) -> Metrics:
    """`spectral_norm`: the largest σ = uᵀWv of the kernels before normalisation; empty if there are no vectors."""
    return {"spectral_norm": spectral.largest(params, vectors)} if vectors else {}


def non_finite(values: PyTree) -> Scalar:
    """The number of infinite or NaN values in the leaves of real numbers."""
    leaves = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.asarray(sum(jnp.sum(~jnp.isfinite(leaf), dtype=jnp.float32) for leaf in leaves), jnp.float32)
