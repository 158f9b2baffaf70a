"""Task `generate`: samples from chains that start from noise, or from the run's sampling buffer."""

from pathlib import Path

import numpy as np

from ebm_jax import samplers
from ebm_jax.data.found import shown, some
from ebm_jax.report import console, figures, pictures, progress, style
from ebm_jax.storage import checkpoint
from ebm_jax.tasks.common import Result, check_one_label_each
from ebm_jax.trained import Generated, TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey


def check(config: Config) -> None:
    """Refuse labels that the model does not have.

    Raises:
      BadInput: with the labels.
    """
    check_one_label_each(config)


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Samples: chains from noise, or those of the sampling buffer after more rounds."""
    config = run.config
    if config.sample.buffer_capacity:
        found, origin = _continued(run, key)
    else:
        found, origin = run.samples(key, progress.note), f"from noise by {style.steps(config)}{style.kept(config)}"

    def draw(path: Path) -> None:
        title = run.title(f"{len(found.images)} samples", origin)
        if config.data.source == "density":
            _write_density(path.with_suffix(".png"), run, found.images, title)
        else:
            names, classes = run.names_of(found.labels), run.in_words(found.labels)
            pictures.write_grid(path.with_suffix(".png"), found.images, names, title=title, classes=classes)

    line = f"{len(found.images)} samples of step {run.step}, {config.sample.weights} weights, {origin}, "
    line += f"mean energy {found.energies.mean():+.4f}"
    if names := run.names_of(np.unique(found.labels)):
        line += f", of {'class' if len(names) == 1 else 'classes'} {some(list(map(shown, names)))}"
    return Result(found._asdict(), draw, line)


def _continued(run: TrainedRun, key: PRNGKey) -> tuple[Generated, str]:
    """Restore the run's sampling buffer, move it on by `sample.rounds`, save it, and take its oldest chains."""
    config, folder = run.config, run.folder
    init, advance, abstract = samplers.make_rounds(config, run.mesh)
    directory = f"sampling_buffer_{config.sample.buffer_capacity}"
    with checkpoint.open_manager(folder, keep=2, directory=directory) as manager:
        restored = checkpoint.restore_newest(manager, abstract)
        for number, reason in restored.skipped.items():
            console.warn(f"skipped a damaged sampling buffer, round {number}: {reason}")
        if restored.step is None and restored.skipped:
            raise BadInput(
                f"every copy of the sampling buffer in {folder / directory} is damaged; move that folder away to "
                "begin a new one"
            )
        checkpoint.set_aside(manager, folder, restored.skipped, directory)
        buffer = init(key) if restored.step is None else restored.state
        console.say(f"sampling buffer of {config.sample.buffer_capacity} chains, {restored.step or 0} rounds so far")
        for _ in range(config.sample.rounds):
            buffer = advance(run.params, key, buffer)
            progress.note(f"round {int(buffer.rounds):,} of the sampling buffer")
        done = (restored.step or 0) + config.sample.rounds
        checkpoint.save(manager, done, buffer)
    images, labels, _ = samplers.oldest_chains(config, buffer, config.sample.num_images)
    found = Generated(images, labels, run.energy_of(images, labels))
    return found, f"sampling buffer after {done} rounds of {config.sample.num_steps} chain steps"


def _write_density(path: Path, run: TrainedRun, points: np.ndarray, title: str) -> None:
    """Draw the 2-D law, the model's samples and the model's density; print how far both laws differ."""
    result, log_q = samplers.make_density_report(run.config)(run.params)
    figures.density_figure(path, samplers.true_log_density(run.config), points, log_q, title=title)
    console.say(console.density_line(result._asdict()))
