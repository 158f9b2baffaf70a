"""Spectral normalisation as pure functions on a parameter tree, called once per training step, outside the chain.

A kernel W is seen as the matrix [everything else, c_out]; (u, v) are its running leading singular vectors. Every
kernel is normalised but the head's. The second convolution of a residual block takes the form that never enlarges:
W/σ · min(σ, 1) (release utils.py: spectral_normed_weight, lower_bound).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ebm_jax.types import Params, PRNGKey

Matrix = Float[Array, "rows c_out"]
# u [everything else] and v [c_out] of each kernel, stacked where the parameters are
Vectors = dict[str, tuple[Float[Array, "*members _"], Float[Array, "*members _"]]]

HEAD, SECOND = "head", "conv2"  # layer names that mean: not normalised, normalised but never enlarged


def _matrix(kernel: Array) -> Matrix:
    return kernel.reshape(-1, kernel.shape[-1])


def _unit(vector: Array) -> Array:
    return vector / (jnp.linalg.norm(vector) + 1e-20)


def _name(path: tuple) -> str:
    return ".".join(entry.key for entry in path)


def _kernels(params: Params) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = {_name(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in names.items() if name.endswith("kernel") and HEAD not in name.split(".")}


def _iterate(kernel: Array, right: Array) -> tuple[Array, Array]:
    matrix = _matrix(kernel)
    left = _unit(matrix @ right)
    return left, _unit(matrix.T @ left)


def init(key: PRNGKey, params: Params) -> Vectors:
    """Random singular vectors for every kernel to be normalised, after one power iteration."""
    kernels = _kernels(params)
    widest = max((kernel.shape[-1] for kernel in kernels.values()), default=1)
    starts = jax.random.normal(key, (len(kernels), widest))  # one draw: each takes a compiler half a second
    return {
        name: _iterate(kernel, _unit(start[: kernel.shape[-1]]))
        for (name, kernel), start in zip(kernels.items(), starts, strict=True)
    }


def power_iteration(params: Params, vectors: Vectors) -> Vectors:
    """The singular vectors after one more power iteration."""
    kernels = _kernels(params)
    return {name: _iterate(kernels[name], right) for name, (_, right) in vectors.items()}


def largest(params: Params, vectors: Vectors) -> Array:
    """The largest σ = uᵀWv of the kernels that have vectors, of which there is at least one."""
    kernels = _kernels(params)
    return jnp.stack([left @ _matrix(kernels[name]) @ right for name, (left, right) in vectors.items()]).max()


def normalise(params: Params, vectors: Vectors) -> Params:
    """The parameters that the network sees: each kernel with an entry in `vectors` divided by σ = uᵀWv.

    The gradient flows through σ and not through the vectors. Without vectors the parameters come back as they are.
    """

    def scaled(path, kernel):
        name = _name(path)
        if name not in vectors:
            return kernel
        left, right = lax.stop_gradient(vectors[name])
        sigma = left @ _matrix(kernel) @ right
        bound = jnp.minimum(sigma, 1.0) if SECOND in name.split(".") else 1.0
        return kernel * (bound / sigma)

    return jax.tree_util.tree_map_with_path(scaled, params)
