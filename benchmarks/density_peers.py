"""Our trainer against torchebm's persistent contrastive divergence on two densities, for the same seconds of training.

    python -m benchmarks.density_peers --peer-python PATH [--seconds 40] [--densities eight_gaussians,checkerboard]

PATH is the interpreter of a separate environment with torchebm 0.8.0 and torch for the CPU. The two run one after the
other. Ours is configs/density2d.py as it is. Both have the same data points, network, law of initial weights, batch,
number of chain steps, buffer capacity, learning rate, Adam's β and measuring grid. Each has its own chain (ours MALA;
torchebm's Langevin, clamped to the box, begun in uniform noise) and treats the chains of the buffer its own way (ours
restarts 2 %, torchebm perturbs 5 %). Ours clips gradients. PEER has torchebm's other settings, the best of a short
search on eight_gaussians (threads, β1, capacity, learning rate, step size; 8 to 30 seconds a run). torchebm does not
average weights; it gets three averages beside the last weights, and the best of the four counts.

Our clock starts after compilation, the peer's after a second of training that is thrown away. CPU seconds count all
threads of the process: on a machine that others load, wall time says less.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import density2d
from ebm_jax import program, samplers
from ebm_jax.data.densities import DENSITIES
from ebm_jax.distributed import parallel
from ebm_jax.metrics import density
from ebm_jax.training.state import network_params
from ebm_jax.types import Batch, Config

PEER_SCRIPT = Path(__file__).with_name("density_torchebm.py")
NUM_POINTS = 200_000
SIDE = 400
WEIGHTS = {"last": False, "averaged": True}
COUNTS = ("steps", "seconds", "cpu_seconds")
PEER = {"step_size": 2e-4, "energy_l2": 1e-4, "ema_decays": [0.99, 0.997, 0.999]}


def recipe_of(config: Config) -> dict[str, Any]:
    """The settings that the peer must share."""
    return {
        "width": config.model.width,
        "batch_size": config.train.batch_size,
        "chain_steps": config.chain.num_steps,
        "learning_rate": config.optim.learning_rate,
        "b1": config.optim.b1,
        "capacity": config.buffer.capacity,
    }


def ours(config: Config, seconds: float, data: np.ndarray, points: np.ndarray) -> dict[str, Any]:
    """Train on points [n, 2]; energies [m] at `points` [m, 2] of the last and averaged weights, steps and seconds."""
    mesh = parallel.device_mesh()
    step, energy_fn = program.make_step(config, mesh), samplers.make_energy_fn(config)
    rng, labels = np.random.default_rng(0), np.zeros(config.train.batch_size, np.int32)

    def advance(state):
        rows = data[rng.integers(len(data), size=len(labels))]
        batch = Batch(rows, labels)  # pyright: ignore[reportArgumentType]
        return jax.block_until_ready(step(state, parallel.place_batch(mesh, batch))[0])

    advance(program.make_state(config, mesh))
    state = program.make_state(config, mesh)
    start, start_cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        state = advance(state)
        steps += 1
    counts = {"steps": steps, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    params = {name: network_params(state, ema) for name, ema in WEIGHTS.items()}
    return counts | {
        name: density.grid_energies(lambda x, tree=tree: energy_fn(tree, x), points) for name, tree in params.items()
    }


def torchebm(peer_python: str, recipe: dict[str, Any], data: np.ndarray, points: np.ndarray) -> dict[str, Any]:
    """The same as `ours`, by torchebm in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        recipe_path, in_path, out_path = (Path(folder) / name for name in ("recipe.json", "in.npz", "out.npz"))
        recipe_path.write_text(json.dumps(recipe))
        np.savez(in_path, data=data, points=points.astype(np.float32))
        subprocess.run([peer_python, PEER_SCRIPT, recipe_path, in_path, out_path], check=True)
        with np.load(out_path) as arrays:
            return {name: array.astype(np.float64) for name, array in arrays.items()}


def main() -> None:
    """Print a row for each density, library, seed and kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--densities", default="eight_gaussians,checkerboard")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--peer-threads", default="1")
    args = parser.parse_args()
    config = density2d.get_config()
    parallel.split_cpu(0, config.train.batch_size, config.buffer.capacity)
    points = density.grid(SIDE)
    print("density          library     seed weights   seconds  CPU s  steps      KL     NLL")
    for name in args.densities.split(","):
        data = DENSITIES[name].sample(np.random.default_rng(0), NUM_POINTS)
        log_density = DENSITIES[name].log_density(points)
        for seed in map(int, args.seeds.split(",")):
            config.train.seed = seed
            runs = {"ebm_jax": ours(config, args.seconds, data, points)}
            for threads in map(int, args.peer_threads.split(",")):
                recipe = recipe_of(config) | PEER | {"seed": seed, "threads": threads, "seconds": args.seconds}
                runs[f"torchebm/{threads}"] = torchebm(args.peer_python, recipe, data, points)
            for library, run in runs.items():
                counts = f"{float(run['seconds']):7.1f} {float(run['cpu_seconds']):6.1f} {int(run['steps']):6d}"
                for weights in sorted(set(run) - set(COUNTS)):
                    result = density.report_of_energies(run[weights], log_density)
                    line = f"{name:16s} {library:11s} {seed:4d} {weights:9s} {counts}"
                    print(f"{line} {result.kl:7.3f} {result.nll:7.3f}", flush=True)


if __name__ == "__main__":
    main()
