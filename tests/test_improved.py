"""Improved contrastive divergence: its term's gradient against finite differences in float64, and against its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import BATCH, SHAPE, STILL, batch_for, contrastive_divergence

from ebm_jax.methods.improved import improved, log_distance
from ebm_jax.methods.method import Asked, Comparison, Limits, Method, Model, answered, no_memory, weighted_sum
from ebm_jax.sampling.base import uniform

STEP, PIXELS = 0.05, int(np.prod(SHAPE))


def waves(params, images, labels=None, dropout_key=None):
    """An energy of which gradients depend on the parameters and on the image."""
    return jnp.sin(images.reshape(len(images), -1) @ params["w"]).sum(1)


def params_of(dtype=jnp.float32):
    return {"w": jnp.asarray(np.random.default_rng(1).normal(size=(PIXELS, 3)), dtype)}


def made(kl_weight=1.0, entropy_weight=0.3, neighbours=BATCH, grad_clip=np.inf):
    weights = {"kl_weight": kl_weight, "entropy_weight": entropy_weight, "neighbours": neighbours}
    return improved(contrastive_divergence(STILL), **weights, step_size=STEP, grad_clip=grad_clip)


def evaluated(method, params=None):
    memory = method.init(jax.random.key(7))
    batch = jax.tree.map(jnp.asarray, batch_for())

    def loss(params):
        return method.loss(jax.random.key(5), Model(waves, params), batch, memory)

    (value, (_, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(params or params_of())
    return value, metrics, gradient, memory


def by_hand(w, w_fixed, x, stored):
    """(mean U_fixed(x'), mean log min |x' - b|) of x' = clip(x - s ∇U_w(x)) in float64."""
    gradient = np.cos(x @ w) @ w.T
    end = np.clip(x - STEP * gradient, 0.0, 1.0)
    distances = np.sqrt(np.square(end[:, None] - stored[None]).sum(-1)).min(1)
    return np.sin(end @ w_fixed).sum(1).mean(), np.log(distances).mean()


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 0.3), (0.7, 0.2)])
def test_the_terms_gradient_is_that_of_finite_differences_through_the_last_step_alone(weights):
    plain = evaluated(contrastive_divergence(STILL))
    value, metrics, gradient, memory = evaluated(made(*weights))
    stored = np.asarray(memory.images[:, :PIXELS], np.float64)
    w = np.asarray(params_of()["w"], np.float64)

    def term(moved):
        energy, distance = by_hand(moved, w, stored, stored)
        return weights[0] * energy - weights[1] * distance

    np.testing.assert_allclose(metrics["kl_energy"], by_hand(w, w, stored, stored)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["log_distance"], by_hand(w, w, stored, stored)[1], rtol=1e-4)
    np.testing.assert_allclose(value - plain[0], term(w), rtol=1e-3, atol=1e-4)
    rng = np.random.default_rng(3)
    for _ in range(5):
        way = rng.normal(size=w.shape)
        expected = (term(w + 1e-6 * way) - term(w - 1e-6 * way)) / 2e-6
        found = float((np.asarray(gradient["w"] - plain[2]["w"], np.float64) * way).sum())
        assert abs(expected) > 1e-3
        assert abs(found - expected) < 2e-3 * max(abs(expected), 0.1)


def test_distances_are_to_the_nearest():
    x, others = jnp.array([[0.0, 0.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0], [3.0, 2.0], [9.0, 9.0]])
    np.testing.assert_allclose(log_distance(x, others), np.log([1.0, 2.0]), rtol=1e-6)
    assert np.isfinite(log_distance(x, x)).all()


def test_a_clipped_gradient_moves_chains_no_further_and_has_no_gradient_of_its_own():
    _, metrics, gradient, _ = evaluated(made(1.0, 0.0, grad_clip=1e-6))
    plain = evaluated(contrastive_divergence(STILL))
    np.testing.assert_allclose(metrics["kl_energy"], metrics["energy_samples"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradient["w"], plain[2]["w"], atol=1e-5)


def test_in_a_weighted_sum_the_term_weighs_as_the_rest_of_its_method():
    def ask(keys, model, batch, memory):
        return Asked(((batch.images, batch.labels),), lambda energies: (0.0 * energies.mean() + 4.0, {}), memory, {})

    constant = Comparison(ask, ())
    constant = Method(no_memory, answered(constant), uniform(SHAPE), Limits(), comparison=constant)
    values = []
    for weight in (1.0, 0.5):
        method = weighted_sum([(weight, made()), (1.0, constant)])
        assert method.comparison is not None, "they share one call of the network"
        values.append(float(evaluated(method)[0]) - 4.0)
    np.testing.assert_allclose(values[1], 0.5 * values[0], rtol=1e-5)
    assert abs(values[0] - float(evaluated(contrastive_divergence(STILL))[0])) > 0.1
