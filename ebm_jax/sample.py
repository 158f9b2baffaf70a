"""The verb that samples: chains from fresh noise under a run's newest valid checkpoint, as a picture and as arrays."""

import itertools
from pathlib import Path

import jax
import numpy as np

from ebm_jax import build, parallel
from ebm_jax.io import figures, report
from ebm_jax.training.state import network_params
from ebm_jax.types import Config, Params


def sample(config: Config, folder: Path) -> int:
    """Write samples/STEP_N.png, a grid, and samples/STEP_N.npz: images, labels, energies. Earlier ones stay.

    For a 2-D density the picture is of data, samples and learned density.

    Raises:
      BadInput: there is no checkpoint to sample from.
    """
    parallel.split_cpu(config.train.cpu_devices, config.buffer.capacity)
    mesh = parallel.device_mesh()
    build.check(config, mesh.size)
    restored = build.restore(folder, build.abstract_state(config, mesh))
    report.warn_skipped(restored.skipped)
    params = network_params(restored.state, build.choice(config, "sample.weights"))
    sampler, key = build.make_sampler(config, mesh), jax.random.key(config.sample.seed)
    batches, total = [], 0
    while total < config.sample.num_images:
        batches.append(jax.device_get(sampler(params, jax.random.fold_in(key, len(batches)), total)))
        total += len(batches[-1][0])
    images, labels, energies = (
        np.concatenate(parts)[: config.sample.num_images] for parts in zip(*batches, strict=True)
    )

    path = _unused(folder / "samples", restored.step)
    if config.data.source == "density":
        _write_density(path.with_suffix(".png"), config, params, images)
    else:
        report.write_grid(path.with_suffix(".png"), images)
    np.savez(path.with_suffix(".npz"), images=images, labels=labels, energies=energies)
    report.say(
        f"{len(images)} samples of step {restored.step}, {config.sample.weights} weights, {config.sample.num_steps} "
        f"chain steps from noise, mean energy {energies.mean():+.4f}"
    )
    report.say(f"wrote {path.with_suffix('.png')} and {path.with_suffix('.npz')}")
    return 0


def _write_density(path: Path, config: Config, params: Params, points: np.ndarray) -> None:
    """The figure of the 2-D law, of chains under the model of it, and of the model's density."""
    data_points = build.make_density(config).sample(np.random.default_rng(config.sample.seed), len(points))
    result, log_q = build.make_density_report(config)(params)
    figures.density_figure(path, data_points, points, log_q)
    report.say(report.density_line(result._asdict()))


def _unused(folder: Path, step: int | None) -> Path:
    """The first path STEP_N without a suffix that neither file takes."""
    numbers = (folder / f"{step:06d}_{number}" for number in itertools.count())
    return next(path for path in numbers if not path.with_suffix(".npz").exists())
