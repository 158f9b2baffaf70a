"""Task `transition`: move images under the energy of other classes."""

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import applications, chains
from ebm_jax.evaluators import classifier
from ebm_jax.labels import sample_labels
from ebm_jax.report import style
from ebm_jax.report.pictures import Row
from ebm_jax.tasks.common import (
    Result,
    check_classes,
    check_images,
    check_one_label_each,
    compiled,
    images_to_start_from,
    rows_of,
)
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, Images, Labels, PRNGKey


def check(config: Config) -> None:
    """Refuse a model without classes.

    Raises:
      BadInput: with the number of classes; or the run's data are no images.
    """
    check_images(config, "transition")
    check_one_label_each(config)
    num_classes = config.model.num_classes
    check_classes(config, f"sample.task transition needs classes; model.num_classes is {num_classes}, unconditional")


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Move images to the classes of `sample.labels`, or to the next; needs classes."""
    images, labels = images_to_start_from(run)
    asked = sample_labels(run.config, jnp.arange(len(images)))
    target = np.asarray(asked) if run.config.sample.labels else (labels + 1) % run.config.model.num_classes
    stages = chains.make_stages(run.config)
    path = chains.make_path(run.config, run.config.sample.transition.share)

    def make(key: PRNGKey, images: Images, target: Labels) -> Images:
        if path is not None:
            key, key_noise = jax.random.split(key)
            images = applications.among_noise(key_noise, images, path)
        return applications.transition(key, images, target, run.chain_energy_fn, stages)

    moved = compiled(run, make, key, images, target.astype(np.int32))
    arrays = {"images": images, "labels": labels, "target_labels": target, "moved": moved}
    before, after = (run.energy_of(each, target).mean() for each in (images, moved))
    rows = {
        f"images of {run.config.sample.split}": Row(images, run.names_of(labels)),
        f"moved to another class: energy under it {after:+.4g}, {before:+.4g} before": Row(moved, run.names_of(target)),
    }
    mixed = "" if path is None else f" ({path.share:.0%}) and noise"
    title = run.title("images moved to another class", style.steps(run.config), f"start: the images{mixed}")
    line = f"moved {len(images)} images; energy under the class asked for {before:+.4f} before and {after:+.4f} after, "
    line += "of the real images under their own class "
    line += f"{run.energy_of(images, labels).mean():+.4f}; {_judged(run, images, moved, target)}"
    return Result(arrays, rows_of(rows, title), line)


def _judged(run: TrainedRun, images: np.ndarray, moved: np.ndarray, target: np.ndarray) -> str:
    """How many images a classifier that is not the run takes for the class asked for, in words."""
    try:
        classes_of = classifier.kept(run)
    except BadInput as error:  # what was moved shall be kept
        return f"not judged by a classifier: {error}"
    if classes_of is None:
        return "an evaluation with eval.metrics=classifier_distance keeps a classifier that judges the next ones"
    before, after = ((classes_of(of_images) == target).mean() for of_images in (images, moved))
    return f"the classifier of an earlier evaluation takes {after:.1%} of them for that class, {before:.1%} before"
