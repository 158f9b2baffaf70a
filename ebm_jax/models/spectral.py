"""Spectral normalisation as pure functions on a parameter tree, called once per training step, outside the chain.

A kernel W counts as the matrix [everything else, c_out]; (u, v) are its running leading singular vectors. A normalised
kernel is W/σ. A bounded kernel is never enlarged: W/σ · min(σ, 1) (release utils.py: spectral_normed_weight,
lower_bound). The network says which kernel takes which form (`models/network.py`).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import SequenceKey
from jaxtyping import Array, Float

from ebm_jax.types import Params, PRNGKey

Form = Literal["normalised", "bounded"] | None
FormOf = Callable[[tuple[str, ...]], Form]  # path of a kernel, as names -> its form
Matrix = Float[Array, "rows c_out"]
# (u [everything else], v [c_out]) of each kernel, by its dotted name; stacked if the parameters are
Vectors = dict[str, tuple[Float[Array, "*members _"], Float[Array, "*members _"]]]


@jax.tree_util.register_pytree_with_keys_class
class Bounded(tuple):
    """The (u, v) of a bounded kernel; a normalised kernel has a plain tuple.

    The type holds the form, so the form needs no leaf: checkpoints have the same paths and leaves for both.
    """

    def tree_flatten_with_keys(self) -> tuple[tuple, None]:
        return tuple((SequenceKey(index), leaf) for index, leaf in enumerate(self)), None

    def tree_flatten(self) -> tuple[tuple, None]:
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: Any) -> "Bounded":
        return cls(leaves)


GROWTH, MOST = 1e-6, 1_000  # of σ in one iteration at the start of a run; iterations
PAIRS = {"normalised": tuple, "bounded": Bounded}


def every_matrix(path: tuple[str, ...]) -> Form:
    """The forms of a network that names none: all leaves of two or more dimensions are normalised."""
    del path
    return "normalised"


def _matrix(kernel: Array) -> Matrix:
    return kernel.reshape(-1, kernel.shape[-1])


def _unit(vector: Array) -> Array:
    return vector / (jnp.linalg.norm(vector) + 1e-20)


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _named(params: Params) -> dict[str, Array]:
    return {".".join(_path(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _iterate(kernel: Array, right: Array) -> tuple[Array, Array]:
    matrix = _matrix(kernel)
    left = _unit(matrix @ right)
    return left, _unit(matrix.T @ left)


@jax.jit
def _converged(kernel: Array, right: Array) -> tuple[Array, Array]:
    """The vectors after power iterations from v, until σ grows by less than `GROWTH` or `MOST` were done."""
    matrix = _matrix(kernel)

    def iterate(carry: tuple) -> tuple:
        (_, right), sigma, _, number = carry
        left, right = _iterate(matrix, right)
        return (left, right), left @ matrix @ right, sigma, number + 1

    def goes_on(carry: tuple) -> Array:
        _, sigma, before, number = carry
        return (sigma > (1 + GROWTH) * before) & (number < MOST)

    first = _iterate(matrix, right)
    start = first, first[0] @ matrix @ first[1], jnp.zeros((), matrix.dtype), 1
    return jax.lax.while_loop(goes_on, iterate, start)[0]


def init(key: PRNGKey, params: Params, form_of: FormOf) -> Vectors:
    """The leading singular vectors of every kernel to be normalised, from random ones by power iteration.

    Normalised kernels then have norm 1 to one part in 1,000; on Gaussian kernels of the networks' shapes, to one in
    10,000 after at most a few hundred iterations. One iteration alone leaves norms of 1.2 to 1.4.

    Args:
      form_of: the network's `spectral_form`; called for leaves of two or more dimensions.
    """
    leaves = [(_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if leaf.ndim > 1]
    kernels = [(".".join(path), kernel, form) for path, kernel in leaves if (form := form_of(path)) is not None]
    widest = max((kernel.shape[-1] for _, kernel, _ in kernels), default=1)
    starts = jax.random.normal(
        key, (len(kernels), widest), jnp.float32
    )  # one draw: each takes a compiler half a second
    return {
        name: PAIRS[form](_converged(kernel, _unit(start[: kernel.shape[-1]])))
        for (name, kernel, form), start in zip(kernels, starts, strict=True)
    }


def power_iteration(params: Params, vectors: Vectors) -> Vectors:
    """The singular vectors after one more power iteration."""
    kernels = _named(params)
    return {name: type(pair)(_iterate(kernels[name], pair[1])) for name, pair in vectors.items()}


def largest(params: Params, vectors: Vectors) -> Array:
    """The largest σ = uᵀWv over the kernels in `vectors`; there must be at least one."""
    kernels = _named(params)
    return jnp.stack([left @ _matrix(kernels[name]) @ right for name, (left, right) in vectors.items()]).max()


def normalise(params: Params, vectors: Vectors) -> Params:
    """The parameters that the network sees: W/σ, σ = uᵀWv, for each kernel in `vectors`; a bounded one is not enlarged.

    The gradient flows through σ and not through the vectors. Empty vectors leave the parameters as they are.
    """

    def scaled(path, kernel):
        name = ".".join(_path(path))
        if name not in vectors:
            return kernel
        pair = vectors[name]
        left, right = lax.stop_gradient(pair)
        sigma = left @ _matrix(kernel) @ right
        bound = jnp.minimum(sigma, 1.0) if isinstance(pair, Bounded) else 1.0
        return kernel * (bound / sigma)

    return jax.tree_util.tree_map_with_path(scaled, params)
