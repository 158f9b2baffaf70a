"""Task `neighbours`: are the samples copies of training images?"""

import numpy as np

from ebm_jax.metrics.neighbours import nearest_neighbours
from ebm_jax.report import progress, style
from ebm_jax.report.pictures import Row
from ebm_jax.tasks.common import Result, check_images, check_one_label_each, rows_of
from ebm_jax.trained import TrainedRun
from ebm_jax.types import Config, PRNGKey


def check(config: Config) -> None:
    """Refuse data that are no images.

    Raises:
      BadInput: with the data's name.
    """
    check_images(config, "neighbours")
    check_one_label_each(config)


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """The samples of `generate`, each beside the nearest images of the training set."""
    samples, labels, _ = run.samples(key, progress.note)
    progress.note("the nearest training image of each")
    reference = run.data(run.config.data.split).images.astype(np.float32) / 255.0
    rows, distances = nearest_neighbours(samples, reference, run.config.sample.neighbours.number)
    nearest = {
        f"nearest training image, number {k + 1}": Row(
            reference[rows[:, k]], [f"L2 {far:.2f}" for far in distances[:, k]]
        )
        for k in range(rows.shape[1])
    }
    line = (
        f"median L2 distance of {len(samples)} samples to the nearest training image {np.median(distances[:, 0]):.3f}"
    )
    arrays = {"images": samples, "rows": rows, "distances": distances}
    words = f"{style.steps(run.config)}{style.kept(run.config)}"
    title = run.title(f"{len(samples)} samples and the training images nearest to them", words, "start: noise")
    return Result(arrays, rows_of({"samples": Row(samples, run.names_of(labels)), **nearest}, title), line)
