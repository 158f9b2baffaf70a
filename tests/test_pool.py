"""A sampling buffer goes on where it stopped; an ensemble moves it by its mean energy or in turns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax.sampling import pool
from ebm_jax.sampling.base import uniform
from ebm_jax.sampling.kernel import unbounded
from ebm_jax.sampling.langevin import langevin

PULL = [(langevin(1.0, 0.0, project=unbounded), 1)]  # one noise-free step: x - ∇U
LABELS = jnp.zeros(8, jnp.int32)


def ramp(slopes, rounds, labels):
    """An energy: its descent moves every value by the slope of this round's member, whatever the labels."""
    del labels
    slope = jnp.asarray(slopes)[rounds % len(slopes)]
    return lambda x: -slope * x.sum((1, 2))


def advance(buffer, seed, slopes, fresh=LABELS, **chances):
    chances = {"restart_prob": 0.0} | chances
    return pool.advance(jax.random.key(seed), buffer, fresh, partial(ramp, slopes), PULL, uniform((2, 2)), **chances)


def start():
    return pool.init(jax.random.key(0), 8, uniform((2, 2)))


def test_a_round_moves_every_drawn_chain_and_puts_it_back_in_its_place():
    before = start()
    after, images, _ = advance(before, 1, [0.5])
    np.testing.assert_allclose(after.chains.images, before.chains.images + 0.5, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(images.reshape(8, 4), 0), np.sort(after.chains.images, 0))
    np.testing.assert_array_equal(after.chains.visits, 1)
    assert after.rounds == 1


def test_members_take_turns_one_a_round():
    buffer, slopes = start(), [1.0, 10.0, 100.0]
    first = buffer.chains.images
    for rounds, total in enumerate([1.0, 11.0, 111.0, 112.0]):
        buffer, _, _ = advance(buffer, rounds, slopes)
        np.testing.assert_allclose(buffer.chains.images, first + total, rtol=1e-4)


def test_chains_change_their_label_with_the_stated_probability_only():
    buffer, _, _ = advance(start(), 1, [0.0])
    fresh = jnp.full(8, 7, jnp.int32)
    kept, _, labels = advance(buffer, 2, [0.0], fresh)
    assert (labels == 0).all()
    changed, images, labels = advance(kept, 3, [0.0], fresh, relabel_prob=1.0)
    assert (labels == 7).all()
    assert (changed.chains.labels == 7).all()
    np.testing.assert_array_equal(changed.chains.images, kept.chains.images)
    np.testing.assert_array_equal(changed.chains.visits, 3)
    restarted, images, _ = advance(changed, 4, [0.0], restart_prob=1.0)
    assert not np.isin(images, changed.chains.images).any()
    np.testing.assert_array_equal(restarted.chains.visits, 1)


def test_the_energy_of_a_round_gets_the_labels_of_the_drawn_chains():
    def by_label(rounds, labels):
        return lambda x: -labels * x.sum((1, 2))

    buffer = start()
    chains = buffer.chains._replace(labels=jnp.arange(8), visits=jnp.ones(8, jnp.int32))
    after, _, _ = pool.advance(
        jax.random.key(1), pool.Pool(chains, buffer.rounds), LABELS, by_label, PULL, uniform((2, 2)), restart_prob=0.0
    )
    moved = after.chains.images - chains.images
    np.testing.assert_allclose(moved, np.arange(8.0)[:, None].repeat(4, 1), rtol=1e-5, atol=1e-6)
