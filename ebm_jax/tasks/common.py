"""What a task of `--mode=sample` is, and what several of them share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.labels import label_shape, sample_labels
from ebm_jax.report import pictures
from ebm_jax.trained import TrainedRun, with_split
from ebm_jax.types import BadInput, Config, PRNGKey

COLUMNS = 16  # images in a row of a picture
Draw = Callable[[Path], None]


class Result(NamedTuple):
    """What a task made: arrays for the .npz, a function that draws them to a path without suffix, a line to say."""

    arrays: dict[str, np.ndarray]
    draw: Draw
    line: str


class Task(NamedTuple):
    """One use of a trained run."""

    check: Callable[[Config], None]
    """Refuses, before anything is read or made, a config that the task cannot be done with."""
    run: Callable[[TrainedRun, PRNGKey], Result]
    """The key is that of `sample.seed`."""
    ensemble: bool = True
    """Whether the runs of `sample.with_runs` are members beside the run, rather than something of the task's own."""


def check_images(config: Config, task: str) -> None:
    """Refuse a task of images for a run of a 2-D density.

    Raises:
      BadInput: with the data's name.
    """
    if len(config.data.shape) != 3:
        raise BadInput(f"sample.task {task} needs images; {config.data.name} is a 2-D density, use generate")


def check_one_label_each(config: Config) -> None:
    """Refuse `sample.labels` that are none of the model's, or sums of them.

    Raises:
      BadInput: as `labels.sample_labels`.
    """
    sample_labels(config, jnp.zeros(1, jnp.int32))


def check_classes(config: Config, message: str) -> None:
    """Refuse a model without classes.

    Raises:
      BadInput: with the message.
    """
    if config.model.num_classes == 1 or label_shape(config) is not None:
        raise BadInput(message)


def compiled(run: TrainedRun, fn: Callable[..., Any], key: PRNGKey, *rows: Any) -> Any:
    """`fn(key, *rows)` compiled, the rows spread over all devices where their number allows, the result on the host."""
    if len(rows[0]) % run.mesh.size == 0:
        rows = parallel.place_batch(run.mesh, rows)
    return jax.device_get(jax.jit(fn)(key, *rows))


def images_to_start_from(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """`sample.num_images` random images [n, h, w, c] in [0, 1] of `sample.split`, or all of fewer, with labels."""
    images = sources.make_source(with_split(config, config.sample.split))
    count = min(config.sample.num_images, images.length)
    rows = np.sort(np.random.default_rng(config.sample.seed).permutation(images.length)[:count])
    read = [images.read(int(row)) for row in rows]
    return (
        np.stack([image for image, _ in read]).astype(np.float32) / 255.0,
        np.stack([np.asarray(label) for _, label in read]),
    )


def rows_of(**rows: np.ndarray) -> Draw:
    """A picture of the first few images of each, one row under its name."""
    captions = {name.replace("_", " "): images[:COLUMNS] for name, images in rows.items()}
    return lambda path: pictures.write_rows(path.with_suffix(".png"), captions)


def mean_squared_error(images: np.ndarray, others: np.ndarray) -> float:
    """Per value, over all images."""
    return float(np.square(images - others).mean())
