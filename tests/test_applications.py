from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax import applications
from ebm_jax.models import observations
from ebm_jax.sampling.kernel import alternating, run, run_stages, trace_stages, unbounded, unit_box
from ebm_jax.sampling.langevin import langevin
from ebm_jax.sampling.mala import mala
from ebm_jax.types import BadInput

FLOAT32 = float(np.finfo(np.float32).eps)
CHAINS = 20_000
PRECISION = np.array([[3.0, -1.0, -1.0], [-1.0, 2.0, -0.5], [-1.0, -0.5, 2.5]], np.float32)
MEAN = np.array([0.5, -0.2, 0.1], np.float32)


def gaussian(mean, precision):
    """U of N(mean, precision⁻¹) over all values of an event."""

    def energy_fn(x):
        d = x.reshape(len(x), -1) - jnp.asarray(mean, jnp.float32).reshape(1, -1)
        return 0.5 * (d * (d @ jnp.asarray(precision, jnp.float32))).sum(1)

    return energy_fn


def assert_law(x, mean, covariance):
    """Independent chains [n, d] have the moments of the normal law, within five standard errors."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    variances = np.diag(covariance)
    assert (np.abs(x.mean(0) - mean) < 5 * np.sqrt(variances / len(x))).all()
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(x))
    assert (np.abs(np.cov(x.T).reshape(covariance.shape) - covariance) < 5 * error).all()


def test_inpainting_a_gaussian_field_draws_from_its_conditional_law():
    known, given = np.array([False, True, False]), np.array([1.7, -0.9, 0.4], np.float32)
    free = ~known
    conditional = np.linalg.inv(PRECISION[np.ix_(free, free)])
    expected = MEAN[free] - conditional @ PRECISION[np.ix_(free, known)] @ (given - MEAN)[known]
    images = jnp.asarray(np.where(known, given, np.nan) * np.ones((CHAINS, 1), np.float32))  # unknown values are NaN
    stages = ((mala(0.15, project=unbounded), 60),)
    chain = jax.jit(
        lambda key: applications.inpaint(key, images, jnp.asarray(known), gaussian(MEAN, PRECISION), stages)
    )
    x = np.asarray(chain(jax.random.key(0)))
    np.testing.assert_array_equal(x[:, known], np.asarray(images)[:, known])
    assert_law(x[:, free], expected, conditional)


IMAGES = np.random.default_rng(0).uniform(-0.5, 1.5, (4, 8, 8, 1)).clip(0, 1).astype(np.float32)
KNOWN = np.random.default_rng(1).uniform(size=IMAGES.shape) < 0.5


def painted(kernel, known, num_steps):
    energy_fn = gaussian(np.full(64, 0.5), 0.1 * np.eye(64))
    paint = partial(applications.inpaint, energy_fn=energy_fn, stages=((kernel, num_steps),))
    return np.asarray(jax.jit(paint)(jax.random.key(0), jnp.asarray(IMAGES), jnp.asarray(known)))


@pytest.mark.parametrize(
    "kernel", [langevin(10.0, 0.005, grad_clip=0.01, project=unit_box), mala(1e-4, project=unit_box)]
)
def test_known_pixels_come_back_bit_by_bit_and_the_others_move_in_the_box(kernel):
    """Half of the known values are 0 or 1: there a Metropolis test on the whole box would reject for ever."""
    start, x = painted(kernel, KNOWN, 0), painted(kernel, KNOWN, 10)
    np.testing.assert_array_equal(x[KNOWN], IMAGES[KNOWN])
    assert (x != start)[~KNOWN].mean() > 0.5
    assert x.min() >= 0
    assert x.max() <= 1
    fresh = start[~KNOWN]  # no steps: U[0, 1]
    assert abs(fresh.mean() - 0.5) < 5 * np.sqrt(1 / 12 / fresh.size)
    assert abs(fresh.var() - 1 / 12) < 5 * np.sqrt((1 / 80 - 1 / 144) / fresh.size)


def test_one_mask_is_that_of_all_images():
    kernel = langevin(0.01, project=unit_box)
    np.testing.assert_array_equal(painted(kernel, KNOWN[0], 2), painted(kernel, np.repeat(KNOWN[:1], 4, 0), 2))


def test_restoring_under_gaussian_prior_and_noise_draws_from_the_posterior():
    forward, weight = observations.downsample(2), 4.0
    precision = np.eye(4) * 2 - 0.25
    mean = np.array([0.1, 0.9, 0.3, 0.5])
    average = np.full((1, 4), 0.25)
    posterior = np.linalg.inv(precision + weight * average.T @ average)
    expected = posterior @ (precision @ mean + weight * average[0] * 1.5)
    likelihood = observations.gaussian_likelihood(forward, jnp.full((CHAINS, 1, 1, 1), 1.5), weight)
    stages = ((mala(0.2, project=unbounded), 60),)
    start = jnp.zeros((CHAINS, 2, 2, 1))
    chain = jax.jit(lambda key: applications.restore(key, start, gaussian(mean, precision), likelihood, stages))
    assert_law(chain(jax.random.key(0)), expected, posterior)


@pytest.mark.parametrize("forward", [observations.downsample(2), observations.gray, observations.blur(0.8)])
def test_a_restored_image_is_within_the_likelihoods_width_of_what_was_observed(forward):
    truth = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype(np.float32)
    observed, weight, strength = forward(jnp.asarray(truth)), 1e4, 0.5
    likelihood = observations.gaussian_likelihood(forward, observed, weight)
    stages = (
        (langevin(strength / weight, project=unit_box), 400),
        (langevin(strength / weight, temperature=0.0, project=unit_box), 200),
    )
    prior = gaussian(np.full(48, 0.5), np.eye(48))
    restore = partial(applications.restore, energy_fn=prior, likelihood=likelihood, stages=stages)
    x = jax.jit(restore)(jax.random.key(0), jnp.full(truth.shape, 0.5))
    width = weight**-0.5
    assert np.abs(np.asarray(forward(x) - observed)).mean() < width
    assert np.abs(np.asarray(forward(jnp.full(truth.shape, 0.5)) - observed)).mean() > 3 * width


def class_energy(labels):
    """Classes at the corners of a square."""
    corners = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return lambda x: 20.0 * jnp.square(x - corners[labels]).sum(1)


def test_a_transition_ends_at_the_class_asked_for():
    images, labels = jnp.zeros((4, 2)) + 0.1, jnp.arange(4)
    stages = ((langevin(0.01, temperature=0.0, project=unit_box), 100),)
    x = applications.transition(jax.random.key(0), images, labels, class_energy, stages)
    np.testing.assert_allclose(x, [[0, 0], [0, 1], [1, 0], [1, 1]], atol=1e-5)


PRECISIONS, CENTRES = np.array([2.0, 6.0, 1.0]), np.array([-1.0, 1.0, 3.0])
NORMALS = [gaussian(np.array([mean]), np.array([[p]])) for mean, p in zip(CENTRES, PRECISIONS, strict=True)]


def test_composition_is_the_weighted_product_of_the_laws():
    weights = [1.0, 0.5, -0.5]
    stages = ((mala(0.2, project=unbounded), 60),)
    compose = jax.jit(lambda key: applications.compose(key, jnp.zeros((CHAINS, 1)), NORMALS, stages, weights))
    shares = PRECISIONS * weights
    assert_law(compose(jax.random.key(0)), (shares * CENTRES).sum() / shares.sum(), np.array([[1 / shares.sum()]]))


def test_composition_without_weights_is_the_product():
    stages = ((langevin(0.05, temperature=0.0, project=unbounded), 50),)
    compose = jax.jit(lambda key: applications.compose(key, jnp.zeros((1, 1)), NORMALS, stages))
    np.testing.assert_allclose(compose(jax.random.key(0)), (PRECISIONS * CENTRES).sum() / PRECISIONS.sum(), rtol=1e-5)


@pytest.mark.parametrize("kernel", [langevin, pytest.param(mala, marks=pytest.mark.whole)])
def test_alternating_steps_sample_the_mean_of_the_energies_to_first_order_in_the_step(kernel):
    precisions, means, step_size = np.array([2.0, 6.0]), np.array([-1.0, 1.0]), 0.01
    energies = [gaussian(np.array([mean]), np.array([[p]])) for mean, p in zip(means, precisions, strict=True)]
    mean, precision = (precisions * means).sum() / precisions.sum(), precisions.mean()
    turns = alternating(kernel(step_size, project=unbounded), energies)

    def unused(x):
        return jnp.full(len(x), jnp.nan)

    x, info = jax.jit(lambda key: run(turns, key, jnp.zeros((CHAINS, 1)), unused, 300))(jax.random.key(0))
    x = np.asarray(x, np.float64)
    bias = 2 * step_size * precisions.max() / precision**0.5  # the last turn pulls towards its own centre
    assert abs(x.mean() - mean) < bias + 5 / np.sqrt(precision * CHAINS)
    assert abs(x.var() * precision - 1) < 2 * step_size * precisions.max() + 5 * np.sqrt(2 / CHAINS)
    start = [float(energy(jnp.zeros((1, 1)))[0]) for energy in energies]
    if kernel is langevin:
        assert abs(info.energy[0, 0] - start[0]) < 1e-6  # the first energy has the first turn


def test_turns_follow_the_order_of_the_energies():
    energies = [gaussian(np.array([centre]), np.eye(1)) for centre in (1.0, 2.0, 3.0)]
    turns = alternating(langevin(1.0, temperature=0.0, project=unbounded), energies)  # each step ends at the centre
    path = jax.jit(lambda key, x: trace_stages([(turns, 7)], key, x, energies[0], 1))(
        jax.random.key(0), jnp.zeros((1, 1))
    )
    np.testing.assert_array_equal(path[:, 0, 0], [1, 2, 3, 1, 2, 3, 1])


def test_a_turn_of_a_metropolis_kernel_uses_nothing_of_the_energy_before():
    """Both turns have the same law, with energies 100 apart: everything is as without turns."""
    one, kernel = gaussian(np.zeros(1), np.eye(1)), mala(0.1, project=unbounded)
    turns = alternating(kernel, [one, lambda x: one(x) + 100.0])
    acceptance = [
        jax.jit(lambda key, kernel=kernel: run(kernel, key, jnp.zeros((500, 1)), one, 20)[1].acceptance)(
            jax.random.key(0)
        )
        for kernel in (turns, kernel)
    ]
    np.testing.assert_allclose(*acceptance, atol=1e-3)  # 100 + U loses binary digits of U


def test_classes_follow_bayes_rule():
    from scipy import stats

    means, precision = np.array([-1.0, 0.5, 2.0]), 1.5
    x = np.linspace(-3, 3, 41).astype(np.float32)[:, None]

    def class_energies(images):
        return 0.5 * precision * jnp.square(images - jnp.asarray(means, jnp.float32)[None])

    labels, log_probabilities = applications.classify(class_energies, jnp.asarray(x))
    likelihood = stats.norm(means, precision**-0.5).pdf(x)
    posterior = likelihood / likelihood.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_probabilities), posterior, atol=20 * FLOAT32)
    np.testing.assert_array_equal(labels, posterior.argmax(1))
    assert jnp.issubdtype(labels.dtype, jnp.integer)


in_the_box = partial(langevin, project=unit_box)
STAGES = ((in_the_box(0.02), 5), (in_the_box(0.01, 0.1), 4), (in_the_box(0.01, temperature=0.0), 3))


@cache
def filmed(every):
    film = partial(applications.film, energy_fn=gaussian(MEAN, PRECISION), stages=STAGES, every=every)
    return np.asarray(jax.jit(film)(jax.random.key(3), jnp.full((2, 3), 0.5)))


@pytest.mark.parametrize("every", [4, 50])
def test_a_film_is_the_chain_itself_from_its_start_to_its_end(every):
    frames, each = filmed(every), filmed(1)
    chain = jax.jit(lambda key, x: run_stages(STAGES, key, x, gaussian(MEAN, PRECISION))[0])
    end = chain(jax.random.key(3), jnp.full((2, 3), 0.5))
    np.testing.assert_array_equal(frames[0], 0.5)
    np.testing.assert_allclose(frames[-1], end, rtol=4 * FLOAT32)
    assert len(np.unique(each, axis=0)) == 13
    np.testing.assert_allclose(frames, each[[*range(0, 12, every), 12]], rtol=4 * FLOAT32)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda inpaint: inpaint(known=jnp.ones((2, 4), bool)), r"has the shape \(2, 4\); give \(2, 3\).*or \(3,\)"),
        (lambda inpaint: inpaint(known=jnp.ones((1, 3), bool)), r"has the shape \(1, 3\)"),
        (lambda inpaint: inpaint(known=jnp.ones((2, 3))), "is of float32; give bool"),
        (
            lambda _: applications.compose(jax.random.key(0), jnp.zeros((1, 1)), [jnp.sum], (), [1.0, 2.0]),
            "2 weights for 1 energies; give one for each",
        ),
        (
            lambda _: applications.film(jax.random.key(0), jnp.zeros((1, 1)), jnp.sum, (), 0),
            "every 0 is out of range; give a whole number, 1 or more",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, line):
    def inpaint(known):
        return applications.inpaint(jax.random.key(0), jnp.zeros((2, 3)), known, gaussian(MEAN, PRECISION), ())

    with pytest.raises(BadInput, match=line) as caught:
        call(inpaint)
    assert "\n" not in str(caught.value)
