"""A conditional model as a classifier under attack: how often it is right within a radius of an image."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from ebm_jax import schema
from ebm_jax.evaluators import classification
from ebm_jax.evaluators.card import BETWEEN
from ebm_jax.evaluators.classification import LEVELS, logits_in_words, make_logits_fn, of_batch
from ebm_jax.evaluators.common import Evidence, Outcome, Value, chosen_rows, described, key_of
from ebm_jax.metrics import calibration, robustness
from ebm_jax.report import figures
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey

ROBUSTNESS = 32  # this evaluator's number in `key_of`
NORMS = {"L∞": (robustness.LINF, "eval.robustness.linf", LEVELS), "L2": (robustness.L2, "eval.robustness.l2", 1.0)}


def check(config: Config) -> None:
    """Refuse a model without classes, and radii that are not finite numbers of at least 0.

    Raises:
      BadInput: with the key and its value.
    """
    classification.check(config)
    for _, key, _ in NORMS.values():
        _radii(config, key)


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Accuracy under attack, and signs of masked gradients; needs classes.

    It attacks random images of `eval.split` by projected gradient ascent, in L∞ and in L2.
    """
    config, data = run.config, evidence.data["eval.split"]
    rows = chosen_rows(len(data.images), config.eval.robustness.images, config.eval.seed)
    images, labels = data.images[rows].astype(np.float32) / LEVELS, data.labels[rows]
    key = key_of(config, ROBUSTNESS)
    values, protocol, panels = {}, _attack_protocol(config, data.images, len(rows)), {}
    for (name, (norm, radii_key, unit)), key_norm in zip(NORMS.items(), jax.random.split(key, len(NORMS)), strict=True):
        radii = _radii(config, radii_key)
        curve = _curve(run, key_norm, images, labels, norm, radii / unit, evidence.note)._replace(radii=radii)
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
    said = tuple(f"{name}: {words}" for name, words in protocol.items() if name.startswith("gradient masking"))
    title = run.title(f"accuracy of {len(rows):,} images under attack")
    draw = partial(figures.robustness, panels_of=panels, title=title)
    return Outcome(values, protocol, {"robustness": draw}, said)


def _radii(config: Config, key: str) -> np.ndarray:
    """The sorted radii at a key, in the key's unit; commas separate them there."""
    text = schema.value_of(config, key)
    try:
        radii = np.array(sorted({float(number) for number in text.split(",")}))
    except ValueError:
        raise BadInput(f"{key} '{text}' is no list of radii; use numbers apart by commas, such as 0,4,8") from None
    if not (np.isfinite(radii) & (radii >= 0)).all():
        raise BadInput(f"{key} '{text}' has a radius that is out of range; it must be at least 0 and finite")
    return radii


def _curve(
    run: TrainedRun,
    key: PRNGKey,
    images: np.ndarray,
    labels: np.ndarray,
    norm: robustness.Norm,
    radii: np.ndarray,
    note: Note,
) -> robustness.Curve:
    """Which images withstand each attack; `radii` rise, in pixel values of [0, 1]. All radii go through one program."""
    settings = run.config.eval
    steps, restarts = settings.robustness.steps, settings.robustness.restarts
    least = settings.robustness.step_size / LEVELS if norm is robustness.LINF else 0.0
    key_pgd, key_noise = jax.random.split(key)

    def pgd(apply, images, labels, places, radius, step):
        logits_fn, many = make_logits_fn(run.config, apply), {"num_steps": steps, "num_restarts": restarts}
        return robustness.pgd(of_batch(key_pgd, places), logits_fn, images, labels, norm, radius, step, **many).margins

    def noise(apply, images, labels, places, radius):
        logits_fn, key = make_logits_fn(run.config, apply), of_batch(key_noise, places)
        return robustness.noise(key, logits_fn, images, labels, norm, radius, num_draws=steps * restarts).margins

    def stands(what: str, attack: Callable[..., Any], radii: np.ndarray, *more: np.ndarray) -> np.ndarray:
        """Bool [radii, images]: whether the image withstands the attack; `what` is its name."""

        def at_radii(words: str) -> None:
            note(f"{what} at {len(radii)} radii: {words}")

        rows = np.tile(np.arange(len(images)), len(radii))
        each = [np.repeat(sizes.astype(np.float32), len(images)) for sizes in (radii, *more)]
        rows_of_all = images[rows], labels[rows], np.arange(len(rows))
        margins = run.map(attack, *rows_of_all, *each, batch_size=settings.batch_size, note=at_radii)
        return margins.reshape(len(radii), len(images)) < 0

    reached = np.append(radii, norm.whole_box(images.shape[1:]))
    sizes = np.array([robustness.step_size(radius, steps, least) for radius in reached])
    attacked = stands("gradient attack", pgd, reached, sizes)
    return robustness.Curve(radii, attacked[:-1], stands("noise", noise, radii), attacked[-1])


def _attack_protocol(config: Config, images: np.ndarray, number: int) -> dict[str, str]:
    settings = config.eval
    return {
        "images attacked": f"{number} random ones of {described(config, settings.split, images)}",
        "logits attacked": logits_in_words(config),
        "attack": f"projected gradient ascent on the margin, around the clean image and inside [0, 1]; "
        f"{settings.robustness.steps} steps, {settings.robustness.restarts} random starts in the ball, the worst point "
        f"of all for each image; step: the larger of {robustness.STEPS_ACROSS} radius / steps and, in L∞, "
        f"{settings.robustness.step_size:g}/255",
        "noise": f"the worst of {settings.robustness.steps * settings.robustness.restarts} random points at the radius",
        "standard error under attack": "over images",
    }
