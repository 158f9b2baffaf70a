"""The verb that uses a trained run: chains from noise, from a sampling buffer, or one of the tasks, as files."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from ebm_jax import assemble, capacity, checks, trained
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.report import console, figures, pictures
from ebm_jax.storage import bucket, checkpoint
from ebm_jax.storage.workdir import unused
from ebm_jax.tasks import common
from ebm_jax.types import BadInput, Config, Folder, Params


def sample(config: Config, folder: Folder) -> int:
    """Write samples/TASK_STEP_N.png, a picture, and .npz, the arrays; a film has a .gif too. Earlier ones stay.

    For samples of a 2-D density the picture is of data, samples and learned density.

    Raises:
      BadInput: there is no checkpoint to sample from, or the task does not fit the run.
    """
    parallel.split_cpu(config.train.cpu_devices, config.buffer.capacity, config.sample.buffer_capacity)
    mesh = parallel.device_mesh()
    checks.check(config, mesh.size)
    checks.check_task(config, mesh.size)
    capacity.check_samples_fit(config)
    task = config.sample.task
    if task == "compose":  # sample.with_runs are parts of a sum there, not members
        found = trained.restore_params(folder, config, mesh, config.sample.snapshots)
    else:
        found = trained.restore_ensemble(folder, config, mesh)
    console.warn_skipped(found.skipped)
    params, step = found.params, found.step or 0
    name = "" if task == "generate" else f"{task}_"
    if task == "generate":
        result = _generate(config, folder, mesh, params, step)
    else:
        key = jax.random.key(config.sample.seed)
        result = common.TASKS[task](common.Run(config, params, mesh, assemble.make_stages(config), key))
    path = unused(folder / "samples", f"{name}{step:06d}", ".npz")
    with bucket.staged(folder) as staged:
        here = staged / path.relative_to(folder).as_posix()
        here.parent.mkdir(parents=True, exist_ok=True)
        result.draw(here)
        np.savez(here.with_suffix(".npz"), **result.arrays)  # pyright: ignore[reportArgumentType]
    console.say(result.line)
    console.say(f"wrote {path.with_suffix('.png')} and {path.with_suffix('.npz')}")
    return 0


def _generate(config: Config, folder: Folder, mesh: Mesh, params: Params, step: int) -> common.Result:
    """Chains from fresh noise, or those of the sampling buffer after some more rounds."""
    if config.sample.buffer_capacity:
        images, labels, energies, origin = _continued(config, folder, mesh, params)
    else:
        batches = trained.fresh_batches(config, mesh, params, jax.random.key(config.sample.seed))
        images, labels, energies = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        origin = f"{config.sample.num_steps} chain steps from noise"

    def draw(path: Path) -> None:
        if config.data.source == "density":
            _write_density(path.with_suffix(".png"), config, params, images)
        else:
            pictures.write_grid(path.with_suffix(".png"), images)

    line = f"{len(images)} samples of step {step}, {config.sample.weights} weights, {origin}, "
    line += f"mean energy {energies.mean():+.4f}"
    return common.Result({"images": images, "labels": labels, "energies": energies}, draw, line)


def _continued(
    config: Config, folder: Folder, mesh: Mesh, params: Params
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """The oldest chains of the run's sampling buffer, which is restored, moved on by some rounds, and saved again."""
    init, advance, abstract = trained.make_rounds(config, mesh)
    directory = f"sampling_buffer_{config.sample.buffer_capacity}"
    with checkpoint.open_manager(folder, keep=2, directory=directory, warn=console.warn) as manager:
        restored = checkpoint.restore_newest(manager, abstract)
        for number, reason in restored.skipped.items():
            console.warn(f"skipped a damaged sampling buffer, round {number}: {reason}")
        if restored.step is None and restored.skipped:
            raise BadInput(
                f"every copy of the sampling buffer in {folder / directory} is damaged; move that folder away to "
                "begin a new one"
            )
        checkpoint.set_aside(manager, folder, restored.skipped, directory)
        key = jax.random.key(config.sample.seed)
        buffer = init(key) if restored.step is None else restored.state
        console.say(f"sampling buffer of {config.sample.buffer_capacity} chains, {restored.step or 0} rounds so far")
        for _ in range(config.sample.rounds):
            buffer = advance(params, key, buffer)
        done = (restored.step or 0) + config.sample.rounds
        checkpoint.save(manager, done, buffer)
    images, labels, _ = trained.oldest_chains(config, buffer, config.sample.num_images)
    energies = _energies(config, params, images, labels)
    return images, labels, energies, f"sampling buffer after {done} rounds of {config.sample.num_steps} chain steps"


def _energies(config: Config, params: Params, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    energy_fn, size = jax.jit(trained.make_energy_fn(config)), config.sample.batch_size
    parts = [energy_fn(params, images[at : at + size], labels[at : at + size]) for at in range(0, len(images), size)]
    return np.concatenate([np.asarray(part) for part in parts])


def _write_density(path: Path, config: Config, params: Params, points: np.ndarray) -> None:
    """The figure of the 2-D law, of chains under the model of it, and of the model's density."""
    data_points = sources.make_density(config).sample(np.random.default_rng(config.sample.seed), len(points))
    result, log_q = trained.make_density_report(config)(params)
    figures.density_figure(path, data_points, points, log_q)
    console.say(console.density_line(result._asdict()))
