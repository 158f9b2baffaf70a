"""A sampling buffer: chains that wait between two rounds of sampling, shared by all members of an ensemble.

Sampling goes on from these chains and never starts from zero again; several models move one set of chains. The release
reports the numbers of an ensemble that takes turns. Its round t moves a batch of the buffer under snapshot t mod 10
alone, restarts 1 % of the chains and relabels 10 % (test_inception.py: compute_inception).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Int

from ebm_jax.distributed.parallel import REPLICATED
from ebm_jax.sampling import replay
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import Stages, end_of_stages
from ebm_jax.sampling.replay import ReplayBuffer
from ebm_jax.types import EnergyFn, Images, Labels, PRNGKey

EnergyOfRound = Callable[[Int[Array, ""], Labels], EnergyFn]


class Pool(NamedTuple):
    """The chains, and the number of rounds done."""

    chains: ReplayBuffer
    rounds: Int[Array, ""]


def init(
    key: PRNGKey,
    capacity: int,
    base: Base,
    dtype: DTypeLike = jnp.float32,
    label_shape: tuple[int, ...] | None = None,
) -> Pool:
    """The pool before the first round: `capacity` chains drawn from `base`, as in `replay.init`."""
    return Pool(replay.init(key, capacity, base, dtype, label_shape), jnp.zeros((), jnp.int32))


def partition(rows: Any) -> Pool:
    """How a pool lies on the mesh; `rows` is the spec of the chains' rows."""
    return Pool(replay.partition(rows), REPLICATED)


def advance(
    key: PRNGKey,
    pool: Pool,
    fresh_labels: Labels,
    energy_of: EnergyOfRound,
    stages: Stages,
    base: Base,
    *,
    restart_prob: float,
    relabel_prob: float = 0.0,
) -> tuple[Pool, Images, Labels]:
    """One round: draw n chains, one for each of `fresh_labels`, run them through `stages` and put them back.

    Args:
      energy_of: (round, labels [n]) -> the energy of this round. To let an ensemble's members take turns, make it
        depend on the round.
      restart_prob, relabel_prob: as in `replay.draw`.

    Returns:
      The pool after the round, the chains' positions [n, *event] and their labels.
    """
    key_draw, key_chain, key_store = jax.random.split(key, 3)
    drawn = replay.draw(key_draw, pool.chains, fresh_labels, base, restart_prob, relabel_prob)
    images = end_of_stages(stages, key_chain, drawn.x, energy_of(pool.rounds, drawn.labels))
    chains = replay.store(key_store, pool.chains, drawn, images)
    return Pool(chains, pool.rounds + 1), images, drawn.labels
