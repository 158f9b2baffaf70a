import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ebm_jax.sampling import base, replay

FLOAT32 = float(np.finfo(np.float32).eps)
ROUNDING = {"uint8": 1 / 255, "bfloat16": 2.0**-8}  # largest gap between stored values in [0, 1]
CAPACITY, N, PIXELS = 64, 16, 8
SUBSETS = [(6, 3), (8, 7), (5, 5)]  # capacity, n
store = jax.jit(replay.store, static_argnames="ring")


@partial(jax.jit, static_argnames=("restart_prob", "relabel_prob"))
def draw(key, buffer, labels, restart_prob, relabel_prob=0.0):
    """A draw of flat images that fill their rows."""
    return replay.draw(key, buffer, labels, base.uniform(buffer.images.shape[1:]), restart_prob, relabel_prob)


def buffer_of(rows, labels=None, dtype=jnp.float32, visits=1):
    """A buffer with these rows, each visited `visits` times. The next write goes to slot 0."""
    labels = np.zeros(len(rows), np.int32) if labels is None else labels
    labels = jnp.asarray(labels, jnp.int32 if np.asarray(labels).dtype.kind == "i" else jnp.float32)
    age = jnp.full(len(rows), visits, jnp.int32)
    return replay.ReplayBuffer(jnp.asarray(rows, dtype), labels, age, jnp.zeros((), jnp.int32))


def drawn_of(x, labels, slots, visits=1):
    return replay.Draw(x, labels_of(labels), jnp.full(len(slots), visits, jnp.int32), labels_of(slots))


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def labels_of(values):
    return jnp.asarray(values, jnp.int32)


def one_hot(labels, num_classes=5):
    """Labels as soft ones: each a vector."""
    return np.eye(num_classes, dtype=np.float32)[np.asarray(labels)]


@cache
def many_slots(capacity, n, number=8000):
    def draws(key):
        return jax.vmap(lambda key: replay.distinct_slots(key, capacity, n))(jax.random.split(key, number))

    return np.asarray(jax.jit(draws)(jax.random.key(0)))


def assert_uniform_counts(counts):
    """Pearson's statistic of equally likely outcomes, within five standard deviations of its mean."""
    expected, freedom = counts.sum() / len(counts), len(counts) - 1
    assert np.square(counts - expected).sum() / expected <= freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("capacity", "n"), SUBSETS)
def test_slots_are_distinct_and_in_range_for_every_key(capacity, n):
    slots = np.sort(many_slots(capacity, n))
    assert slots.shape[1] == n
    assert (np.diff(slots) > 0).all()
    assert (slots[:, 0] >= 0).all()
    assert (slots[:, -1] < capacity).all()


@pytest.mark.parametrize(("capacity", "n"), SUBSETS)
def test_every_subset_of_slots_is_equally_likely(capacity, n):
    masks = np.left_shift(1, many_slots(capacity, n)).sum(1)
    subsets = [sum(1 << slot for slot in subset) for subset in itertools.combinations(range(capacity), n)]
    assert_uniform_counts((masks[:, None] == subsets).sum(0))


def test_every_slot_of_a_larger_buffer_is_equally_likely():
    capacity, n, number = 300, 100, 2000
    counts = np.bincount(many_slots(capacity, n, number).ravel(), minlength=capacity)
    variance = number * n / capacity * (1 - n / capacity)
    statistic = np.square(counts - number * n / capacity).sum() / variance * (capacity - 1) / capacity
    freedom = capacity - 1  # χ²: the counts of one draw are 0 or 1 and add up to n
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_restart_probability_0_gives_stored_chains_and_their_labels_to_the_bit():
    rows, stored_labels = uniform(CAPACITY, PIXELS), np.arange(CAPACITY) % 7
    drawn = draw(jax.random.key(0), buffer_of(rows, stored_labels), labels_of(np.full(N, 9)), restart_prob=0.0)
    np.testing.assert_array_equal(drawn.x, rows[drawn.slots])
    np.testing.assert_array_equal(drawn.labels, stored_labels[drawn.slots])


def test_restart_probability_1_gives_uniform_noise_and_the_fresh_labels():
    n, pixels = 256, 16
    fresh = np.arange(n) % 5
    buffer = buffer_of(np.full((n, pixels), 0.5), np.full(n, 9))
    drawn = draw(jax.random.key(0), buffer, labels_of(fresh), restart_prob=1.0)
    np.testing.assert_array_equal(drawn.labels, fresh)
    assert len(np.unique(drawn.x)) > 0.99 * n * pixels
    assert_uniform_counts(np.histogram(drawn.x, bins=10, range=(0, 1))[0])


def test_restarts_are_binomial_and_bring_fresh_label_and_noise_together():
    n, probability, outside = 2000, 0.3, 2.0
    buffer = buffer_of(np.full((n + 100, 4), outside), np.full(n + 100, 4))
    drawn = draw(jax.random.key(0), buffer, labels_of(np.arange(n) + 10), restart_prob=probability)
    restarted = (np.asarray(drawn.x) <= 1).all(1)
    np.testing.assert_array_equal((np.asarray(drawn.x) == outside).all(1), ~restarted)
    np.testing.assert_array_equal(drawn.labels, np.where(restarted, np.arange(n) + 10, 4))
    assert abs(restarted.mean() - probability) < 5 * np.sqrt(probability * (1 - probability) / n)


@pytest.mark.parametrize(("restart_prob", "relabel_prob"), [(0.3, 0.1), (0.05, 0.6), (0.0, 0.4)])
def test_restarts_and_relabels_are_binomial_each_of_its_own_and_a_relabelled_chain_goes_on(restart_prob, relabel_prob):
    n, outside, age, fresh = 2000, 2.0, 5, np.arange(2000) + 10
    buffer = buffer_of(np.full((n, 4), outside), np.full(n, 4), visits=age)
    drawn = jax.device_get(draw(jax.random.key(0), buffer, labels_of(fresh), restart_prob, relabel_prob))
    restarted, has_fresh = (drawn.x <= 1).all(1), drawn.labels == fresh
    np.testing.assert_array_equal(drawn.x[~restarted], outside)
    np.testing.assert_array_equal(drawn.visits, np.where(restarted, 0, age))
    np.testing.assert_array_equal(drawn.labels[~has_fresh], 4)
    assert has_fresh[restarted].all()
    for share, probability in ((restarted, restart_prob), (has_fresh[~restarted], relabel_prob)):
        assert abs(share.mean() - probability) <= 5 * np.sqrt(probability * (1 - probability) / len(share))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("restart_prob", [0.0, 0.3])
def test_labels_travel_with_their_chains(restart_prob, ring):
    """Every chain shows its label as its grey value; a restarted one is known by its noise."""
    generator, num_classes = np.random.default_rng(0), 5

    def shown(labels):
        return np.tile(np.float32(labels)[:, None] / 8, PIXELS)

    labels = np.arange(CAPACITY) % num_classes
    buffer = buffer_of(shown(labels), labels)
    restarts = 0
    for seed in range(40):
        fresh = generator.integers(num_classes, size=N)
        drawn = draw(jax.random.key(2 * seed), buffer, labels_of(fresh), restart_prob=restart_prob)
        restarted = np.ptp(drawn.x, axis=1) > 0
        np.testing.assert_array_equal(np.asarray(drawn.labels)[restarted], fresh[restarted])
        np.testing.assert_array_equal(np.asarray(drawn.x)[~restarted], shown(drawn.labels)[~restarted])
        moved = jnp.asarray(shown(drawn.labels))
        buffer = store(jax.random.key(2 * seed + 1), buffer, drawn, moved, ring=ring)
        restarts += restarted.sum()
    assert (restarts > 0) == (restart_prob > 0)
    assert len(np.unique(buffer.labels)) > 1
    np.testing.assert_array_equal(buffer.images, shown(buffer.labels))


def test_writing_in_place_touches_only_the_drawn_slots():
    rows, moved = uniform(CAPACITY, PIXELS), uniform(N, PIXELS, seed=1)
    slots = np.random.default_rng(2).permutation(CAPACITY)[:N]
    labels, moved_labels = np.arange(CAPACITY), np.arange(N) + 100
    drawn = drawn_of(jnp.zeros((N, PIXELS)), moved_labels, slots)
    after = store(jax.random.key(0), buffer_of(rows, labels), drawn, jnp.asarray(moved), ring=False)
    rows[slots], labels[slots] = moved, moved_labels
    np.testing.assert_array_equal(after.images, rows)
    np.testing.assert_array_equal(after.labels, labels)


@pytest.mark.parametrize(("capacity", "n"), [(7, 3), (4, 4)])
def test_ring_overwrites_the_oldest_chains_in_order(capacity, n):
    """A chain's value and its label are both the number of its arrival."""
    buffer = buffer_of(np.arange(capacity)[:, None], np.arange(capacity))
    for step in range(6):
        arriving = capacity + step * n + np.arange(n)
        drawn = drawn_of(jnp.zeros((n, 1)), arriving, np.arange(n))
        buffer = store(jax.random.key(0), buffer, drawn, jnp.asarray(arriving[:, None], jnp.float32), ring=True)
        newest_last = np.arange(capacity) + (step + 1) * n
        np.testing.assert_array_equal(np.roll(buffer.images[:, 0], -buffer.position), newest_last)
        np.testing.assert_array_equal(buffer.labels, buffer.images[:, 0])


@cache
def stored_copies(dtype):
    """Values in [0, 1], and what many stored copies of each read as."""
    values = np.array([0.0, 1e-3, 0.1, 1 / 7, 0.43, 0.7, 0.999, 1.0], np.float32)
    rows = jnp.asarray(np.tile(values, (20_000, 1)))
    stored = jax.jit(lambda key: replay.decode(replay.encode(key, rows, jnp.dtype(dtype))))(jax.random.key(0))
    return values, np.asarray(stored, np.float64)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_storage_is_right_on_average(dtype):
    values, stored = stored_copies(dtype)
    standard_error = stored.std(0) / np.sqrt(len(stored))
    assert (standard_error[1:-1] > 0).all()
    assert (np.abs(stored.mean(0) - values) <= 5 * standard_error + 2 * FLOAT32).all()
    assert (np.abs(stored - values) < ROUNDING[dtype] + 2 * FLOAT32).all()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_storage_is_exact_at_both_ends(dtype):
    _, stored = stored_copies(dtype)
    assert (stored[:, 0] == 0).all()
    assert (stored[:, -1] == 1).all()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_chains_do_not_darken_over_many_visits(dtype):
    """Chains move forth and back by a third of a gap, so every visit rounds. The release's chains would halve."""
    visits, capacity, pixels, start = 200, 128, 32, 0.7
    moves = ROUNDING[dtype] / 3 * jnp.resize(jnp.array([1.0, -1.0]), visits)

    def body(buffer, inputs):
        key, move = inputs
        key_draw, key_store = jax.random.split(key)
        drawn = draw(key_draw, buffer, jnp.zeros(capacity, jnp.int32), restart_prob=0.0)
        return replay.store(key_store, buffer, drawn, drawn.x + move), None

    @jax.jit
    def visited():
        key_start, key_visits = jax.random.split(jax.random.key(0))
        rows = replay.encode(key_start, jnp.full((capacity, pixels), start), jnp.dtype(dtype))
        buffer = buffer_of(rows, dtype=rows.dtype)
        return replay.decode(lax.scan(body, buffer, (jax.random.split(key_visits, visits), moves))[0].images)

    end = np.asarray(visited(), np.float64)
    walk = ROUNDING[dtype] / 2 * np.sqrt(visits + 1)  # a rounding's standard deviation is at most half a gap
    assert end.std() > walk / 2
    assert abs(end.mean() - start) < 5 * walk / np.sqrt(end.size)


def test_float32_storage_keeps_every_bit():
    values, slots = uniform(N, PIXELS), np.random.default_rng(1).permutation(CAPACITY)[:N]
    values[0, :6] = [0.0, 1.0, np.nextafter(np.float32(1), np.float32(0)), 1e-30, 1 / 3, 1 / 255]
    drawn = drawn_of(jnp.zeros((N, PIXELS)), np.zeros(N), slots)
    after = store(jax.random.key(0), buffer_of(np.zeros((CAPACITY, PIXELS))), drawn, jnp.asarray(values), ring=False)
    by_slot = np.zeros((CAPACITY, PIXELS), np.float32)
    by_slot[slots] = values
    again = draw(jax.random.key(1), after, drawn.labels, restart_prob=0.0)
    assert np.isin(again.slots, slots).sum() > 1
    np.testing.assert_array_equal(np.asarray(again.x).view(np.uint32), by_slot[again.slots].view(np.uint32))


@pytest.mark.parametrize("dtype", ["float32", *ROUNDING])
def test_new_buffer_is_uniform_noise_that_nobody_visited(dtype):
    capacity, shape = 1024, (4, 8)
    buffer = jax.jit(lambda key: replay.init(key, capacity, base.uniform(shape), jnp.dtype(dtype)))(jax.random.key(0))
    assert buffer.images.nbytes == capacity * math.prod(shape) * jnp.dtype(dtype).itemsize
    values = np.asarray(replay.decode(buffer.images), np.float64)
    assert values.shape == (capacity, math.prod(shape))
    for power in (1, 2, 3, 4):
        standard_error = (values**power).std() / np.sqrt(values.size)
        rounding = math.comb(power, 2) * ROUNDING.get(dtype, 0) ** 2 / 4  # E r² / 2 times the second derivative
        assert abs((values**power).mean() - 1 / (power + 1)) < 5 * standard_error + rounding
    assert (np.asarray(buffer.visits) == 0).all()


def test_rows_from_half_a_tile_of_a_tpu_on_fill_whole_tiles_and_shorter_ones_do_not_grow():
    widths = {2: 2, 63: 63, 64: 128, 128: 128, 129: 256, 784: 896, 3072: 3072}
    assert {pixels: replay.row_width(pixels) for pixels in widths} == widths


@pytest.mark.parametrize("dtype", ["float32", *ROUNDING])
def test_what_fills_a_row_up_to_its_width_is_zero_and_never_seen(dtype):
    shape = (9, 10, 1)  # 90 of 128
    key_init, key_draw, key_store = jax.random.split(jax.random.key(0), 3)
    buffer = replay.init(key_init, CAPACITY, base.uniform(shape), jnp.dtype(dtype))
    drawn = replay.draw(key_draw, buffer, labels_of(np.zeros(N)), base.uniform(shape), 0.0)
    assert drawn.x.shape == (N, *shape)
    np.testing.assert_array_equal(drawn.x, replay.as_images(buffer.images, shape)[drawn.slots])
    after = replay.store(key_store, buffer, drawn, jnp.ones((N, *shape)))
    for images in (buffer.images, after.images):
        assert images.shape == (CAPACITY, 128)
        assert (np.asarray(images)[:, 90:] == 0).all()
        assert (np.asarray(images)[:, :90] != 0).mean() > 0.9
    assert (replay.as_images(after.images, shape)[drawn.slots] == 1).all()


@pytest.mark.parametrize("soft", [False, True])
def test_a_chain_takes_its_label_at_its_first_visit_and_keeps_it(soft):
    """The labels of the data batches are one class in each step, so a chain's label tells when it was first drawn."""
    buffer = replay.init(jax.random.key(0), CAPACITY, base.uniform((PIXELS,)), label_shape=(5,) if soft else None)
    noise, first = np.asarray(buffer.images), np.full(CAPACITY, -1)
    for seed in range(5):
        fresh = np.full(N, seed)
        given = jnp.asarray(one_hot(fresh)) if soft else labels_of(fresh)
        drawn = draw(jax.random.key(seed), buffer, given, restart_prob=0.0)
        slots = np.asarray(drawn.slots)
        np.testing.assert_array_equal(drawn.x, noise[slots])
        first[slots] = np.where(first[slots] < 0, seed, first[slots])
        expected = one_hot(first[slots]) if soft else first[slots]
        np.testing.assert_array_equal(drawn.labels, expected)
        buffer = store(jax.random.key(100 + seed), buffer, drawn, drawn.x)
    assert len(set(first)) == 6, "some slots were never drawn, the others first in different steps"


def test_visits_count_the_runs_since_the_last_start_from_noise():
    buffer, visits = buffer_of(np.full((CAPACITY, PIXELS), 2.0), visits=7), np.full(CAPACITY, 7)
    for seed in range(30):
        drawn = draw(jax.random.key(seed), buffer, labels_of(np.zeros(N)), restart_prob=0.4)
        slots, restarted = np.asarray(drawn.slots), np.asarray(drawn.x)[:, 0] < 1.5
        visits[slots] = np.where(restarted, 1, visits[slots] + 1)
        buffer = store(jax.random.key(100 + seed), buffer, drawn, jnp.full((N, PIXELS), 2.0))
        np.testing.assert_array_equal(buffer.visits, visits)
    assert visits.min() < 7 < visits.max()


def test_storage_of_another_type_is_refused():
    with pytest.raises(ValueError, match="stores float32, bfloat16 or uint8, not"):
        replay.init(jax.random.key(0), 4, base.uniform((2,)), jnp.int16)
