"""Langevin corrections at the noise of a matching's path, on normal laws, where all is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

from configs import shapes_shape_equilibrium
from ebm_jax import chains
from ebm_jax.models import energy
from ebm_jax.sampling.base import centred_normal
from ebm_jax.sampling.correction import corrected
from ebm_jax.sampling.kernel import projection, run, unbounded
from ebm_jax.tasks import compose

SHARE, WAY, SIZE = 0.6, 4.0, 0.05
BASE = centred_normal((1,))
STILL = projection(unbounded)  # a "descent" that does not move
NUM = 20_000


def noisy(mean, std):
    """Mean and variance of γ x + (1 - γ) ε for data x ~ N(mean, std²), in units of the base."""
    return SHARE * mean, (SHARE * std) ** 2 + (1 - SHARE) ** 2


def matched(mean, std):
    """The energy whose gradient at the share γ is the minimum of the matching loss for such data."""
    centre, variance = noisy(mean, std)

    def energy_fn(x):
        u = (x - BASE.centre) / BASE.scale
        of_noise = (1 - SHARE) * jnp.square(u - centre) / (2 * variance)  # its gradient is E[ε | u]
        return (WAY / SHARE * (of_noise - jnp.square(u) / 2)).sum(1)

    return energy_fn


def ends(energy_fn, num_steps=1_000):
    """Where chains from far off are after so many corrections, in units of the base."""
    kernel = corrected(STILL, BASE, SHARE, WAY, SIZE, unbounded)
    start = jnp.full((NUM, 1), BASE.centre + 3 * BASE.scale)
    x = jax.jit(lambda key: run(kernel, key, start, energy_fn, num_steps)[0])(jax.random.key(0))
    return (np.asarray(x[:, 0]) - BASE.centre) / BASE.scale


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.3), (-0.8, 1.5)])
def test_corrections_draw_from_the_law_of_noisy_images(mean, std):
    u, (centre, variance) = ends(matched(mean, std)), noisy(mean, std)
    rate = SIZE * (1 - SHARE) ** 2 / variance  # of one step towards the centre
    discretised = variance / (1 - rate / 2)  # as of any Langevin chain
    assert abs(u.mean() - centre) < 5 * (variance / NUM) ** 0.5
    assert u.var() == pytest.approx(discretised, rel=5 * (2 / NUM) ** 0.5)


def test_under_a_product_over_the_energy_of_no_class_they_draw_from_the_product_of_noisy_laws():
    classes, without = [(0.9, 0.4), (-0.3, 0.4)], (0.0, 1.2)
    u = ends(energy.product_of_classes([matched(*one) for one in classes], matched(*without)))
    (one, variance), (other, _), (none, wide) = (noisy(*law) for law in (*classes, without))
    precision = 2 / variance - 1 / wide
    centre = ((one + other) / variance - none / wide) / precision
    assert u.mean() == pytest.approx(centre, abs=0.02)
    assert u.var() == pytest.approx(1 / precision, rel=0.05), "to first order in the size of a step"


def config_of(**changes):
    return changed(shapes_shape_equilibrium.get_config(), **{"sample__num_steps": 4} | changes)


def bowl(x):
    return jnp.square(x - 0.5).sum((1, 2, 3))


def moved(stages):
    """Where a grey image is after each stage alone."""
    start = jnp.full((2, 16, 16, 1), 0.2)
    keys = jax.random.split(jax.random.key(0), len(stages))
    return [
        np.asarray(run(kernel, key, start, bowl, steps)[0]) for key, (kernel, steps) in zip(keys, stages, strict=True)
    ]


def test_a_composition_has_the_steps_of_sampling_and_corrections_while_images_are_mostly_noise():
    # Each step adds 0.016 to the share of data, as c = 4 and s/σ² = 0.004.
    config = config_of(sample__num_steps=60, sample__last_share=0.0)
    plain, composed = chains.make_stages(config), compose.stages_of(config)
    assert [steps for _, steps in plain] == [60, 1]
    assert [steps for _, steps in composed] == [49, 11, 1]
    assert moved(plain)[0].std() < 1e-6, "descent has no noise"
    assert [x.std() > 0.01 for x in moved(composed)] == [True, False, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"sample__correction": 0.0},
        {"model__num_classes": 1, "data__condition": ""},
        {"method__name": "contrastive"},
    ],
)
def test_without_corrections_or_an_energy_of_no_class_a_composition_is_a_chain_as_ever(changes):
    config = config_of(**changes)
    plain, composed = chains.make_stages(config), compose.stages_of(config)
    assert [steps for _, steps in composed] == [steps for _, steps in plain]
    jax.tree.map(np.testing.assert_array_equal, moved(composed), moved(plain))
