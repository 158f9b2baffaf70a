"""Task `classify`: classify images by the class of lowest energy, or of the lowest error of a matching."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import applications, assemble
from ebm_jax.models import energy
from ebm_jax.report import pictures, progress, style
from ebm_jax.tasks.common import (
    Result,
    check_classes,
    check_images,
    check_one_label_each,
    images_to_start_from,
)
from ebm_jax.trained import TrainedRun
from ebm_jax.types import Config, Images, PRNGKey

SHOWN = 64  # images in the picture


def check(config: Config) -> None:
    """Refuse a model without classes.

    Raises:
      BadInput: with the remedy; or the run's data are no images.
    """
    check_images(config, "classify")
    check_one_label_each(config)
    of_colours = ", colourise" if config.data.shape[2] == 3 else ""
    check_classes(
        config,
        "sample.task classify needs a model of several classes, and this run has none: it is good for generate, film, "
        f"inpaint, restore, super_resolve{of_colours} and neighbours; to classify, train with method.name=joint, "
        "model.logits=True and model.num_classes, as configs/digits_joint.py does",
    )


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Name the class of images by their energies, and show the wrong ones; needs classes.

    Nothing is random but the noise of a matching.
    """
    images, labels = images_to_start_from(run)
    apply = energy.of_members(assemble.make_apply(run.config))
    energies_of = assemble.make_class_energies(run.config, partial(apply, run.params))
    size = run.config.sample.batch_size
    of_matching = assemble.compared_by_matching(run.config)
    what_of_class = "error of matching" if of_matching else "energy"

    @jax.jit
    def step(key: PRNGKey, images: Images) -> tuple[jax.Array, jax.Array, jax.Array]:
        energies = energies_of(key, images)
        return *applications.classify(lambda _: energies, images), energies

    parts = []
    for at in range(0, len(images), size):
        parts.append(jax.device_get(step(jax.random.fold_in(key, at), jnp.asarray(images[at : at + size]))))
        progress.note(f"{min(at + size, len(images)):,} of {len(images):,} images")
    predicted, log_probabilities, energies = (np.concatenate(column) for column in zip(*parts, strict=True))
    accuracy = float((predicted == labels).mean())
    arrays = {"labels": labels, "predicted": predicted, "log_probabilities": log_probabilities}

    def draw(path: Path) -> None:
        wrong = predicted != labels
        rows = np.flatnonzero(wrong if wrong.any() else ~wrong)[:SHOWN]
        captions = [
            [
                f"{word} {name}: {value:{'.4g' if of_matching else '+.4g'}}"
                for name, value in zip(_names(run, of), _at(energies[rows], of), strict=True)
            ]
            for word, of in (("true", labels[rows]), ("said", predicted[rows]))
        ]
        which = f"the first {len(rows)}" if len(rows) < wrong.sum() else "all"
        what = (
            f"{wrong.sum():,} of {len(images):,} images of {run.config.sample.split} classified wrongly, {which} shown"
        )
        if not wrong.any():
            what = f"all {len(images):,} images of {run.config.sample.split} classified rightly, {len(rows)} shown"
        facts = f"below each image its {what_of_class} under its true class and under the class of the lowest"
        title = run.title(what, facts)
        pictures.write_grid(path.with_suffix(".png"), images[rows], *captions, title=title, side=style.LARGE_SIDE)

    chance = np.bincount(labels).max() / len(labels)
    line = f"accuracy {accuracy:.4f} on {len(images)} images of {run.config.sample.split}, {chance:.4f} for the most "
    line += "frequent class alone; the picture has " + ("right ones" if accuracy == 1 else "wrong ones")
    if of_matching:
        draws = run.config.sample.class_draws
        line += f"; by the error of the matching under each class, {draws} draws of noise at either share of data"
    elif not assemble.learns_to_classify(run.config):
        line += (
            "; training never compared the energies of one image under several classes: this run is good for making "
            "images of a class asked for (sample.task=generate, sample.labels); to classify, train with "
            "method.name=joint and model.logits=True, or with loss.label_weight=1"
        )
    return Result(arrays, draw, line)


def _names(run: TrainedRun, labels: np.ndarray) -> list[str]:
    """The names of classes [n], or their numbers if they have none."""
    return run.names_of(labels) or [str(label) for label in labels]


def _at(energies: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of energies [n, classes], each row's at its label [n]."""
    return np.take_along_axis(energies, labels[:, None].astype(int), 1)[:, 0]
