"""How long a save holds up training, against the time of a step.

    python -m benchmarks.saving [configs/digits_contrastive.py configs/fashion_mnist_contrastive.py ...] [--rounds 15]

The claim: a save blocks a step by at most 10 % of its time at the config's own interval. One process times a step, a
save and the wait for its files in turn, on noise for data. In a run the next steps go on while the files are written.
"""

import argparse
import runpy
import statistics
import tempfile
import time
from pathlib import Path

import jax

from ebm_jax import program
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.report import console
from ebm_jax.storage import checkpoint
from ebm_jax.storage.fingerprint import fingerprint

PHASES = ("step", "fingerprint", "save", "files")


def measure(path: str, rounds: int) -> None:
    """Print the medians of a step, a save's pause and its files, and the pause's share at the config's interval."""
    config = runpy.run_path(path)["get_config"]().unlock()
    config.data.source = "noise"
    mesh = parallel.device_mesh()
    state, train_step = program.make_state(config, mesh), program.make_step(config, mesh)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key))))
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    with tempfile.TemporaryDirectory() as folder, sources.open_batches(config, console.warn) as batches:
        batch = program.place_batch(config, mesh, batches(0))
        with checkpoint.open_manager(Path(folder)) as manager:
            for number in range(rounds + 1):
                marks = [time.perf_counter()]
                state, metrics = train_step(state, batch)
                jax.block_until_ready((state, metrics))
                marks.append(time.perf_counter())
                fingerprint(state)
                marks.append(time.perf_counter())
                checkpoint.save(manager, number, state)
                marks.append(time.perf_counter())
                manager.wait_until_finished()
                marks.append(time.perf_counter())
                if number:  # the first compiles
                    for phase, start, end in zip(PHASES, marks, marks[1:], strict=False):
                        times[phase].append(end - start)
    seconds = {phase: statistics.median(values) for phase, values in times.items()}
    pause = seconds["save"] / seconds["step"]
    print(f"{path}: state of {size / 2**20:.1f} MiB on {mesh.size} devices, medians of {rounds}")
    for phase, value in seconds.items():
        print(f"  {phase:12s}{1e3 * value:9.1f} ms")
    every = config.checkpoint.every
    print(f"  a save holds up one step by {pause:.0%}, and each of the {every} to the next one by {pause / every:.3%}")


def main() -> None:
    """Measure each config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "configs", nargs="*", default=["configs/digits_contrastive.py", "configs/fashion_mnist_contrastive.py"]
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    parallel.split_cpu(0, 64)
    for path in args.configs:
        measure(path, args.rounds)


if __name__ == "__main__":
    main()
