"""The cost of the guard's monitors: a training step with and without them, and judging its metrics.

python -m benchmarks.guard [--config digits_contrastive] [--rounds 60] [--width 32] [--cpu-time]
"""

import argparse
import importlib
import time
from unittest import mock

import jax
import numpy as np

from benchmarks.timing import medians
from ebm_jax import assemble, program
from ebm_jax.distributed import parallel
from ebm_jax.methods import contrastive
from ebm_jax.training import guard, monitors
from ebm_jax.types import Batch


def main() -> None:
    """Print the two medians, their ratio, and the host's time for one judgement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="digits_contrastive")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--width", type=int, help="of the network; that of the config if not given")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, on a machine with other jobs")
    words = parser.parse_args()
    config = importlib.import_module(f"configs.{words.config}").get_config()
    config.model.width = words.width or config.model.width
    mesh = parallel.device_mesh(jax.devices()[:1])
    pixels = np.float32 if config.model.name == "mlp" else np.uint8
    images = np.zeros((config.train.batch_size, *config.data.shape), pixels)
    batch = program.place_batch(config, mesh, Batch(images, np.zeros(config.train.batch_size, np.int32)))  # pyright: ignore[reportArgumentType]

    def stepper():
        step, held = program.make_step(config, mesh), [program.make_state(config, mesh)]

        def call():
            held[0], metrics = step(held[0], batch)
            return metrics

        jax.block_until_ready(call())
        return call

    clock = time.process_time if words.cpu_time else time.perf_counter
    watched = stepper()
    with (
        mock.patch.multiple(monitors, of_values=nothing, of_kernels=nothing),
        mock.patch.object(contrastive, "of_chains", nothing),
    ):
        plain = stepper()
    names = set(watched()) - set(plain())
    seconds = medians({"with": watched, "without": plain, "again": plain}, words.rounds, clock)
    metrics, limits, health = jax.device_get(watched()), assemble.make_method(config).limits, guard.HEALTHY
    start = clock()
    for _ in range(1000):
        health, _ = guard.judge(health, metrics, limits)
    judging = (clock() - start) / 1000
    print(f"{words.config}: monitors {', '.join(sorted(names))}")
    print(f"step with them {1e3 * seconds['with']:.2f} ms, without {1e3 * seconds['without']:.2f} ms")
    ratio, noise = (seconds[name] / seconds["without"] for name in ("with", "again"))
    print(f"ratio {ratio:.4f}; of the same program twice {noise:.4f}")
    print(f"judgement {1e6 * judging:.0f} µs, on the host while the next step runs")


def nothing(*values: object) -> dict:
    """No monitor."""
    del values
    return {}


if __name__ == "__main__":
    main()
