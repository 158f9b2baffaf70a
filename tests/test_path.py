"""A measurement leads the descent of an energy that orders images by their noise, on two images with a known field."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from scipy.ndimage import median_filter

from ebm_jax import applications, chains
from ebm_jax.methods import matching
from ebm_jax.models import observations
from ebm_jax.sampling import base, kernel
from ebm_jax.tasks import restore

DECAY = {"flat_until": 0.8, "start": 1.0, "strength": 4.0}
PAIR = np.zeros((2, 2, 2, 1), np.float32)  # two images that differ above and below alike
PAIR[0], PAIR[1] = 0.2, 0.8
TIMES = (np.arange(200) + 0.5) / 200
CHAINS = 64


def optimum(x):
    """E[c(γ) (ε - x) | x_γ] / σ² where the data are PAIR and ε ~ N(½, ¼): by summing over γ and both images."""
    lengths = jnp.asarray(4 * np.minimum(1.0, (1 - TIMES) / 0.2), jnp.float32).reshape(-1, 1, 1, 1, 1, 1)
    times = jnp.asarray(TIMES, jnp.float32).reshape(-1, 1, 1, 1, 1, 1)  # [time, image, chain, h, w, c]
    images = jnp.asarray(PAIR)[None, :, None]
    noise = (x[None, None] - times * images) / (1 - times)
    logits = -jnp.square((noise - 0.5) / 0.5).sum((3, 4, 5)) / 2 - 4 * jnp.log(1 - times[..., 0, 0, 0])
    weights = jax.nn.softmax(logits.reshape(-1, len(x)), axis=0).reshape(logits.shape)
    return (weights[..., None, None, None] * lengths * (noise - images)).sum((0, 1)) / 0.5**2


@jax.custom_jvp
def energy_fn(x):
    return jnp.zeros(len(x))


@energy_fn.defjvp
def _(primals, tangents):
    return jnp.zeros(len(primals[0])), (optimum(primals[0]) * tangents[0]).sum((1, 2, 3))


def make_path(share=0.0):
    config = importlib.import_module("configs.digits").get_config().unlock()
    config.data.shape = (2, 2, 1)
    return chains.make_path(changed(config, sample__num_steps=1, sample__quiet_steps=1), share)


def first_of_pair(x):
    """Whether each chain ended nearer to the first image, and that nearly all ended at one of both."""
    distances = np.abs(np.asarray(x)[:, None] - PAIR[None]).max((2, 3, 4))
    assert (distances.min(1) < 0.1).mean() > 0.8
    return distances[:, 0] < distances[:, 1]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seen", ["a row", "the mean"])
def test_a_measurement_of_one_of_two_images_brings_every_chain_to_it(seen, which):
    images, start = jnp.asarray(PAIR[[which] * CHAINS]), jnp.full((CHAINS, 2, 2, 1), 0.5)
    if seen == "a row":
        known = jnp.asarray([[True, True], [False, False]])[:, :, None]
        make = partial(applications.inpaint, images=images, known=known, energy_fn=energy_fn, stages=make_path())
    else:
        make = partial(
            applications.follow,
            start=start,
            measured=images.mean((1, 2, 3), keepdims=True),
            forward=lambda x: x.mean((1, 2, 3), keepdims=True),
            squared_norm=0.25,
            energy_fn=energy_fn,
            path=make_path(),
        )
    assert (first_of_pair(jax.jit(make)(jax.random.key(0))) == (which == 0)).all()


def test_without_a_measurement_half_of_the_chains_go_to_each_of_two_images():
    path = make_path()
    noise = path.base.sample(jax.random.key(0), 4 * CHAINS)
    make = partial(applications.generate, energy_fn=energy_fn, stages=path.stages_of(lambda share: kernel.unbounded))
    share = first_of_pair(jax.jit(make)(jax.random.key(1), noise)).mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(4 * CHAINS)


def test_at_every_step_the_measurement_is_that_of_the_image_among_its_noise():
    """With an energy that moves nothing, mask and block means hold exactly what an image of this share shows."""
    images, start = jnp.asarray(PAIR[:1]), jnp.full((1, 2, 2, 1), 0.3)
    shares = matching.shares(0.5, 3, 0.004, **DECAY)
    seen = []

    def stages_of(project_at):
        seen.extend(project_at(float(share)) for share in shares)
        return ((kernel.projection(project_at(1.0)), 1),)

    path = applications.Path(base.centred_normal((2, 2, 1)), 0.5, stages_of)
    forward = observations.downsample(2)
    x = applications.follow(
        jax.random.key(0), start, forward(images), forward, 0.25, lambda x: (0.0 * x).sum((1, 2, 3)), path
    )
    np.testing.assert_allclose(forward(x), 0.2, rtol=1e-6)
    noise = path.base.sample(jax.random.split(jax.random.key(0))[0], 1)
    for share, project in zip(shares, seen, strict=True):
        aim = share * 0.2 + (1 - share) * noise.mean()
        np.testing.assert_allclose(forward(project(start)), aim, rtol=1e-5)


def test_the_share_of_data_follows_its_differential_equation():
    """γ' = 4 up to 0.8, then γ' = 20 (1 - γ), in the time of the steps."""
    shares = matching.shares(0.0, 400, 0.001, **DECAY)
    np.testing.assert_allclose(shares[:200], 0.004 * np.arange(1, 201), rtol=1e-5)
    np.testing.assert_allclose(1 - shares[200:], 0.2 * 0.98 ** np.arange(1, 201), rtol=1e-3)
    np.testing.assert_allclose(matching.shares(0.9, 1, 0.001, **DECAY), [0.902], rtol=1e-6)


@pytest.mark.parametrize("first", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [1, 3, 100])
def test_a_descent_of_any_number_of_steps_ends_at_the_share_asked_for(first, num_steps):
    step = matching.step_between(first, 0.997, num_steps, **DECAY)
    np.testing.assert_allclose(matching.shares(first, num_steps, step, **DECAY)[-1], 0.997, rtol=1e-6)


def displacement(way, steps, share):
    """How far so many steps of descent move an image in a constant field of gradient 1 a pixel, before the box."""
    numbers = {"descent_steps": steps, "num_steps": 1}
    if way == "the kernel":
        numbers = {"descent_steps": 0, "num_steps": steps + 1}
    numbers |= {"quiet_steps": 0 if way == "before the chain" else 1, "last_share": share}  # quiet steps join a descent
    keys = {f"sample__{name}": value for name, value in numbers.items()}
    config = changed(importlib.import_module("configs.digits").get_config().unlock(), **keys)
    config.chain.kernel = "descent" if way == "the kernel" else "langevin"
    made = chains.make_path(config, 0.0).stages_of(None) if way == "a path" else chains.make_stages(config)
    stages = [stage for stage in made if stage[1] > 1]
    x, _ = kernel.run_stages(stages, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), lambda x: x.sum((1, 2, 3)))
    return -float(x.mean())


@pytest.mark.parametrize("way", ["before the chain", "the kernel", "a path"])
def test_twice_the_descent_goes_as_far_and_without_a_last_share_twice_as_far(way):
    """In units of σ² = ¼ the path takes the time 0.8 / 4 up to γ = 0.8, then ln(0.2 / 0.003) / 20 up to 0.997."""
    expected = 0.25 * (0.8 / 4 + np.log(0.2 / 0.003) / 20)
    assert [displacement(way, steps, 0.997) for steps in (100, 200, 2000)] == [
        pytest.approx(expected, rel=tolerance) for tolerance in (0.03, 0.015, 0.002)
    ]
    assert displacement(way, 200, 0.0) == pytest.approx(0.2, rel=1e-5) == pytest.approx(2 * displacement(way, 100, 0.0))


def test_medians_are_those_of_scipy():
    images = np.random.default_rng(0).random((3, 7, 6, 2)).astype(np.float32)
    expected = median_filter(images, (1, 3, 3, 1), mode="mirror")
    np.testing.assert_array_equal(observations.medians(jnp.asarray(images)), expected)


def test_salt_and_pepper_is_filled_in_and_what_cannot_be_damage_stays():
    images = jnp.asarray(np.full((1, 8, 8, 1), 0.2, np.float32)).at[0, 4, 4].set(0.9)
    observed = images.at[0, 1, 1].set(1.0).at[0, 5, 2].set(0.0)

    def filled(key, start, observed, energy_fn, path):
        return restore._in_doubt_along(key, start, observed, energy_fn, path)

    toward = lambda x: 20.0 * jnp.square(x - 0.2).sum((1, 2, 3)) / 2 / 0.25  # noqa: E731  the field of one image of 0.2
    x = np.asarray(filled(jax.random.key(0), observed, observed, toward, path_of((8, 8, 1))))
    kept = np.ones((8, 8), bool)
    kept[1, 1] = False
    kept[5, 2] = False
    np.testing.assert_array_equal(x[0, kept], np.asarray(images)[0, kept])
    np.testing.assert_allclose(x[0, ~kept], 0.2, atol=0.02)


def path_of(shape):
    config = importlib.import_module("configs.digits").get_config().unlock()
    config.data.shape = shape
    return chains.make_path(config, 0.85)


def test_among_noise_an_image_has_the_share_of_the_path():
    path = make_path(0.4)
    images = jnp.asarray(PAIR[[0] * 2000])
    x = np.asarray(applications.among_noise(jax.random.key(3), images, path), np.float64)
    assert abs(x.mean() - (0.4 * 0.2 + 0.6 * 0.5)) < 5 * 0.3 / np.sqrt(x.size)
    assert abs(x.std() - 0.6 * 0.5) < 5 * 0.3 / np.sqrt(2 * x.size)


def test_only_an_energy_that_orders_images_by_noise_has_a_path():
    config = importlib.import_module("configs.digits_contrastive").get_config()
    assert chains.make_path(config, 0.0) is None


@pytest.mark.whole
def test_noise_of_a_known_deviation_is_where_the_path_passes():
    """Observed with noise of deviation 0.25, an image has the share 2/3 of data, brought to the path's centre."""
    images = jnp.asarray(PAIR[[1] * CHAINS])
    observed = images + 0.25 * jax.random.normal(jax.random.key(4), images.shape)
    x = restore._from_noisy(0.25, jax.random.key(5), observed, observed, energy_fn, make_path())
    assert first_of_pair(x).mean() < 0.1
    seen = []
    path = make_path()._replace(stages_of=lambda project_at: ((kernel.projection(lambda x: seen.append(x) or x), 1),))
    with jax.disable_jit():
        restore._from_noisy(0.25, jax.random.key(5), observed, observed, energy_fn, path)
    np.testing.assert_allclose(seen[0], 0.5 + (observed - 0.5) * 2 / 3, rtol=1e-6)
