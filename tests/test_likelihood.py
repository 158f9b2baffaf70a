"""The evaluators of likelihood, chains and memory, on a run with an energy in closed form."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from PIL import Image

from configs import digits_contrastive as digits
from ebm_jax import assemble, samplers, trained
from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import chains, likelihood, memorisation
from ebm_jax.evaluators.common import Evidence, Samples
from ebm_jax.evaluators.energies import at_most, dequantised, energies_of
from ebm_jax.evaluators.likelihood import Likelihood
from ebm_jax.metrics import ais
from ebm_jax.metrics.ais import Sandwich
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput

SLOPES = np.linspace(0.2, 1.1, 10)  # one a class


def linear(params, images, labels, dropout_key=None):
    """U(x, y) = a_y Σ x: the pixels are independent, log Z = 64 log((1 - exp(-a)) / a)."""
    return params["slopes"][labels] * images.sum((1, 2, 3))


def log_z(slopes):
    return 64 * np.log((1 - np.exp(-slopes)) / slopes)


def of_digits(monkeypatch, num_classes=10, **changes):
    """A model of digits by `linear`."""
    for module in (assemble, samplers, trained):
        monkeypatch.setattr(module, "make_apply", lambda config: linear)
    small = {"num_samples": 40, "batch_size": 40, "chains__number": 16, "chains__steps": 200}
    small |= {"ais__chains": 160, "ais__steps": 150, "ais__burn_in": 16}
    config = changed(digits.get_config(), model__num_classes=num_classes)
    config = changed(config, **{f"eval__{key}": value for key, value in small.items()} | changes)
    params = {"slopes": jnp.asarray(SLOPES, jnp.float32)}
    return TrainedRun(config, params, parallel.device_mesh(jax.devices()[:1]), 0, Path(), {})


def exact_draws(num_classes=10):
    """Samples of that model, four of each class."""
    labels = np.arange(40, dtype=np.int32) % 10
    slopes = SLOPES[labels][:, None, None, None] if num_classes > 1 else SLOPES[0]
    u = np.random.default_rng(0).random((40, 8, 8, 1))
    return Samples((-np.log1p(-u * -np.expm1(-slopes)) / slopes).astype(np.float32), labels, "exact draws")


def evidence(samples=None):
    return Evidence({"eval.split": memory.digits("test"), "eval.reference_split": memory.digits("train")}, samples)


@pytest.mark.whole
def test_bounds_and_likelihood_of_a_model_of_classes_are_those_of_each_class_under_its_own_z(monkeypatch):
    temperature = 0.5
    of_run = of_digits(monkeypatch, eval__ais__temperature=temperature)
    with jax.debug_key_reuse(False):
        found = likelihood.measure(of_run, evidence(exact_draws()))
    test = memory.digits("test")
    slopes = SLOPES[test.labels] / temperature
    energies = slopes * ((test.images.astype(np.float64) + 0.5) / 256).sum((1, 2, 3))  # at the middles of the cells
    expected = {
        "log Z from below (forward AIS), nats": log_z(slopes).mean(),
        "log Z from above (reverse AIS), nats": log_z(slopes).mean(),
        "log-likelihood at most (forward AIS), nats": np.mean(-energies - log_z(slopes)),
        "log-likelihood at least (reverse AIS), nats": np.mean(-energies - log_z(slopes)),
        "bits per dimension at most (reverse AIS)": 8 + np.mean(energies + log_z(slopes)) / (64 * np.log(2)),
    }
    for name, number in expected.items():
        assert abs(found.values[name].number - number) < 5 * found.values[name].standard_error, name
        assert found.values[name].standard_error < 2, name
    assert "10 classes alike" in found.protocol["AIS"]
    assert "APPROXIMATE samples of the model: exact draws" in found.protocol["AIS reverse starts"]
    assert (
        f"at T = {temperature:g} of each class; the run's own chains are near T = 1.25e-06" in found.protocol["AIS law"]
    )


def test_reverse_chains_start_at_samples_of_their_own_class(monkeypatch):
    of_run, labels = of_digits(monkeypatch), np.repeat(np.arange(10, dtype=np.int32), 2)
    path = ais.Path(jnp.linspace(0, 1, 2), jnp.full(2, 1e-4))  # steps that hardly move them
    with jax.debug_key_reuse(False):
        chain = likelihood.Chains(of_run, likelihood.make_move(of_run.config), labels)
        starts, _ = chain.starts(jax.random.key(0), path, exact_draws())
    samples = exact_draws()
    distances = np.square(starts[:, None] - samples.images[None]).sum((2, 3, 4))
    assert distances.min(1).max() < 0.01
    np.testing.assert_array_equal(samples.labels[distances.argmin(1)], labels)
    assert len(set(distances.argmin(1))) == 20, "each its own sample, as long as there are enough"


def test_a_class_without_samples_is_named(monkeypatch):
    labels = np.delete(np.arange(10, dtype=np.int32), 7)
    without_seven, of_run = Samples(np.zeros((9, 8, 8, 1), np.float32), labels, "nine"), of_digits(monkeypatch)
    chain = likelihood.Chains(of_run, likelihood.make_move(of_run.config), np.arange(10, dtype=np.int32))
    with pytest.raises(BadInput, match=r"no sample of class 7 .* larger eval.num_samples"):
        chain.starts(jax.random.key(0), ais.Path(jnp.linspace(0, 1, 2), jnp.full(2, 0.1)), without_seven)


def verdict(*bounds):
    return Likelihood(list(bounds), np.zeros(4), np.zeros(4, int), 64, 0.5).verdict()


def test_the_verdict_names_a_sandwich_that_closes_one_that_does_not_and_one_that_crosses():
    assert verdict(Sandwich(1.0, 0.05, 90, 1.2, 0.05, 90)).startswith("closed, gap +0.200 nats, standard error 0.071")
    open_wide = Sandwich(1.0, 0.05, 90, 3.0, 0.05, 90)
    assert verdict(open_wide).startswith("THE SANDWICH DOES NOT CLOSE, gap +2.000 nats")
    assert "in the worst class" in verdict(Sandwich(1.0, 0.05, 90, 1.2, 0.05, 90), open_wide)
    unsure = Sandwich(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert verdict(unsure).startswith("THE SANDWICH DOES NOT CLOSE"), "two bounds may meet by chance"
    assert verdict(Sandwich(3.0, 0.05, 90, 1.0, 0.05, 90)).startswith("THE BOUNDS CROSS, gap -2.000 nats")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"eval__ais__chains": 16}, "eval.ais.chains 16 is too small for 10 classes.* at least 20"),
        ({"data__condition": "soft"}, "data.condition is soft, and each of its labels has another Z"),
    ],
)
def test_what_has_no_likelihood_is_refused(monkeypatch, changes, line):
    with pytest.raises(BadInput, match=line):
        likelihood.check(of_digits(monkeypatch, **changes).config)


def test_energies_are_those_of_the_images_in_their_order_whatever_the_batch(monkeypatch):
    test = memory.digits("test")
    images = dequantised(jax.random.key(0), test.images)
    assert (np.floor(images * 256) == test.images).all()
    of_run = of_digits(monkeypatch)
    sums = images.astype(np.float64).sum((1, 2, 3))
    np.testing.assert_allclose(
        energies_of(of_run, images, test.labels, lambda words: None), SLOPES[test.labels] * sums, rtol=1e-5
    )
    free = of_digits(monkeypatch, num_classes=1)
    np.testing.assert_allclose(energies_of(free, images, test.labels, lambda words: None), SLOPES[0] * sums, rtol=1e-5)
    some = at_most(test, 10, 0)
    assert len(some.images) == len(some.labels) == 10
    assert len(at_most(test, 1_000, 0).images) == len(test.images)


@pytest.mark.slow
def test_chains_of_a_metropolis_kernel_mix_to_the_closed_forms_mean_energy(monkeypatch, tmp_path):
    chain = {"chain__kernel": "hmc", "chain__step_size": 0.5, "chain__hmc__num_leaps": 3, "chain__temperature": 1.0}
    of_run = of_digits(monkeypatch, num_classes=1, **chain)
    with jax.debug_key_reuse(False):
        found = chains.measure(of_run, evidence())
    slope = SLOPES[0]
    expected = 64 * slope * (1 / slope - 1 / np.expm1(slope))
    value = found.values["energy of chains, mean"]
    assert abs(value.number - expected) < 5 * value.standard_error < 1
    assert 0.99 < found.values["split R-hat of energy"].number < 1.05
    assert found.values["acceptance"].number > 0.2
    assert "hmc's own Metropolis test" in found.protocol["chains, acceptance"]
    noise = found.values["energy of noise, mean"]
    assert abs(noise.number - 32 * slope) < 5 * noise.standard_error
    found.pictures["chains"](tmp_path / "chains.png")
    assert Image.open(tmp_path / "chains.png").size[0] > 1_000


@pytest.mark.slow
def test_langevin_has_no_acceptance_of_its_own_and_malas_stands_for_it_by_name(monkeypatch):
    tied = {
        "chain__langevin__tied": True,
        "chain__step_size": 1e-4,
        "chain__grad_clip": float("inf"),
        "eval__chains__steps": 16,
    }
    with jax.debug_key_reuse(False):
        found = chains.measure(of_digits(monkeypatch, num_classes=1, **tied), evidence())
    assert 0.0 < found.values["acceptance"].number < 0.9, "64 pixels, each near a wall at times"
    assert "that of MALA at the same step size 0.0001, clip and temperature 1," in found.protocol["chains, acceptance"]
    assert found.verdicts[0].startswith("not mixed: R-hat ")


def test_samples_that_are_training_images_are_all_remembered(monkeypatch, tmp_path):
    copies = Samples(memory.digits("train").images[:40] / np.float32(255), np.zeros(40, np.int32), "copies")
    found = memorisation.measure(of_digits(monkeypatch), evidence(copies))
    assert found.values["share of samples nearer to train than to test"].number == 1
    assert found.values["that share if nothing is remembered"].number == pytest.approx(1438 / 1797)
    assert found.values["distance of samples to train, median"].number < 1e-3
    found.pictures["memorisation"](tmp_path / "pairs.png")
    assert Image.open(tmp_path / "pairs.png").size[0] > 500
