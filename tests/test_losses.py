import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax.distributed import parallel
from ebm_jax.methods import losses

FLOAT32 = float(np.finfo(np.float32).eps)
PENALTIES = {"sum": losses.energy_l2_sum, "difference": losses.energy_l2_difference}


def identity(energies):
    return energies


def normal(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def gradient_in_weights(objective, features, data, samples):
    """∇w of the objective for the energy U(x) = w · features(x)."""
    w = jnp.asarray(normal(data.shape[1], seed=5))

    def loss(w):
        return objective(features(data) @ w, features(samples) @ w)

    return np.asarray(w), np.asarray(jax.grad(loss)(w))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("power", [1, 2])
def test_contrastive_gradient_is_the_difference_of_the_mean_features(power, penalty):
    data, samples = jnp.asarray(normal(64, 5)), jnp.asarray(normal(64, 5, seed=1, scale=2.0))
    objective = losses.regularised(losses.contrastive_divergence, 0.0, PENALTIES[penalty])
    _, gradient = gradient_in_weights(objective, lambda x: x**power, data, samples)
    expected = (np.asarray(data, np.float64) ** power).mean(0) - (np.asarray(samples, np.float64) ** power).mean(0)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=64 * FLOAT32 * np.abs(expected).max())


@pytest.mark.parametrize(("penalty", "sign"), [("sum", 1), ("difference", -1)])
def test_energy_l2_adds_twice_its_weight_times_energy_times_features(penalty, sign):
    data, samples, energy_l2 = jnp.asarray(normal(64, 5)), jnp.asarray(normal(64, 5, seed=1)), 0.3
    objective = losses.regularised(losses.contrastive_divergence, energy_l2, PENALTIES[penalty])
    w, gradient = gradient_in_weights(objective, lambda x: x, data, samples)
    factors = [np.asarray(1 + 2 * energy_l2 * data @ w), np.asarray(-1 + sign * 2 * energy_l2 * samples @ w)]
    expected = (factors[0][:, None] * data + factors[1][:, None] * samples).mean(0)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=64 * FLOAT32 * np.abs(expected).max())


def test_softplus_and_its_gradient_are_their_closed_forms():
    data, samples = normal(40, scale=5.0), normal(40, seed=1, scale=5.0)
    gap = np.float64(data) - samples
    value, gradients = jax.value_and_grad(losses.softplus, (0, 1))(jnp.asarray(data), jnp.asarray(samples))
    np.testing.assert_allclose(value, np.log1p(np.exp(gap)).mean(), rtol=40 * FLOAT32)
    expected = 1 / (1 + np.exp(-gap)) / len(gap)
    np.testing.assert_allclose(gradients, [expected, -expected], rtol=40 * FLOAT32)


@pytest.mark.parametrize("margin", [0.2, 1.0, 7.0])
def test_the_label_contrast_and_its_gradient_are_their_closed_forms(margin):
    data, wrong = normal(40, scale=3.0), normal(40, seed=1, scale=3.0) + 1.0
    gap = (np.float64(data) - wrong) / margin
    value, gradients = jax.value_and_grad(losses.label_contrast, (0, 1))(jnp.asarray(data), jnp.asarray(wrong), margin)
    np.testing.assert_allclose(value, margin * np.log1p(np.exp(gap)).mean(), rtol=40 * FLOAT32)
    expected = 1 / (1 + np.exp(-gap)) / len(gap)
    # The rounding of a gap, in proportion to its size, is a relative one of its exponential
    np.testing.assert_allclose(gradients, [expected, -expected], rtol=4 * np.abs(gap).max() * FLOAT32)


def test_softplus_is_finite_where_the_exponential_overflows():
    gap = jnp.array([-500.0, 500.0])
    value, gradient = jax.value_and_grad(losses.softplus)(gap, jnp.zeros(2))
    assert value == 250.0
    np.testing.assert_array_equal(gradient, [0.0, 0.5])


def test_logsumexp_gradient_is_that_of_the_log_mean_exponential():
    data, samples = jnp.asarray(normal(40)), jnp.asarray(normal(40, seed=1, scale=3.0))

    def log_likelihood_bound(data, samples):
        return data.mean() + jnp.log(jnp.exp(-samples).mean())

    actual = jax.grad(losses.logsumexp(identity), (0, 1))(data, samples)
    expected = jax.grad(log_likelihood_bound, (0, 1))(data, samples)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=40 * FLOAT32 * np.abs(expected).max())


def test_logsumexp_weighs_samples_by_their_softmax():
    data, samples = normal(40), normal(40, seed=1, scale=30.0)
    value = losses.logsumexp(identity)(jnp.asarray(data), jnp.asarray(samples))
    expected = data.mean() - (softmax(-np.float64(samples)) * samples).sum()
    assert abs(value - expected) < 40 * FLOAT32 * np.abs(samples).max()


def test_logsumexp_of_shards_averages_to_that_of_the_whole_batch():
    data, samples = jnp.asarray(normal(4, 10)), jnp.asarray(normal(4, 10, seed=1, scale=3.0))
    share = jax.value_and_grad(losses.logsumexp(parallel.gather), (0, 1))
    values, gradients = jax.vmap(share, axis_name=parallel.AXIS)(data, samples)
    whole = jax.value_and_grad(losses.logsumexp(identity), (0, 1))
    value, expected = whole(data.ravel(), samples.ravel())
    assert abs(values.mean() - value) < 40 * FLOAT32 * np.abs(samples).max()
    for shards, together in zip(gradients, expected, strict=True):
        atol = 40 * FLOAT32 * np.abs(together).max()
        np.testing.assert_allclose(shards.ravel() / len(data), together, rtol=0, atol=atol)


@pytest.mark.parametrize("energy_l2", [0.1, 1.0, 7.0])
def test_sum_penalty_bounds_contrastive_divergence_by_minus_half_over_its_weight(energy_l2):
    objective = losses.regularised(losses.contrastive_divergence, energy_l2, losses.energy_l2_sum)
    bound, best = -0.5 / energy_l2, 0.5 / energy_l2  # completed squares: U(x+) = -1/(2λ), U(x-) = 1/(2λ)
    rounding = 8 * FLOAT32 * abs(bound)
    scales = np.logspace(-6, 6, 200, dtype=np.float32)
    around = scales[:, None] * normal(200, 2 * 8)
    values = [
        jax.vmap(lambda x, centre=centre: objective(x[:8] - centre, x[8:] + centre))(jnp.asarray(around))
        for centre in (0.0, best)
    ]
    assert np.min(values) >= bound - rounding
    attained = objective(jnp.full(8, -best, jnp.float32), jnp.full(8, best, jnp.float32))
    assert abs(attained - bound) <= rounding


def test_difference_penalty_bounds_nothing():
    objective = losses.regularised(losses.contrastive_divergence, 1.0, losses.energy_l2_difference)
    for bound in (1e1, 1e3, 1e6):
        assert objective(jnp.zeros(4), jnp.full(4, bound)) < -bound
