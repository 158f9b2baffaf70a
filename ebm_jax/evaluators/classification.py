"""A conditional model as a classifier by its energies: its accuracy, and the calibration of its confidence."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import applications, assemble, chains
from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.common import Evidence, Outcome, Value, chosen_rows, described, key_of
from ebm_jax.labels import label_shape
from ebm_jax.methods import matching
from ebm_jax.metrics import calibration, robustness
from ebm_jax.models import energy
from ebm_jax.report import console, figures
from ebm_jax.sampling.kernel import unit_box
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config, Energies, PRNGKey

CLASSIFICATION = 31  # this evaluator's number in `key_of`
LEVELS = 255.0  # the largest value of a pixel


def check(config: Config) -> None:
    """Refuse a model without classes.

    Raises:
      BadInput: the model has none; or refined classification needs another chain.kernel.
    """
    if config.model.num_classes == 1 or label_shape(config) is not None:
        kind = f"model.num_classes {config.model.num_classes}, data.condition {config.data.condition}"
        raise BadInput(
            f"the metrics classification and robustness need a model of several classes, and this one has {kind}; "
            "leave them out of eval.metrics"
        )
    if config.eval.robustness.refine_steps:
        chains.make_refiner(config, unit_box)


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Accuracy and calibration as a classifier; needs classes.

    All images of `eval.split` are classified, and the likelihood of their labels is measured too.

    The scale of an energy is a convention, so all but the accuracy is given twice: for the energies as they are, and at
    the temperature that fits the labels of the reference split best.
    """
    config, data, reference = run.config, evidence.data["eval.split"], evidence.data["eval.reference_split"]
    key_test, key_fit = jax.random.split(key_of(config, CLASSIFICATION))
    rows = chosen_rows(len(reference.images), len(data.images), config.eval.seed)
    fit_on = logits_of(run, key_fit, reference.images[rows], evidence.note)
    temperature = calibration.fitted_temperature(fit_on, reference.labels[rows])
    if reached := calibration.bound_reached(temperature):
        console.warn(f"classification: the fit of the temperature stopped at its bound; {reached}")
    logits = logits_of(run, key_test, data.images, evidence.note)
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
        "images classified": described(config, config.eval.split, data.images),
        "logits": logits_in_words(config),
        "calibration": f"{calibration.BINS} equal bins of the predicted class's probability, softmax(logits / T); T = 1"
        f" and T fitted by likelihood on {len(rows):,} random images of {config.eval.reference_split}"
        + (f"; THE FIT STOPPED AT ITS BOUND: {reached}" if reached else ""),
        "standard error": "over images",
    }
    most_frequent = float(np.bincount(data.labels).max() / len(data.labels))
    said = (
        verdicts.accuracy(values["accuracy"], most_frequent),
        verdicts.surprise(scaled.nll, config.model.num_classes),
    )
    what = f"{plain.accuracy:.1%} of {len(data.labels):,} right, calibration error {scaled.calibration_error:.3f}"
    title = run.title(what, f"at the fitted temperature, {temperature:.3g}")
    draw = partial(figures.reliability, **scaled.bins._asdict(), title=title)
    return Outcome(values, protocol, {"calibration": draw}, said)


def logits_in_words(config: Config) -> str:
    """The logits in words, for a protocol."""
    settings = config.eval
    if not settings.robustness.refine_steps:
        if not assemble.compared_by_matching(config):
            return f"-U(x, y), {config.sample.weights} weights"
        shares = " and ".join(f"{share:g}" for share in matching.CLASS_SHARES)
        return (
            f"minus the error of the matching under each class, summed over pixels, {config.sample.class_draws} draws "
            f"of noise at the shares {shares} of data, the same for all classes; {config.sample.weights} weights"
        )
    return (
        f"-U(x', y), {config.sample.weights} weights, x' after {settings.robustness.refine_steps} steps of the chain "
        f"under U(·, y) from x, within {settings.robustness.refine_radius:g}/255 of it, temperature "
        f"{settings.robustness.refine_temperature:g}, mean over {_num_keys(config)} chains"
    )


def _num_keys(config: Config) -> int:
    """The number of chains to average logits over; one is enough without noise."""
    noisy = config.eval.robustness.refine_steps and config.eval.robustness.refine_temperature
    return config.eval.robustness.chains if noisy else 1


def make_logits_fn(config: Config, energy_of: Callable[..., Energies]) -> robustness.LogitsFn:
    """The function (key, images) -> logits [b, k]: minus the energies of the classes, at the image or a refined one.

    Of a matching they are minus its errors (`assemble.make_class_energies`).
    """
    settings, num_classes = config.eval, config.model.num_classes
    if not settings.robustness.refine_steps:
        plain = assemble.make_class_energies(config, energy_of)
        return lambda key, images: -plain(key, images)
    refined = applications.refined_class_energies(
        lambda labels: partial(energy_of, labels=labels),
        num_classes,
        partial(chains.make_refiner, config),
        num_steps=settings.robustness.refine_steps,
        radius=settings.robustness.refine_radius / LEVELS,
    )
    return robustness.expected(lambda key, images: -refined(key, images), _num_keys(config))


def logits_of(run: TrainedRun, key: PRNGKey, images: np.ndarray, note: Note) -> np.ndarray:
    """The logits float32 [n, k] of uint8 images [n, h, w, c]."""

    def of_rows(apply: energy.ApplyFn, images: jax.Array, places: jax.Array) -> jax.Array:
        return make_logits_fn(run.config, apply)(of_batch(key, places), images.astype(jnp.float32) / LEVELS)

    size = run.config.eval.batch_size
    return run.map(of_rows, images, np.arange(len(images)), batch_size=size, note=note)


def of_batch(key: PRNGKey, places: jax.Array) -> PRNGKey:
    """The key of the batch that begins at the first of these places."""
    return jax.random.fold_in(key, places[0])
