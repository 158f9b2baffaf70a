"""Task `film`: chains from noise, as a film."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import applications
from ebm_jax.labels import sample_labels
from ebm_jax.report import pictures, progress, style
from ebm_jax.sampling.kernel import Stages
from ebm_jax.tasks.common import COLUMNS, Result, check_images, check_one_label_each
from ebm_jax.trained import TrainedRun
from ebm_jax.types import Config, EnergyFn, Images, PRNGKey


def check(config: Config) -> None:
    """Refuse data that are no images.

    Raises:
      BadInput: with the data's name.
    """
    check_images(config, "film")
    check_one_label_each(config)


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """The way from noise to the samples of `generate`, as a film and a strip."""
    number, every = run.config.sample.num_images, run.config.sample.film.every

    def chain(key: PRNGKey, x: Images, energy_fn: EnergyFn, stages: Stages) -> jax.Array:
        return jnp.moveaxis(applications.film(key, x, energy_fn, stages, every), 0, 1)

    frames = np.moveaxis(run.chains(key, chain, note=progress.note), 1, 0)
    labels = np.asarray(sample_labels(run.config, jnp.arange(number)))

    shown = dict(zip(frame_steps(run.config, len(frames)), frames, strict=True))  # of two frames of one step the last

    def draw(path: Path) -> None:
        steps, at_steps = list(shown), np.stack(list(shown.values()))
        facts = style.steps(run.config), "start: noise"
        title = run.title(f"{number} chains", *facts)
        pictures.write_film(path.with_suffix(".gif"), at_steps, steps, title, run.names_of(labels))
        title = run.title(f"{min(number, COLUMNS)} chains from left to right", *facts)
        names = run.names_of(labels[:COLUMNS])
        pictures.write_strip(path.with_suffix(".png"), at_steps[:, :COLUMNS], steps, title, names)

    line = f"{len(frames)} frames of {number} chains, {every} steps apart"
    return Result({"frames": frames, "labels": labels}, draw, line)


def frame_steps(config: Config, number: int) -> list[int]:
    """The steps of descent and of the chain that so many frames of a film come after.

    The last stage of some chains only brings images into their range, and counts as no step.
    """
    total = config.sample.descent_steps + config.sample.num_steps
    return [min(place * config.sample.film.every, total) for place in range(number - 1)] + [total]
