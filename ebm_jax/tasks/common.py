"""A task of `--mode=sample` as a type, and helpers that several tasks share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import identity
from ebm_jax.data import found
from ebm_jax.distributed import parallel
from ebm_jax.labels import label_shape, sample_labels
from ebm_jax.report import console, pictures, progress
from ebm_jax.report.pictures import Row
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey

COLUMNS = 12  # images in a row of a picture
Draw = Callable[[Path], None]


class Result(NamedTuple):
    """A task's arrays for the .npz, a function that draws them to a path without suffix, and a line to print."""

    arrays: dict[str, np.ndarray]
    draw: Draw
    line: str


class Task(NamedTuple):
    """One use of a trained run."""

    check: Callable[[Config], None]
    """Refuses a config that the task cannot work with, before anything is read or made."""
    run: Callable[[TrainedRun, PRNGKey], Result]
    """Does the task, with the key of `sample.seed`."""
    ensemble: bool = True
    """True: the runs of `sample.with_runs` are members beside the run. False: the task uses them itself."""


def check_images(config: Config, task: str) -> None:
    """Refuse a 2-D density as the data of a task of images.

    Raises:
      BadInput: with the data's name.
    """
    if len(config.data.shape) != 3:
        raise BadInput(f"sample.task {task} needs images; {config.data.name} is a 2-D density, use generate")


def check_one_label_each(config: Config) -> None:
    """Refuse `sample.labels` that the model does not have, and sums of labels.

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
    """Compile and call `fn(key, *rows)`, and bring the result to the host.

    The rows are spread over all devices if the devices divide their number.
    """
    if len(rows[0]) % run.mesh.size == 0:
        rows = parallel.place_batch(run.mesh, rows)
    return jax.device_get(jax.jit(fn)(key, *rows))


def drawn(run: TrainedRun, fn: Callable[..., Any], key: PRNGKey, *rows: Any) -> np.ndarray:
    """`compiled` for each of `sample.mean_of` chains: [chains, n, h, w, c]."""
    chains = run.config.sample.mean_of
    keys = jax.random.split(key, chains) if chains > 1 else [key]
    found = []
    for key in keys:
        progress.note(f"chain {len(found) + 1} of {chains} for each image")
        found.append(compiled(run, fn, key, *rows))
    return np.stack(found)


class Mean(NamedTuple):
    """The mean of several chains beside one of them; of one chain, nothing."""

    arrays: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    """By heading."""
    words: str


def mean_of(chains: np.ndarray, error: Callable[[np.ndarray], float]) -> Mean:
    """The mean of chains [chains, n, h, w, c] for a task's file, its picture and its line."""
    if len(chains) == 1:
        return Mean({}, {}, "")
    mean = chains.mean(0)
    wrong = error(mean)
    rows = {with_error(f"mean of {len(chains)} chains", wrong): mean}
    return Mean({"chains": chains, "mean": mean}, rows, f", of the mean of {len(chains)} chains {wrong:.4f}")


def images_to_start_from(run: TrainedRun) -> tuple[np.ndarray, np.ndarray]:
    """`sample.num_images` random images [n, h, w, c] in [0, 1] of `sample.split`, or all if fewer, with labels.

    It says in one line what the split is.

    Raises:
      BadInput: as `identity.source_of`.
    """
    config = run.config
    images = identity.source_of(run.folder, config, config.sample.split, "sample.split")
    console.say(found.line(found.record_of(images, config.data.source, config.sample.split, digest=False)))
    count = min(config.sample.num_images, images.length)
    rows = np.sort(np.random.default_rng(config.sample.seed).permutation(images.length)[:count])
    read = [images.read(int(row)) for row in rows]
    return (
        np.stack([image for image, _ in read]).astype(np.float32) / 255.0,
        np.stack([np.asarray(label) for _, label in read]),
    )


def rows_of(rows: Mapping[str, np.ndarray | Row], title: str) -> Draw:
    """A picture with a row of images below each heading: the first COLUMNS; the title says so if there are more."""
    taken = {heading: row if isinstance(row, Row) else Row(row) for heading, row in rows.items()}
    if max(len(row.images) for row in taken.values()) > COLUMNS:
        what, line, facts = title.partition("\n")
        title = f"{what}; the first {COLUMNS}{line}{facts}"
    shown = {
        heading: row._replace(images=row.images[:COLUMNS], captions=row.captions[:COLUMNS])
        for heading, row in taken.items()
    }
    return lambda path: pictures.write_rows(path.with_suffix(".png"), shown, title)


def with_error(name: str, error: float) -> str:
    """The heading of a row of images with its error over all images, shown or not."""
    return f"{name}: mean squared error {error:.4f}"


def mean_squared_error(images: np.ndarray, others: np.ndarray) -> float:
    """The mean over all values of all images."""
    return float(np.square(images - others).mean())
