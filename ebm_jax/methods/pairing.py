"""Which noise goes with which image: couplings of a minibatch by optimal transport (Tong et al. 2024, 2302.00482)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ebm_jax.types import Images, PRNGKey

Pair = Callable[[PRNGKey, Images, Images], Images]
"""(key, noise [n, *event], images [n, *event]) -> the noise of each image"""
SINKHORN_STEPS = 200


def exact(key: PRNGKey, noise: Images, images: Images) -> Images:
    """The permutation of the noise with the least sum of squared distances to the images: the optimal plan itself.

    n³ operations, n² of them one after another: 3 ms for 64 images and 9 ms for 128 on one core of a Xeon.
    """
    del key
    return noise[assignment(squares(noise, images))]


def assignment(cost: Float[Array, "n n"]) -> Int[Array, " n"]:
    """The row of each column in the permutation of least total cost, by shortest augmenting paths.

    Crouse 2016, "On implementing 2D rectangular assignment algorithms". optax.assignment solves it too, in 1.4 to 1.9
    times the time, and not on a device's share: its loops begin with arrays that are the same on all devices, which
    `shard_map` refuses.
    """
    n = len(cost)
    zeros = jnp.zeros_like(cost[0])  # made of the cost, so that all arrays vary over devices as it does
    places, nobody = jnp.arange(n, dtype=jnp.int32), zeros.astype(jnp.int32) - 1

    def add(row: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Give one more row a column, and the potentials of rows and columns that show this to be the cheapest way."""
        owner, of_rows, of_columns = state

        def extend(search: Any) -> Any:
            last, least, before, reached, total = search
            at = jnp.where(last < 0, row, owner[last])
            reached = reached | (places == last)
            length = total + cost[at] - of_rows[at] - of_columns
            shorter = ~reached & (length < least)
            least, before = jnp.where(shorter, length, least), jnp.where(shorter, last, before)
            open_ends = jnp.where(reached, jnp.inf, least)
            last = open_ends.argmin().astype(jnp.int32)
            return last, least, before, reached, open_ends[last]

        def goes_on(search: Any) -> Array:
            last, _, _, _, total = search
            return (last < 0) | ((owner[last] >= 0) & jnp.isfinite(total))  # else a NaN would keep it here for ever

        begin = nobody[0], zeros + jnp.inf, nobody, nobody >= 0, zeros[0]
        last, least, before, reached, total = lax.while_loop(goes_on, extend, begin)
        change = jnp.where(reached, total - least, 0.0)
        of_rows = of_rows.at[jnp.where(reached, owner, n)].add(change, mode="drop").at[row].add(total)

        def pass_on(state: tuple[Array, Array]) -> tuple[Array, Array]:
            owner, column = state
            giver = before[column]
            return owner.at[column].set(jnp.where(giver < 0, row, owner[giver])), giver

        owner, _ = lax.while_loop(lambda state: state[1] >= 0, pass_on, (owner, last))
        return owner, of_rows, of_columns - change

    return lax.fori_loop(0, n, add, (nobody, zeros, zeros))[0]


def sinkhorn(key: PRNGKey, noise: Images, images: Images, *, blur: float) -> Images:
    """For each image a noise drawn from the entropic plan of the minibatch; one noise may serve twice, or never.

    Args:
      blur: > 0, the plan's temperature, in units of the mean squared distance. The smaller, the nearer to `exact`; the
        200 iterations of Sinkhorn's algorithm, in logs, converge for 0.01 and above.
    """
    return noise[jax.random.categorical(key, log_plan(squares(noise, images), blur).T)]


def squares(noise: Images, images: Images) -> Float[Array, "n m"]:
    """The squared distance of each noise to each image, less what is the same for a whole row or column."""
    rows, columns = (jnp.reshape(one, (len(one), -1)) for one in (noise, images))
    rows, columns = rows - rows.mean(0, keepdims=True), columns - columns.mean(0, keepdims=True)
    products = jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST)
    return jnp.square(rows).sum(1)[:, None] + jnp.square(columns).sum(1)[None] - 2.0 * products


def log_plan(cost: Float[Array, "n m"], blur: float) -> Float[Array, "n m"]:
    """log of the plan between uniform laws that minimises Σ P C + ε Σ P log P, ε = blur · mean C (Cuturi 2013)."""
    scaled = -cost / (blur * cost.mean())
    rows, columns = jnp.log(cost.shape[0]), jnp.log(cost.shape[1])

    def halfway(_: Any, g: Array) -> Array:
        f = -rows - jax.nn.logsumexp(scaled + g[None], axis=1)
        return -columns - jax.nn.logsumexp(scaled + f[:, None], axis=0)

    g = lax.fori_loop(0, SINKHORN_STEPS, halfway, jnp.zeros_like(scaled[0]))
    f = -rows - jax.nn.logsumexp(scaled + g[None], axis=1)
    return scaled + f[:, None] + g[None]
