"""Denoising score matching on a mixture of Gaussians: its smoothed law has a closed form; and a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, changed
from PIL import Image
from test_step import over_devices

import run
from configs import digits_contrastive as digits
from ebm_jax import checks, opening, program, schema, train
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.methods.denoising import denoising, levels
from ebm_jax.methods.method import Model
from ebm_jax.models import energy, networks
from ebm_jax.report import reporter
from ebm_jax.sampling.base import uniform
from ebm_jax.storage import exported
from ebm_jax.storage.fingerprint import named_leaves
from ebm_jax.storage.workdir import read_config
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.types import BadInput, Batch

MEANS, WEIGHTS, STD, SIGMA = np.array([[0.3, 0.35], [0.7, 0.6]]), np.array([0.3, 0.7]), 0.07, 0.1
SPREAD = np.hypot(STD, SIGMA)  # of each mode once it is smoothed
SIDE = np.linspace(-0.7, 1.7, 601)
GRID = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), -1).reshape(-1, 2)
METHOD = denoising(uniform((2,)), sigma=SIGMA, least=0.0, most=0.0, patience=5)


def smoothed(params, x, labels=None, dropout_key=None):
    """minus log of the mixture of N(mean, spread² I), up to a constant; shifted, tilted and sharpened by `params`."""
    squares = jnp.square(x[:, None] - jnp.asarray(MEANS, jnp.float32)[None]).sum(-1)
    logs = jnp.asarray(np.log(WEIGHTS), jnp.float32)[None] - squares / (2 * (params["spread"] * SPREAD) ** 2)
    return -params["sharpness"] * jax.nn.logsumexp(logs, axis=1) + (x * params["tilt"][None]).sum(1) + params["shift"]


def optimum():
    return {"spread": jnp.ones(()), "sharpness": jnp.ones(()), "tilt": jnp.zeros(2), "shift": jnp.zeros(())}


def density_and_score(points):
    """The smoothed law's density on points [n, 2], float64, and ∇ log of it."""
    away = points[:, None] - MEANS
    parts = WEIGHTS * np.exp(-np.square(away).sum(-1) / (2 * SPREAD**2)) / (2 * np.pi * SPREAD**2)
    density = parts.sum(-1)
    return density, -(parts[:, :, None] * away).sum(1) / SPREAD**2 / np.maximum(density, 1e-300)[:, None]


def least_loss():
    """½ (d - σ² E |∇ log q|²) by summing over a grid far beyond the modes."""
    density, score = density_and_score(GRID)
    assert abs(density.sum() * (SIDE[1] - SIDE[0]) ** 2 - 1) < 1e-6
    return 1.0 - 0.5 * SIGMA**2 * (density * np.square(score).sum(1)).sum() * (SIDE[1] - SIDE[0]) ** 2


def points(rng, n):
    return (MEANS[rng.choice(2, n, p=WEIGHTS)] + STD * rng.normal(size=(n, 2))).astype(np.float32)


@jax.jit
def losses(key, params, batch):
    """[chunks] of the loss, and its gradients."""

    def one(key, images):
        def loss(params):
            return METHOD.loss(key, Model(smoothed, params), Batch(images, jnp.zeros(len(images), jnp.int32)), ())[0]

        return jax.value_and_grad(loss)(params)

    return jax.lax.map(lambda chunk: one(*chunk), (jax.random.split(key, len(batch)), batch))


def measured(params):
    chunks = jnp.asarray(points(np.random.default_rng(0), 400_000)).reshape(100, -1, 2)
    return jax.device_get(losses(jax.random.key(1), params, chunks))


def test_at_the_smoothed_law_the_loss_is_its_least_value_and_its_gradient_is_zero():
    values, gradients = measured(optimum())
    assert abs(values.mean() - least_loss()) < 5 * values.std() / 10
    for name, gradient in gradients.items():
        assert (np.abs(gradient.mean(0)) <= 5 * gradient.std(0) / 10).all(), name
    assert (gradients["shift"] == 0).all(), "a constant has no score"


@pytest.mark.parametrize(
    "other",
    [
        {"spread": 0.8},
        {"spread": STD / SPREAD},
        {"sharpness": 1.2},
        {"sharpness": -1.0},
        {"tilt": jnp.array([2.0, 0.0])},
    ],
    ids=["narrow", "not smoothed", "sharp", "upside down", "tilted"],
)
def test_every_other_energy_has_a_larger_loss_under_the_same_noise(other):
    best, worse = (measured(optimum() | changes)[0] for changes in ({}, jax.tree.map(jnp.asarray, other)))
    excess = worse - best
    assert excess.mean() > 5 * excess.std() / 10


def test_the_excess_over_the_least_loss_is_half_the_scaled_square_distance_of_the_scores():
    tilt = np.array([2.0, -1.0], np.float32)
    excess = measured(optimum() | {"tilt": jnp.asarray(tilt)})[0] - measured(optimum())[0]
    expected = 0.5 * SIGMA**2 * np.square(tilt).sum()
    assert abs(excess.mean() - expected) < 5 * excess.std() / 10


def test_of_uint8_images_it_takes_the_pixels_in_the_unit_box_and_sums_over_them():
    images = jnp.full((4096, 3, 2, 1), 77, jnp.uint8)
    batch = Batch(images, jnp.zeros(4096, jnp.int32))

    def bowl(params, x, labels=None, dropout_key=None):
        return params["a"] / (2 * SIGMA**2) * jnp.square(x - 77.5 / 256).sum((1, 2, 3))

    for sharpness, error in ((0.0, 1.0), (0.5, 0.25)):  # σ∇U - ε = (a - 1) ε, but for the 1/256 of a pixel's bin
        model = Model(bowl, {"a": jnp.asarray(sharpness)})
        value, (memory, metrics) = jax.jit(lambda model=model: METHOD.loss(jax.random.key(0), model, batch, ()))()
        assert memory == ()
        standard_error = error * np.sqrt(2 / images.size)
        assert abs(metrics["denoising_error"] - error) < 5 * standard_error + (sharpness / 256 / SIGMA) ** 2
        np.testing.assert_allclose(value, 3.0 * metrics["denoising_error"], rtol=1e-5)
        np.testing.assert_allclose(metrics["scaled_score"], sharpness, atol=5 * standard_error + 1e-3)


@pytest.mark.parametrize("stiffness", [0.0, 3.0, 40.0])
def test_over_several_levels_a_quadratic_energy_has_the_loss_of_the_closed_form(stiffness):
    n, least, most = 64, 0.05, 0.8
    method = denoising(uniform((1,)), sigma=SIGMA, least=least, most=most, patience=5)

    def bowl(params, x, labels=None, dropout_key=None):
        return 0.5 * stiffness * jnp.square(x - 0.5).sum(1)

    def one(key):
        key_x, key_loss = jax.random.split(key)
        x = 0.5 + STD * jax.random.normal(key_x, (n, 1))
        return method.loss(key_loss, Model(bowl, {}), Batch(x, jnp.zeros(n, jnp.int32)), ())[0]

    found = np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(0), 4000)), np.float64)
    level = np.geomspace(least, most, n)
    gain = (
        SIGMA**2 / level * stiffness
    )  # of x + σε - m, of which the variance is s² + σ² and the covariance with ε is σ
    expected = 0.5 * (1.0 - 2.0 * gain * level + gain**2 * (STD**2 + level**2)).mean()
    assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(len(found))


def test_levels_are_geometric_from_the_least_to_the_most_and_one_image_has_their_mean():
    np.testing.assert_allclose(levels(3, 0.1, 0.9), [0.1, 0.3, 0.9], rtol=1e-6)
    np.testing.assert_allclose(levels(1, 0.1, 0.9), [0.3], rtol=1e-6)
    np.testing.assert_array_equal(levels(4, 0.2, 0.2), np.full(4, 0.2, np.float32))


def test_levels_in_the_wrong_order_are_refused():
    for changes in ({"least": 0.5, "most": 0.2}, {"most": 0.05}):
        values = {"method.name": "denoising"} | {f"method.denoising.{key}": value for key, value in changes.items()}
        with pytest.raises(BadInput, match=r"method.denoising.least 0.\d is above method.denoising.most 0"):
            checks.check(changed(digits.get_config(), **values), 1)


@pytest.mark.whole
def test_a_short_training_of_a_small_network_comes_near_the_score_of_the_smoothed_law():
    network = networks.Mlp(width=32, num_classes=1, spectral_norm=False)
    apply, rng = energy.from_module(network), np.random.default_rng(0)
    params = network.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    optimizer = clipped_adam(5e-3, 0.9, 0.999, clip_offset=np.inf)
    mesh, step, state = over_devices(METHOD, optimizer, (), apply=apply, params=params, ema_decay=0.98)
    for _ in range(400):
        batch = Batch(jnp.asarray(points(rng, 512)), jnp.zeros(512, jnp.int32))
        state, metrics = step(state, parallel.place_batch(mesh, batch))
    grid = GRID[(np.abs(GRID - 0.5) <= 0.5).all(1)]
    density, score = density_and_score(grid)
    learnt = -jax.grad(lambda x: apply(state.ema, x).sum())(jnp.asarray(grid, jnp.float32))
    missed = (density * np.square(learnt - score).sum(1)).sum() / (density * np.square(score).sum(1)).sum()
    assert missed < 0.05, "of the score's mean square; a Gaussian of the right moments misses more"
    assert gaussian_misses(grid) > 0.1
    assert abs(metrics["loss"] - least_loss()) < 0.2


def gaussian_misses(grid):
    """The share of the score that a Gaussian with the law's mean and covariance misses."""
    density, score = density_and_score(grid)
    mean = WEIGHTS @ MEANS
    covariance = SPREAD**2 * np.eye(2) + (MEANS - mean).T @ (WEIGHTS[:, None] * (MEANS - mean))
    other = -(grid - mean) @ np.linalg.inv(covariance)
    return (density * np.square(other - score).sum(1)).sum() / (density * np.square(score).sum(1)).sum()


def test_pictures_of_a_method_without_a_replay_buffer_are_of_fresh_chains_alone(tmp_path):
    quick = {"method__name": "denoising", "model__width": 4, "sample__num_steps": 2, "sample__quiet_steps": 1}
    config = changed(schema.dry_run(digits.get_config()), **quick)
    mesh = parallel.device_mesh(jax.devices()[:1])
    with reporter.Reporter(tmp_path, 0, 7) as watcher:
        with sources.open_data(config, pytest.fail) as data:
            draw = train._picture_maker(config, mesh, "run", watcher, data.record)
        draw(7, program.make_state(config, mesh))
    (path,) = (tmp_path / "images").iterdir()
    assert path.name == "chains_000007.png"
    assert np.ptp(np.asarray(Image.open(path))) > 100, "noise after two steps, from dark to bright"


RUN = {"method.name": "denoising", "chain.kernel": "langevin", "chain.langevin.tied": True, "model.width": 4}
RUN |= {"train.batch_size": 16, "buffer.capacity": 16, "checkpoint.every": 2, "log.every": 1, "log.images_every": 0}
RUN |= {"sample.num_steps": 3, "sample.num_images": 16}


def command(workdir, mode="train", **values):
    values = {key: value for key, value in RUN.items() if mode == "train"} | values
    words = [f"--config.{key.replace('__', '.')}={value}" for key, value in values.items()]
    return ["run.py", f"--config={ROOT / 'configs' / 'density2d.py'}", f"--workdir={workdir}", f"--mode={mode}", *words]


def rows(workdir):
    """The metrics of each step but for the clock's."""
    found = [json.loads(line) for line in (workdir / reporter.METRICS).read_text().splitlines()]
    return [{name: row[name] for name in row.keys() - {"seconds", "steps_per_second"}} for row in found]


def bits(workdir):
    """The step of the newest checkpoint, and all arrays of its state."""
    found = opening.restore(workdir, program.abstract_state(read_config(workdir), parallel.device_mesh()))
    state = found.state._replace(key=jax.random.key_data(found.state.key))
    return found.step, {path: np.asarray(leaf) for path, leaf in named_leaves(state).items()}


@pytest.mark.whole
def test_a_run_trains_goes_on_bit_for_bit_samples_and_is_exported_without_a_replay_buffer(tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    for workdir, stops in ((once, (4,)), (twice, (2, 4))):
        for stop in stops:
            assert run.main(command(workdir, train__num_steps=stop)) == 0
    (step, whole), (last, resumed) = bits(once), bits(twice)
    assert step == last == 4
    assert not [path for path in whole if path.startswith("memory")], "there is no replay buffer"
    for path, leaf in whole.items():
        np.testing.assert_array_equal(resumed[path], leaf, err_msg=path)
    assert rows(once) == rows(twice)
    for row in rows(once):  # of two coordinates: a sum over them is twice the mean, and the loss is half of that
        assert row["loss"] == pytest.approx(row["denoising_error"], rel=1e-6)
    assert len({row["loss"] for row in rows(once)}) == 4, "new data and new noise in each step"

    assert run.main(command(once, "sample")) == 0
    assert run.main(command(once, "export")) == 0
    with np.load(once / "samples" / "000004_0.npz") as samples:
        points, energies = samples["images"], samples["energies"]
    assert points.shape == (16, 2)
    assert (np.abs(points - 0.5) <= 0.5).all()
    assert len(np.unique(points, axis=0)) == 16
    model = exported.load(once / "export" / "000004_0")
    found = model.energy(model.params, jnp.asarray(points), model.labels(16))
    np.testing.assert_allclose(found, energies, rtol=1e-5, atol=1e-6)
