"""A conditional model as a classifier, by its energies: how often it is right, how well it knows, and under attack."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import applications, assemble, choices
from ebm_jax.evaluators.card import BETWEEN
from ebm_jax.evaluators.common import Outcome, Subject, Value, chosen_rows
from ebm_jax.metrics import calibration, robustness
from ebm_jax.models import energy
from ebm_jax.report import figures
from ebm_jax.sampling.kernel import unit_box
from ebm_jax.types import BadInput, Config, Energies, PRNGKey

KEY_CLASSIFICATION, KEY_ROBUSTNESS = 31, 32  # that the evaluation's key is folded with
LEVELS = 255.0  # of a pixel: radii in L∞ are in units of 1/255
NORMS = {"L∞": (robustness.LINF, "eval.robustness.linf", LEVELS), "L2": (robustness.L2, "eval.robustness.l2", 1.0)}


def check(config: Config) -> None:
    """Refuse a model without classes.

    Raises:
      BadInput: it has none; or the chains that refine its images have a Metropolis test.
    """
    if config.model.num_classes == 1 or choices.label_shape(config) is not None:
        kind = f"model.num_classes {config.model.num_classes}, data.condition {config.data.condition}"
        raise BadInput(
            f"the metrics classification and robustness need a model of several classes, and this one has {kind}; "
            "leave them out of eval.metrics"
        )
    if config.eval.robustness.refine_steps:
        assemble.make_refiner(config, unit_box)


def check_attacks(config: Config) -> None:
    """Refuse, beyond what `check` does, radii that are none.

    Raises:
      BadInput: with the key and its value.
    """
    check(config)
    for _, key, _ in NORMS.values():
        _radii(config, key)


def classification(subject: Subject) -> Outcome:
    """Accuracy, calibration error and likelihood of the labels on all images of `eval.split`.

    The scale of an energy is a convention, so that all but the accuracy is given twice: as the energies are, and at the
    one temperature that suits the labels of the reference split best.
    """
    key = jax.random.fold_in(subject.key, KEY_CLASSIFICATION)
    key_test, key_fit = jax.random.split(key)
    data, reference = subject.data(subject.config.eval.split), subject.data(subject.config.eval.reference_split)
    rows = chosen_rows(len(reference.images), len(data.images), subject.config.eval.seed)
    fit_on = _logits(subject, key_fit, reference.images[rows])
    temperature = calibration.fitted_temperature(fit_on, reference.labels[rows])
    logits = _logits(subject, key_test, data.images)
    plain, scaled = (calibration.report(logits / t, data.labels) for t in (1.0, temperature))
    values = {
        "accuracy": Value(plain.accuracy, plain.accuracy_error),
        "expected calibration error": Value(plain.calibration_error),
        "negative log-likelihood of labels, nats": Value(plain.nll, plain.nll_error),
        "temperature of the fit": Value(temperature),
        "expected calibration error, fitted temperature": Value(scaled.calibration_error),
        "negative log-likelihood of labels, fitted temperature, nats": Value(scaled.nll, scaled.nll_error),
    }
    protocol = {
        "images classified": subject.described(subject.config.eval.split),
        "logits": _described_logits(subject.config),
        "calibration": f"{calibration.BINS} equal bins of the predicted class's probability, softmax(logits / T); T = 1"
        f" and T fitted by likelihood on {len(rows):,} random images of {subject.config.eval.reference_split}",
        "standard error": "over images",
    }
    return Outcome(values, protocol, {"calibration": partial(figures.reliability, **scaled.bins._asdict())})


def robustness_to_attacks(subject: Subject) -> Outcome:
    """Accuracy under projected gradient ascent over the radius, in L∞ and L2, and whether gradients are masked."""
    config = subject.config
    data = subject.data(config.eval.split)
    rows = chosen_rows(len(data.images), config.eval.robustness.images, config.eval.seed)
    images, labels = data.images[rows].astype(np.float32) / LEVELS, data.labels[rows]
    key = jax.random.fold_in(subject.key, KEY_ROBUSTNESS)
    values, protocol, panels = {}, _attack_protocol(subject, len(rows)), {}
    for (name, (norm, radii_key, unit)), key_norm in zip(NORMS.items(), jax.random.split(key, len(NORMS)), strict=True):
        radii = _radii(config, radii_key)
        curve = _curve(subject, key_norm, images, labels, norm, radii / unit)._replace(radii=radii)
        of_unit = "/255" if unit == LEVELS else ""
        attacks = {"gradient attack": curve.attacked, "noise": curve.noisy}
        for attack, rights in attacks.items():
            for radius, right in zip(radii, rights, strict=True):
                value = Value(float(right.mean()), calibration.share_error(right))
                values[f"accuracy, {name} radius {radius:g}{of_unit}{BETWEEN}{attack}"] = value
        values[f"accuracy under an attack in {name} without bounds"] = Value(float(curve.unbounded.mean()))
        values[f"signs of masked gradients, {name}"] = Value(float(len(robustness.violations(curve))))
        protocol[f"gradient masking, {name}"] = robustness.verdict(curve)
        panels[f"{name}, in 1/255" if of_unit else name] = (radii, attacks, float(curve.unbounded.mean()))
    return Outcome(values, protocol, {"robustness": partial(figures.robustness, panels_of=panels)})


def _radii(config: Config, key: str) -> np.ndarray:
    """The radii at a key, numbers apart by commas, sorted, in the key's unit."""
    text = choices.value_of(config, key)
    try:
        radii = np.array(sorted({float(number) for number in text.split(",")}))
    except ValueError:
        raise BadInput(f"{key} '{text}' is no list of radii; use numbers apart by commas, such as 0,4,8") from None
    if not (np.isfinite(radii) & (radii >= 0)).all():
        raise BadInput(f"{key} '{text}' has a radius that is out of range; it must be at least 0 and finite")
    return radii


def _described_logits(config: Config) -> str:
    settings = config.eval
    if not settings.robustness.refine_steps:
        return f"-U(x, y), {config.sample.weights} weights"
    return (
        f"-U(x', y), {config.sample.weights} weights, x' after {settings.robustness.refine_steps} steps of the chain under "
        f"U(·, y) from x, within {settings.robustness.refine_radius:g}/255 of it, temperature "
        f"{settings.robustness.refine_temperature:g}, mean over {_num_keys(config)} chains"
    )


def _num_keys(config: Config) -> int:
    """How many chains' logits are averaged; one says all where there is no noise."""
    noisy = config.eval.robustness.refine_steps and config.eval.robustness.refine_temperature
    return config.eval.robustness.chains if noisy else 1


def _logits_fn(config: Config, energy_of: Callable[..., Energies]) -> robustness.LogitsFn:
    """Minus the energies of all classes, of the image or of the image that a chain refined."""
    settings, num_classes = config.eval, config.model.num_classes
    if not settings.robustness.refine_steps:
        plain = energy.class_energies(lambda _, images, labels: energy_of(images, labels), None, num_classes)
        return lambda key, images: -plain(images)
    refined = applications.refined_class_energies(
        lambda labels: partial(energy_of, labels=labels),
        num_classes,
        partial(assemble.make_refiner, config),
        num_steps=settings.robustness.refine_steps,
        radius=settings.robustness.refine_radius / LEVELS,
    )
    return robustness.expected(lambda key, images: -refined(key, images), _num_keys(config))


def _logits(subject: Subject, key: PRNGKey, images: np.ndarray) -> np.ndarray:
    """Float32 [n, k] of uint8 images."""

    def logits_of(apply: energy.ApplyFn, images: jax.Array, places: jax.Array) -> jax.Array:
        return _logits_fn(subject.config, apply)(_of_batch(key, places), images.astype(jnp.float32) / LEVELS)

    return subject.map(logits_of, images, np.arange(len(images)))


def _of_batch(key: PRNGKey, places: jax.Array) -> PRNGKey:
    """The key of the batch that begins at the first of these places."""
    return jax.random.fold_in(key, places[0])


def _curve(
    subject: Subject, key: PRNGKey, images: np.ndarray, labels: np.ndarray, norm: robustness.Norm, radii: np.ndarray
) -> robustness.Curve:
    """Which images stand each attack; radii in pixel values, rising. All radii go through one program."""
    settings = subject.config.eval
    steps, restarts = settings.robustness.steps, settings.robustness.restarts
    least = settings.robustness.step_size / LEVELS if norm is robustness.LINF else 0.0
    key_pgd, key_noise = jax.random.split(key)

    def pgd(apply, images, labels, places, radius, step):
        logits_fn, many = _logits_fn(subject.config, apply), {"num_steps": steps, "num_restarts": restarts}
        return robustness.pgd(_of_batch(key_pgd, places), logits_fn, images, labels, norm, radius, step, **many).margins

    def noise(apply, images, labels, places, radius):
        logits_fn, key = _logits_fn(subject.config, apply), _of_batch(key_noise, places)
        return robustness.noise(key, logits_fn, images, labels, norm, radius, num_draws=steps * restarts).margins

    def stands(attack: Callable[..., Any], radii: np.ndarray, *more: np.ndarray) -> np.ndarray:
        """Bool [radii, images]."""
        rows = np.tile(np.arange(len(images)), len(radii))
        each = [np.repeat(sizes.astype(np.float32), len(images)) for sizes in (radii, *more)]
        margins = subject.map(attack, images[rows], labels[rows], np.arange(len(rows)), *each)
        return margins.reshape(len(radii), len(images)) < 0

    reached = np.append(radii, norm.whole_box(images.shape[1:]))
    sizes = np.array([robustness.step_size(radius, steps, least) for radius in reached])
    attacked = stands(pgd, reached, sizes)
    return robustness.Curve(radii, attacked[:-1], stands(noise, radii), attacked[-1])


def _attack_protocol(subject: Subject, number: int) -> dict[str, str]:
    settings = subject.config.eval
    return {
        "images attacked": f"{number} random ones of {subject.described(settings.split)}",
        "logits attacked": _described_logits(subject.config),
        "attack": f"projected gradient ascent on the margin, around the clean image and inside [0, 1]; "
        f"{settings.robustness.steps} steps, {settings.robustness.restarts} random starts in the ball, the worst point of all "
        f"for each image; step: the larger of {robustness.STEPS_ACROSS} radius / steps and, in L∞, "
        f"{settings.robustness.step_size:g}/255",
        "noise": f"the worst of {settings.robustness.steps * settings.robustness.restarts} random points at the radius",
        "standard error under attack": "over images",
    }
