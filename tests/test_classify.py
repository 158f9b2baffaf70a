"""The numbers of --mode=evaluate for a conditional model as a classifier follow from its energies."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

import ebm_jax
from configs import digits_contrastive as digits
from ebm_jax import assemble, schema
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import classification
from ebm_jax.evaluators import robustness as attacks
from ebm_jax.evaluators.common import Evidence
from ebm_jax.metrics import calibration, robustness
from ebm_jax.models import energy
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput


@pytest.fixture(autouse=True)
def without_key_checks():
    """A program over several batches gets the same keys again, which JAX's checker refuses."""
    with jax.debug_key_reuse(False):
        yield


def config_of(**changes):
    config = schema.dry_run(digits.get_config()).unlock()
    config.model.width, config.model.num_classes = 4, 10
    config.eval.batch_size, config.eval.robustness.images, config.eval.robustness.restarts = 100, 40, 1
    config.eval.robustness.linf, config.eval.robustness.l2 = "8,0", "0,0.5"
    return changed(config, **changes)


def untrained(**changes):
    config = config_of(**changes)
    params = assemble.init_params(config, jax.random.key(0))
    # Gains at random tell the classes apart, as training would; a second convolution starts at 0
    block = params["block"]
    gains = {"gain2": {"table": 1 + jax.random.normal(jax.random.key(1), block["gain2"]["table"].shape)}}
    kernels = {
        "conv2": {**block["conv2"], "kernel": jax.random.normal(jax.random.key(2), block["conv2"]["kernel"].shape)}
    }
    params = {**params, "block": {**block, **gains, **kernels}}
    return TrainedRun(config, params, parallel.device_mesh(jax.devices()[:1]), 7, Path("nowhere"), {})


def evidence(one):
    return Evidence({"eval.split": one.data("test"), "eval.reference_split": one.data("train")})


def logits_by_hand(one, images):
    images = jnp.asarray(images / 255.0, jnp.float32)
    energy_fn = ebm_jax.make_energy_fn(one.config)
    of_label = jax.jit(lambda label: energy_fn(one.params, images, jnp.full(len(images), label)))
    return -np.stack([of_label(label) for label in range(10)], 1)


@pytest.mark.whole
def test_classification_is_that_of_the_energies_one_class_after_the_other(tmp_path):
    one = untrained()
    outcome = classification.measure(one, evidence(one))
    test, train = one.data("test"), one.data("train")
    logits, labels = logits_by_hand(one, test.images), test.labels
    report = calibration.report(logits, labels)
    rows = np.sort(np.random.default_rng(one.config.eval.seed).permutation(len(train.images))[: len(labels)])
    temperature = calibration.fitted_temperature(logits_by_hand(one, train.images[rows]), train.labels[rows])
    scaled = calibration.report(logits / temperature, labels)
    found = {name: value.number for name, value in outcome.values.items()}
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["expected calibration error"] == pytest.approx(report.calibration_error, abs=1e-4)
    assert found["negative log-likelihood of labels, nats"] == pytest.approx(report.nll, rel=1e-4)
    assert 0 < outcome.values["accuracy"].standard_error < 0.05
    assert found["temperature of the fit"] == pytest.approx(temperature, rel=1e-2)
    assert found["negative log-likelihood of labels, fitted temperature, nats"] == pytest.approx(scaled.nll, rel=1e-3)
    assert found["expected calibration error, fitted temperature"] == pytest.approx(scaled.calibration_error, abs=0.01)
    assert "359 images of 8x8x1" in outcome.protocol["images classified"]
    outcome.pictures["calibration"](tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 5_000


@pytest.mark.slow
def test_robustness_at_radius_0_is_the_accuracy_of_the_images_attacked_and_the_verdict_is_in_words(tmp_path):
    one = untrained()
    outcome = attacks.measure(one, evidence(one))
    rows = np.sort(np.random.default_rng(one.config.eval.seed).permutation(359)[:40])
    test = one.data("test")
    clean = (logits_by_hand(one, test.images)[rows].argmax(1) == test.labels[rows]).mean()
    found = {name: value.number for name, value in outcome.values.items()}
    assert found["accuracy, L∞ radius 0/255 / gradient attack"] == pytest.approx(clean)
    assert found["accuracy, L2 radius 0 / noise"] == pytest.approx(clean)
    assert found["accuracy, L∞ radius 8/255 / gradient attack"] <= clean
    assert outcome.protocol["gradient masking, L∞"].startswith(("PASS", "VIOLATED"))
    assert "2 steps, 1 random starts" in outcome.protocol["attack"]
    outcome.pictures["robustness"](tmp_path / "robustness.png")
    assert (tmp_path / "robustness.png").stat().st_size > 10_000


class Margins(NamedTuple):
    margins: jax.Array


@pytest.mark.whole
def test_each_image_is_attacked_under_its_own_label_at_radii_in_their_keys_units(monkeypatch):
    """An image stands an attack if the radius is below label / 10 times its brightness; noise reaches half as far."""

    def attack(key, logits_fn, images, labels, norm, radius, *more, **many):
        return Margins(radius - labels * images.mean((1, 2, 3)) / 10)

    monkeypatch.setattr(robustness, "pgd", attack)
    monkeypatch.setattr(robustness, "noise", lambda *args, **many: attack(*args[:5], args[5] / 2, **many))
    one = untrained(eval__robustness__linf="51,0,25.5", eval__robustness__l2="0,0.2")
    found = {name: value.number for name, value in attacks.measure(one, evidence(one)).values.items()}
    test, rows = one.data("test"), np.sort(np.random.default_rng(one.config.eval.seed).permutation(359)[:40])
    limits = test.labels[rows] * test.images[rows].mean((1, 2, 3)) / 2550
    assert 0 < (limits > 0.2).mean() < (limits > 0.1).mean() < (limits > 0).mean()
    for radius, pixels in {"L∞ radius 0/255": 0, "L∞ radius 25.5/255": 0.1, "L2 radius 0.2": 0.2}.items():
        for name, reach in {"gradient attack": pixels, "noise": pixels / 2}.items():
            assert found[f"accuracy, {radius} / {name}"] == pytest.approx((limits > reach).mean())
    assert found["accuracy under an attack in L∞ without bounds"] == 0


@pytest.mark.whole
def test_refined_logits_are_those_of_the_chain_kept_near_the_image():
    one = untrained(
        eval__robustness__refine_steps=2, eval__robustness__refine_temperature=0.0, eval__robustness__refine_radius=4.0
    )
    images = one.data("test").images[:5]
    refined = classification.logits_of(one, jax.random.key(0), images, lambda words: None)
    apply = energy.of_members(assemble.make_apply(one.config))
    x = clean = jnp.asarray(images / 255.0, jnp.float32)
    labels, chain = jnp.full(5, 3), one.config.chain
    gradient_of = jax.jit(jax.grad(lambda x: apply(one.params, x, labels).sum()))
    for _ in range(2):
        gradient = gradient_of(x)
        x = x - chain.step_size * jnp.clip(gradient, -chain.grad_clip, chain.grad_clip)
        x = jnp.clip(jnp.clip(x, clean - 4 / 255, clean + 4 / 255), 0, 1)
    assert np.abs(x - clean).max() == pytest.approx(4 / 255, rel=1e-3)
    np.testing.assert_allclose(refined[:, 3], -apply(one.params, x, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_classes": 1}, "need a model of several classes, and this one has model.num_classes 1"),
        (
            {"data__condition": "soft"},
            "need a model of several classes, and this one has model.num_classes 10, data.cond",
        ),
        (
            {"eval__robustness__linf": "1,two"},
            "eval.robustness.linf '1,two' is no list of radii; use numbers apart by commas",
        ),
        ({"eval__robustness__l2": "0,-1"}, "eval.robustness.l2 '0,-1' has a radius that is out of range"),
        (
            {"eval__robustness__refine_steps": 2, "chain__kernel": "mala", "chain__langevin__tied": True},
            "eval.robustness.refine_steps 2 is for chain.kernel langevin, not mala; use 0",
        ),
    ],
)
def test_what_cannot_be_attacked_is_one_clear_line(changes, message):
    with pytest.raises(BadInput, match=message.replace(".", r"\.")) as caught:
        attacks.check(config_of(**changes))
    assert "\n" not in str(caught.value)
