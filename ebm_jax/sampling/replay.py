"""The replay buffer: training's chains wait here between two steps, on the device, with their labels.

It holds one device's shard, flat [capacity, width]. XLA:TPU would lay a buffer [capacity, h, w, c] out anew twice a
step, and also rows that do not fill the 128 lanes of a TPU's tiles. So rows of 64 pixels or more have zeros behind them
(`row_width`); shorter rows would grow too much. The buffer starts full of noise, so nothing branches on how full it is.
Until each slot was drawn once, draws mix noise with young chains. A slot has no label before its first draw, and then
takes the fresh label. Draw and store touch only the drawn rows: if the caller donates the buffer, their cost does not
depend on the capacity.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int, Num

from ebm_jax.distributed.parallel import REPLICATED
from ebm_jax.sampling.base import Base
from ebm_jax.types import Images, Labels, PRNGKey

LANES = 128  # in a tile of a TPU's memory; narrower rows have their pixels outermost by default
Rows = Float[Array, "n width"]
Slots = Int[Array, " n"]


class ReplayBuffer(NamedTuple):
    """Chains as `encode` stores them, float32, bfloat16 bits or uint8, and the label under which each was run."""

    images: Num[Array, "capacity width"]
    labels: Int[Array, " capacity"] | Float[Array, "capacity k"]
    visits: Int[Array, " capacity"]
    """How often the chain was drawn and run since it last started from noise."""
    position: Int[Array, ""]
    """The slot that a first-in-first-out ring writes next."""


def partition(rows: Any) -> ReplayBuffer:
    """How a buffer lies on the mesh; `rows` is the spec of its rows."""
    return ReplayBuffer(images=rows, labels=rows, visits=rows, position=REPLICATED)


class Draw(NamedTuple):
    """Chains drawn from the buffer, with the label, the visits so far and the slot of each."""

    x: Images
    labels: Labels
    visits: Int[Array, " n"]
    slots: Slots


def row_width(pixels: int) -> int:
    """The number of values in a row that holds this many pixels, zeros included."""
    return -(-pixels // LANES) * LANES if 2 * pixels >= LANES else pixels


def init(
    key: PRNGKey,
    capacity: int,
    base: Base,
    dtype: DTypeLike = jnp.float32,
    label_shape: tuple[int, ...] | None = None,
) -> ReplayBuffer:
    """`capacity` chains drawn from `base` that have no label yet, stored as float32, bfloat16 or uint8.

    Args:
      dtype: uint8 only for chains in [0, 1].
      label_shape: None for integer labels, (k,) for soft ones.
    """
    key_images, key_encode = jax.random.split(key)
    images = base.sample(key_images, capacity).reshape(capacity, -1)
    labels = jnp.zeros(capacity, jnp.int32) if label_shape is None else jnp.zeros((capacity, *label_shape), jnp.float32)
    zeros = jnp.zeros(capacity, jnp.int32)
    return ReplayBuffer(_padded(encode(key_encode, images, dtype)), labels, zeros, jnp.zeros((), jnp.int32))


def filled(key: PRNGKey, buffer: ReplayBuffer, x: Images, labels: Labels) -> ReplayBuffer:
    """The buffer with these chains [capacity, *event] in its slots in place of its own, each visited once."""
    rows = _padded(encode(key, x.reshape(len(x), -1), buffer.images.dtype))
    return ReplayBuffer(rows, labels, jnp.ones_like(buffer.visits), buffer.position)


def draw(
    key: PRNGKey,
    buffer: ReplayBuffer,
    fresh_labels: Labels,
    base: Base,
    restart_prob: float,
    relabel_prob: float = 0.0,
) -> Draw:
    """One chain for each of `fresh_labels` ([n] or [n, k]), from n different slots drawn uniformly, n <= capacity.

    With probability `restart_prob` in [0, 1] a chain starts anew from `base`. A restarted chain takes its fresh label,
    and so does a chain on its first visit. If the fresh labels are the data batch's, the chains' labels follow the
    data's. Any other chain takes its fresh label with probability `relabel_prob` in [0, 1], and else keeps its own.
    Relabelling makes images of one class negatives under another class's energy. Without it a conditional energy never
    compares classes. (The release stores no labels, which has the same effect.)
    """
    key_slots, key_restart, key_noise, key_relabel = jax.random.split(key, 4)
    n = fresh_labels.shape[0]
    slots = distinct_slots(key_slots, buffer.images.shape[0], n)
    noise = base.sample(key_noise, n)
    old, visits = as_images(buffer.images[slots], noise.shape[1:]), buffer.visits[slots]
    restart = jax.random.bernoulli(key_restart, jnp.float32(restart_prob), (n,))
    x = jnp.where(restart.reshape(n, *(1,) * (noise.ndim - 1)), noise, old)
    relabelled = jax.random.bernoulli(key_relabel, jnp.float32(relabel_prob), (n,))
    is_new = (restart | relabelled | (visits == 0)).reshape(n, *(1,) * (fresh_labels.ndim - 1))
    labels = jnp.where(is_new, fresh_labels, buffer.labels[slots])
    return Draw(x, labels, jnp.where(restart, 0, visits), slots)


def store(key: PRNGKey, buffer: ReplayBuffer, drawn: Draw, x: Images, *, ring: bool = False) -> ReplayBuffer:
    """The buffer after the drawn chains moved to `x`: written back in place, or over the oldest slots if `ring`.

    A ring copies the drawn chains and drops others, drawn or not: without restarts its chains become relatives. `key`
    drives the stochastic rounding to bfloat16 and uint8.
    """
    capacity, n = buffer.images.shape[0], x.shape[0]
    oldest = (buffer.position + jnp.arange(n, dtype=jnp.int32)) % capacity
    slots = oldest if ring else drawn.slots
    rows = _padded(encode(key, x.reshape(n, -1), buffer.images.dtype))
    images = buffer.images.at[slots].set(rows, unique_indices=True)
    labels = buffer.labels.at[slots].set(drawn.labels, unique_indices=True)
    visits = buffer.visits.at[slots].set(drawn.visits + 1, unique_indices=True)
    return ReplayBuffer(images, labels, visits, (buffer.position + n) % capacity)


def distinct_slots(key: PRNGKey, capacity: int, n: int) -> Slots:
    """A uniform random subset: n of 0..capacity-1, by n² comparisons, whatever the capacity.

    R. W. Floyd's algorithm (Bentley, "Programming Pearls: a sample of brilliance", CACM 30(9), 1987): for each j of the
    last n numbers take a uniform t <= j, or j itself if t is already taken.
    """
    last = jnp.arange(capacity - n, capacity, dtype=jnp.int32)
    candidates = jax.random.randint(key, (n,), 0, last + 1, jnp.int32)

    def choose(index, slots):
        taken = (slots == candidates[index]).any()
        return slots.at[index].set(jnp.where(taken, last[index], candidates[index]))

    return lax.fori_loop(0, n, choose, jnp.full_like(candidates, -1))


def encode(key: PRNGKey, x: Rows, dtype: DTypeLike) -> Num[Array, "n width"]:
    """Values in [0, 1] as stored. Rounding to bfloat16 and uint8 is stochastic, hence right on average.

    bfloat16 is stored as its bits in uint16: to change a few rows of a bfloat16 buffer, XLA's CPU backend would convert
    all of it to float32 and back. The release floors to uint8 and reads (n + U)/256, which darkens a chain by 255/256
    at every visit.

    Raises:
      ValueError: `dtype` is another type.
    """
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float32:
        return x
    if dtype in (jnp.bfloat16, jnp.uint16):  # the upper half of a float32: add noise below it, then cut
        noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
        return ((lax.bitcast_convert_type(x, jnp.uint32) + noise) >> 16).astype(jnp.uint16)
    if dtype == jnp.uint8:
        return jnp.clip(jnp.floor(255.0 * x + jax.random.uniform(key, x.shape, jnp.float32)), 0, 255).astype(jnp.uint8)
    raise ValueError(f"a replay buffer stores float32, bfloat16 or uint8, not {dtype}")


def _padded(rows: Num[Array, "n pixels"]) -> Num[Array, "n width"]:
    return jnp.pad(rows, ((0, 0), (0, row_width(rows.shape[1]) - rows.shape[1])))


def as_images(stored: Num[Array, "*n width"], event_shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Stored rows [*n, width] as images float32 [*n, *event] in [0, 1]."""
    return decode(stored[..., : math.prod(event_shape)]).reshape(*stored.shape[:-1], *event_shape)


def decode(stored: Num[Array, "*n width"]) -> Float[Array, "*n width"]:
    """Stored rows as float32 in [0, 1]."""
    if stored.dtype == jnp.uint8:
        return stored.astype(jnp.float32) / 255.0
    if stored.dtype == jnp.uint16:
        return lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    return stored
