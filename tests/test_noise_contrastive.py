"""Noise contrastive estimation of laws whose density is known; and a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from scipy.integrate import quad

from configs import density2d_noise_contrastive, digits_contrastive
from ebm_jax import assemble, checks, schema, train
from ebm_jax.methods.method import Model
from ebm_jax.methods.noise_contrastive import noise_contrastive
from ebm_jax.sampling.base import normal, uniform
from ebm_jax.types import BadInput, Batch

RATIO = 3


def ramp(params, x, labels=None, dropout_key=None):
    """-log 2x, of the law of density 2x on [0, 1]; shifted, tilted and sharpened by `params`."""
    return -params["sharpness"] * jnp.log(2 * x[:, 0]) + params["tilt"] * x[:, 0] + params["shift"]


def bell(params, x, labels=None, dropout_key=None):
    """-log of the density of N(0.2, 0.8²), under the same parameters."""
    squares = jnp.square((x[:, 0] - 0.2) / 0.8)
    energies = 0.5 * squares + jnp.log(0.8 * jnp.sqrt(2 * jnp.pi))
    return params["sharpness"] * energies + params["tilt"] * x[:, 0] + params["shift"]


def of_ramp(rng, n):
    return np.sqrt(1.0 - rng.random((n, 1))).astype(np.float32)


def of_bell(rng, n):
    return (0.2 + 0.8 * rng.standard_normal((n, 1))).astype(np.float32)


LAWS = {
    "uniform noise": (ramp, of_ramp, uniform((1,)), lambda x: 2 * x, lambda x: 1.0, (0, 1)),
    "normal noise": (
        bell,
        of_bell,
        normal((1,)),
        lambda x: np.exp(-0.5 * ((x - 0.2) / 0.8) ** 2) / (0.8 * np.sqrt(2 * np.pi)),
        lambda x: np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi),
        (-9, 9),
    ),
}


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]


def measured(law, **changes):
    """[chunks] of the loss, of its gradients, and of the metrics."""
    energy, sample, base = law[:3]
    method = noise_contrastive(base, ratio=RATIO, patience=5)
    params = {"sharpness": 1.0, "tilt": 0.0, "shift": 0.0} | changes
    params = {name: jnp.asarray(value) for name, value in params.items()}
    chunks = jnp.asarray(sample(np.random.default_rng(0), 200_000)).reshape(100, -1, 1)

    def one(chunk):
        key, images = chunk

        def loss(params):
            value, (_, metrics) = method.loss(
                key, Model(energy, params), Batch(images, jnp.zeros(len(images), jnp.int32)), ()
            )
            return value, metrics

        return jax.value_and_grad(loss, has_aux=True)(params)

    (values, metrics), gradients = jax.jit(lambda *chunk: jax.lax.map(one, chunk))(
        jax.random.split(jax.random.key(1), 100), chunks
    )
    return jax.device_get((values, gradients, metrics))


def test_at_the_datas_own_density_the_loss_has_the_value_of_its_integral_and_no_gradient(law):
    *_, q, noise, ends = law

    def of(x):
        data, others = q(x), RATIO * noise(x)
        return -data * np.log(data / (data + others)) - others * np.log(others / (data + others))

    least = quad(of, *ends, epsabs=1e-10)[0]
    values, gradients, _ = measured(law)
    assert abs(values.mean() - least) < 5 * values.std() / 10
    for name, gradient in gradients.items():
        assert abs(gradient.mean()) <= 5 * gradient.std() / 10, name


@pytest.mark.parametrize("other", [{"sharpness": 0.8}, {"tilt": 0.3}, {"shift": 0.2}, {"shift": -0.2}], ids=str)
def test_every_other_energy_has_a_larger_loss_and_so_has_another_constant(law, other):
    excess = measured(law, **other)[0] - measured(law)[0]
    assert excess.mean() > 5 * excess.std() / 10


def test_it_reports_the_normaliser_of_the_energy_and_how_well_data_and_noise_are_told_apart(law):
    *_, q, noise, ends = law
    metrics = measured(law, shift=0.3)[2]
    total = np.exp(metrics["log_normaliser"])  # the log of a mean is biased, and the mean is not
    assert abs(total.mean() - np.exp(-0.3)) < 5 * total.std() / 10
    metrics = measured(law)[2]
    points = np.linspace(*ends, 20_001)
    best = 0.5 + 0.25 * np.trapezoid(np.abs([q(x) - noise(x) for x in points]), points)  # half of total variation
    assert abs(metrics["noise_accuracy"].mean() - best) < 5 * metrics["noise_accuracy"].std() / 10


def test_noise_has_the_labels_of_the_batch_and_each_as_often():
    seen = []

    def energy(params, x, labels=None, dropout_key=None):
        seen.append(labels)
        return params * x[:, 0]

    method = noise_contrastive(uniform((1,)), ratio=2, patience=5)
    labels = jnp.asarray([3, 1, 1, 0])
    method.loss(jax.random.key(0), Model(energy, jnp.ones(())), Batch(jnp.ones((4, 1)), labels), ())
    assert np.bincount(seen[0]).tolist() == [3, 6, 0, 3]


def test_a_config_names_it_with_its_ratio_and_what_measures_the_same_may_not_join():
    config = changed(digits_contrastive.get_config(), method__name="noise_contrastive")
    assert assemble.make_method(config).init(jax.random.key(0)) == ()
    with pytest.raises(BadInput, match=r"method\.noise_contrastive\.ratio 0 is out of range"):
        checks.check(changed(config, method__noise_contrastive__ratio=0), 1)
    twice = {"method.then.name": "noise_contrastive", "method.then.after": 1}
    with pytest.raises(BadInput, match=r"method\.then\.name noise_contrastive cannot join"):
        checks.check(schema.with_values(config, twice), 1)


@pytest.mark.whole
def test_a_run_in_two_dimensions_learns_the_density_and_its_normaliser(tmp_path):
    config = density2d_noise_contrastive.get_config()
    config.data.name = "two_moons"
    config.train.num_steps = config.optim.decay_steps = 1_000
    config.optim.ema_decay = 0.98
    config.log.images_every = 0
    config.log.every = config.checkpoint.every = 500
    config.sample.num_images = config.sample.batch_size = 64
    config.sample.num_steps = 2
    assert train.train(config, tmp_path) == 0
    report = json.loads((tmp_path / "evaluation.jsonl").read_text().splitlines()[-1])
    assert report["kl"] < 0.1, "a constant energy has 1.77"
    assert abs(report["log_z"]) < 0.1, "the data fix the constant"
