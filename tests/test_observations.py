import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax.models import observations
from ebm_jax.types import BadInput

FLOAT32 = float(np.finfo(np.float32).eps)
SHAPE = (2, 12, 8, 3)
OPERATORS = {
    "identity": (observations.identity, 1.0),
    "gray": (observations.gray, 1 / 3),
    "downsample": (observations.downsample(4), 1 / 16),
    "blur": (observations.blur(1.3), 1.0),
    "wide blur": (observations.blur(9.0), 1.0),
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_and_its_gradient_are_adjoint_and_its_largest_eigenvalue_is_the_stated_one(name):
    forward, stated = OPERATORS[name]
    x = random(*SHAPE)
    seen, adjoint = jax.vjp(jax.jit(forward), jnp.asarray(x))
    y = random(*seen.shape, seed=1)
    back = np.asarray(adjoint(jnp.asarray(y))[0], np.float64)
    scale = np.linalg.norm(seen) * np.linalg.norm(y)
    assert abs(np.vdot(np.asarray(seen, np.float64), y) - np.vdot(x, back)) < 10 * FLOAT32 * scale
    # All eigenvalues for one image: A maps the images with a single 1 to its columns.
    ones = np.eye(np.prod(SHAPE[1:]), dtype=np.float32).reshape(-1, *SHAPE[1:])
    matrix = np.asarray(forward(jnp.asarray(ones)), np.float64).reshape(len(ones), -1)
    assert abs(np.linalg.norm(matrix, 2) ** 2 - stated) < 1e-5 * stated


@pytest.mark.parametrize("width", [0.6, 1.5, 20.0])
def test_blur_keeps_constants_and_the_sum_of_each_channel(width):
    blurred = np.asarray(observations.blur(width)(jnp.full(SHAPE, 0.3)))
    np.testing.assert_allclose(blurred, 0.3, rtol=20 * FLOAT32)
    x = random(*SHAPE)
    sums = np.asarray(observations.blur(width)(jnp.asarray(x))).sum((1, 2))
    np.testing.assert_allclose(sums, x.sum((1, 2)), rtol=20 * FLOAT32)


def test_blur_is_scipys_gaussian_filter_with_mirrored_edges():
    from scipy.ndimage import gaussian_filter

    x = random(*SHAPE)
    expected = gaussian_filter(x.astype(np.float64), (0, 1.5, 1.5, 0), mode="reflect", truncate=4.0)
    np.testing.assert_allclose(observations.blur(1.5)(jnp.asarray(x)), expected, atol=10 * FLOAT32)


def test_a_blurred_point_has_the_variance_of_the_width_along_both_axes():
    point = np.zeros((1, 41, 51, 1), np.float32)
    point[0, 20, 25] = 1
    spread = np.asarray(observations.blur(2.0)(jnp.asarray(point)), np.float64)[0, :, :, 0]
    for axis, centre in ((0, 20), (1, 25)):
        places = np.arange(spread.shape[axis]) - centre
        variance = (spread.sum(1 - axis) * places**2).sum()
        assert abs(variance - 4.0) < 0.01  # cutting a Gaussian off at 4 σ loses a share of 0.0011


def test_downsampling_and_graying_are_means():
    x = random(*SHAPE)
    blocks = [[x[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((1, 2)) for j in range(2)] for i in range(3)]
    expected = np.array(blocks).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(observations.downsample(4)(jnp.asarray(x)), expected, rtol=10 * FLOAT32)
    np.testing.assert_allclose(observations.gray(jnp.asarray(x))[..., 0], x.mean(3), rtol=10 * FLOAT32)


def test_salt_and_pepper_strike_whole_pixels_of_the_stated_share_and_leave_the_others():
    shape, share = (50, 40, 40, 3), 0.3
    images = 0.25 + 0.5 * random(*shape)
    struck = np.asarray(observations.salt_and_pepper(jax.random.key(0), jnp.asarray(images), share))
    salt, pepper = (struck == 1).all(3), (struck == 0).all(3)
    np.testing.assert_array_equal(struck[~salt & ~pepper], images[~salt & ~pepper])
    assert (salt | pepper).sum() == (struck != images).any(3).sum()
    for kind in (salt, pepper):
        assert abs(kind.mean() - share / 2) < 5 * np.sqrt(share / 2 * (1 - share / 2) / kind.size)


def test_gaussian_noise_has_the_stated_deviation_beyond_the_box_too():
    noise = np.asarray(observations.gaussian_noise(jax.random.key(0), jnp.zeros((10, 50, 50, 1)), 0.2), np.float64)
    assert abs(noise.mean()) < 5 * 0.2 / np.sqrt(noise.size)
    assert abs(noise.std() - 0.2) < 5 * 0.2 / np.sqrt(2 * noise.size)


def test_gaussian_likelihood_is_that_of_the_stated_noise():
    from scipy import stats

    x, observed, weight = random(*SHAPE), random(2, 3, 2, 3, seed=1), 7.0
    likelihood = observations.gaussian_likelihood(observations.downsample(4), jnp.asarray(observed), weight)
    seen = np.asarray(observations.downsample(4)(jnp.asarray(x)))
    law = stats.norm(seen, weight**-0.5)
    expected = law.logpdf(seen).sum((1, 2, 3)) - law.logpdf(observed).sum((1, 2, 3))
    np.testing.assert_allclose(likelihood(jnp.asarray(x)), expected, rtol=1e-5)


def test_impulse_likelihood_is_quadratic_nearby_and_has_the_stated_pull_and_curvature():
    weight, width = 3.0, 0.1
    likelihood = observations.impulse_likelihood(jnp.zeros((1, 1, 1, 1)), weight, width)

    def along(d):
        return likelihood(jnp.full((1, 1, 1, 1), d))[0]

    distances = jnp.linspace(0, 1, 2001)
    pull = np.asarray(jax.jit(jax.vmap(jax.grad(along)))(distances))
    curvature = np.asarray(jax.jit(jax.vmap(jax.grad(jax.grad(along))))(distances))
    assert abs(pull.max() - 3**1.5 / 16 * weight * width) < 1e-5  # at width / sqrt(3)
    assert pull[-1] < 1e-3 * weight  # a Gaussian likelihood would pull with all of weight
    assert abs(curvature[0] - weight) < 1e-5
    assert abs(curvature.max() - weight) < 1e-5
    assert abs(curvature.min() + weight / 4) < 1e-4
    np.testing.assert_allclose(along(1e-3), weight / 2 * 1e-6, rtol=2e-4)


def test_impulse_likelihood_takes_a_pixel_with_all_its_channels_for_one():
    d = np.array([0.06, 0.0, 0.08], np.float32)  # |d| = 0.1 = width, where the quadratic is halved
    likelihood = observations.impulse_likelihood(jnp.zeros((2, 1, 1, 3)), 2.0, 0.1)
    np.testing.assert_allclose(likelihood(jnp.asarray(np.tile(d, (2, 1, 1, 1)))), 0.005, rtol=1e-5)


def test_impulses_drag_the_quadratic_answer_and_not_the_robust_one():
    """The prior holds all pixels to one value: the quadratic likelihood gives their mean, the robust one their mode."""
    observed = np.full((1, 10, 10, 1), 0.3, np.float32)
    observed[0, :3] = 1.0

    def answer(likelihood):
        def total(level):
            return likelihood(jnp.full(observed.shape, 1.0) * level)[0]

        return jax.jit(lambda: jax.lax.fori_loop(0, 300, lambda _, level: level - 0.01 * jax.grad(total)(level), 0.5))()

    gaussian = answer(observations.gaussian_likelihood(observations.identity, jnp.asarray(observed), 1.0))
    impulse = answer(observations.impulse_likelihood(jnp.asarray(observed), 1.0, 0.1))
    assert abs(gaussian - observed.mean()) < 1e-5
    assert abs(impulse - np.median(observed)) < 0.005


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: observations.blur(0.0), "a blur of 0.0 pixels; give a width above 0"),
        (lambda: observations.downsample(0), "factor of 0; give 1"),
        (lambda: observations.downsample(5)(jnp.zeros(SHAPE)), "factor 5 does not divide 12x8"),
        (lambda: observations.downsample(3)(jnp.zeros(SHAPE)), "factor 3 does not divide 12x8"),
        (
            lambda: observations.gaussian_likelihood(observations.gray, jnp.zeros(SHAPE), 1.0)(jnp.zeros(SHAPE)),
            r"\(2, 12, 8, 3\) was observed of images that give \(2, 12, 8, 1\)",
        ),
        (
            lambda: observations.impulse_likelihood(jnp.zeros((1, 12, 8, 3)), 1.0, 0.1)(jnp.zeros(SHAPE)),
            r"\(1, 12, 8, 3\) was observed of images \(2, 12, 8, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, line):
    with pytest.raises(BadInput, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
