"""The verb that does the task `sample.task` with a trained run, and writes its result as files."""

import jax
import numpy as np

from ebm_jax import capacity, checks, opening, registry, tasks
from ebm_jax.distributed import parallel
from ebm_jax.report import console, progress, rewriting
from ebm_jax.storage import bucket
from ebm_jax.storage.workdir import unused
from ebm_jax.storage.writing import replacing, require_no_links
from ebm_jax.tasks.common import Result
from ebm_jax.types import Config, Folder


def sample(config: Config, folder: str | Folder) -> int:
    """Write a picture samples/TASK_STEP_N.png and arrays .npz; a film has a .gif too. Earlier files stay.

    Task `generate` writes STEP_N without TASK. For a 2-D density its picture shows data, samples and learned density.

    Returns:
      The exit status 0.

    Raises:
      BadInput: there is no checkpoint to sample from, or the task does not fit the run.
    """
    folder = bucket.folder_of(folder)
    parallel.split_cpu(config.train.cpu_devices, config.buffer.capacity, config.sample.buffer_capacity)
    mesh = parallel.device_mesh()
    checks.check(config, mesh.size)
    require_no_links(folder)
    config = opening.with_numbers(config, folder)
    tasks.check(config, mesh.size)
    capacity.check_samples_fit(config)
    task = tasks.task_of(config)
    with progress.Board(f"sampling from {folder}"):
        run = opening.open_run(folder, config, mesh, ensemble=task.ensemble)
        console.warn_skipped(run.skipped)
        with progress.phase(f"task {config.sample.task} of {config.sample.num_images:,}"):
            result = task.run(run, jax.random.key(config.sample.seed))
        written = _write(config, folder, run.step, result)
    if config.log.report:
        rewriting.write(folder)
    console.say(result.line)
    console.say_written(*written)
    console.say(_next(config, folder))
    return 0


def _write(config: Config, folder: Folder, step: int, result: Result) -> list[Folder]:
    """Write the result's picture, its film if it has one, and its arrays under the first free number."""
    name = "" if config.sample.task == "generate" else f"{registry.file_name(config.sample.task)}_"
    path = unused(folder / "samples", f"{name}{step:06d}", ".npz")
    with bucket.staged(folder) as staged:
        here = staged / path.relative_to(folder).as_posix()
        here.parent.mkdir(parents=True, exist_ok=True)
        with progress.phase("drawing"):
            result.draw(here)
        with replacing(here.with_suffix(".npz")) as file:
            np.savez(file, **result.arrays)  # pyright: ignore[reportArgumentType]
        suffixes = {file.suffix for file in here.parent.glob(f"{here.name}.*")}
    return [path.with_suffix(suffix) for suffix in sorted(suffixes, key=lambda suffix: (suffix == ".npz", suffix))]


def _next(config: Config, folder: Folder) -> str:
    """The command to paste next: another view of the run."""
    if config.data.source == "density":
        return console.next_command("take it elsewhere", folder, "export")
    if config.sample.task == "generate":
        return console.next_command("see them come about", folder, "sample", "--config.sample.task=film")
    return console.next_command("measure the run", folder, "evaluate")
