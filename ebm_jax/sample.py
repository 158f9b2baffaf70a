"""The verb that does the task `sample.task` with a trained run, and writes its result as files."""

import jax
import numpy as np

from ebm_jax import capacity, checks, registry, tasks, trained
from ebm_jax.distributed import parallel
from ebm_jax.report import console, rewriting
from ebm_jax.storage import bucket
from ebm_jax.storage.workdir import unused
from ebm_jax.storage.writing import replacing, require_no_links
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
    config = trained.with_numbers(config, folder)
    tasks.check(config, mesh.size)
    capacity.check_samples_fit(config)
    task = tasks.task_of(config)
    run = trained.open_run(folder, config, mesh, ensemble=task.ensemble)
    console.warn_skipped(run.skipped)
    result = task.run(run, jax.random.key(config.sample.seed))
    name = "" if config.sample.task == "generate" else f"{registry.file_name(config.sample.task)}_"
    path = unused(folder / "samples", f"{name}{run.step:06d}", ".npz")
    with bucket.staged(folder) as staged:
        here = staged / path.relative_to(folder).as_posix()
        here.parent.mkdir(parents=True, exist_ok=True)
        result.draw(here)
        with replacing(here.with_suffix(".npz")) as file:
            np.savez(file, **result.arrays)  # pyright: ignore[reportArgumentType]
    if config.log.report:
        rewriting.write(folder)
    console.say(result.line)
    console.say(f"wrote {path.with_suffix('.png')} and {path.with_suffix('.npz')}")
    return 0
