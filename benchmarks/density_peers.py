"""Our trainer against torchebm's persistent contrastive divergence on two densities, for the same seconds of training.

    python -m benchmarks.density_peers --peer-python PATH [--seconds 30] [--densities eight_gaussians,checkerboard]

PATH is the interpreter of an environment of its own with torchebm 0.8.0 and torch for the CPU. The two run one after
the other. Equal for both: the points of data, the network, its initialisation's law, batch, chain (number of steps,
tied step size, clamped to the box, begun in uniform noise), learning rate, λ, weight averaging and the grid that
measures them. Their own: what the buffer does with the chains (ours restarts 2 %, torchebm perturbs 5 %), our clipping
of gradients, and what RECIPE says under `peer_` and `our_`.

RECIPE comes from a short search by the averaged weights' KL on eight_gaussians, one change at a time, one seed, 8 to 10
seconds a run on a loaded machine. The peer had seven runs: threads 1 and 2, β1 0 and 0.9, capacity 256, 512, 2,560 and
10,000, rate 1e-3 and 2e-3. Ours had three: capacity 256 and 2,560, step size 1e-4 and 2e-4. Nothing was searched on
checkerboard.

The clock starts after our compilation, and after a second of training that is thrown away on the peer's side. CPU
seconds are those of the process with all its threads: on a machine that others load, wall time says less.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import parallel
from ebm_jax.evaluation import density
from ebm_jax.io.densities import DENSITIES
from ebm_jax.models import energy, networks
from ebm_jax.sampling import replay
from ebm_jax.sampling.langevin import langevin
from ebm_jax.training import losses
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.training.state import PARTITION, init_state
from ebm_jax.training.step import make_train_step
from ebm_jax.types import Batch

PEER_SCRIPT = Path(__file__).with_name("density_torchebm.py")
NUM_POINTS = 200_000
SIDE = 200
RECIPE: dict[str, Any] = {
    "width": 64,
    "batch_size": 256,
    "chain_steps": 20,
    "step_size": 2e-4,
    "learning_rate": 2e-3,
    "energy_l2": 1e-4,
    "ema_decay": 0.99,
    "capacity": 256,
    "our_restart_prob": 0.02,
    "our_b1": 0.0,
    "peer_b1": 0.0,
    "peer_threads": 1,
}


def ours(recipe: dict[str, Any], data: np.ndarray, points: np.ndarray) -> dict[str, Any]:
    """Train on points [n, 2]; energies [m] at `points` [m, 2] of the last and averaged weights, steps and seconds."""
    network = networks.Mlp(width=recipe["width"])
    scaled = energy.from_module(network)

    def apply(params, images, labels=None, dropout_key=None):
        return scaled(params, 8.0 * (images - 0.5))

    mesh = parallel.device_mesh(jax.devices()[:1])
    optimizer = clipped_adam(recipe["learning_rate"], recipe["our_b1"], 0.999)
    step = make_train_step(
        apply,
        langevin(recipe["step_size"]),
        losses.regularised(losses.contrastive_divergence, recipe["energy_l2"], losses.energy_l2_sum),
        optimizer,
        chain_steps=recipe["chain_steps"],
        restart_prob=recipe["our_restart_prob"],
        ring=False,
        ema_decay=recipe["ema_decay"],
    )
    step = parallel.over_devices(step, mesh, (PARTITION, parallel.SHARDED), (PARTITION, parallel.REPLICATED), (0,))

    def fresh():
        params = network.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
        buffer = replay.init(jax.random.key(1), recipe["capacity"], (2,), 1)
        return init_state(jax.random.key(2), params, {}, optimizer, buffer)

    init = jax.jit(fresh, out_shardings=parallel.shardings(mesh, PARTITION))
    rng, labels = np.random.default_rng(0), np.zeros(recipe["batch_size"], np.int32)

    def advance(state):
        rows = data[rng.integers(len(data), size=len(labels))]
        batch = Batch(rows, labels)  # pyright: ignore[reportArgumentType]
        return jax.block_until_ready(step(state, parallel.place_batch(mesh, batch))[0])

    advance(init())
    state = init()
    start, start_cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < recipe["seconds"]:
        state = advance(state)
        steps += 1
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    kinds = {"last": state.params, "averaged": state.ema}
    energies = {name: density.grid_energies(energy.bind(apply, params), points) for name, params in kinds.items()}
    return {**energies, "steps": steps, "seconds": seconds, "cpu_seconds": cpu_seconds}


def torchebm(peer_python: str, recipe: dict[str, Any], data: np.ndarray, points: np.ndarray) -> dict[str, Any]:
    """As `ours`, by torchebm in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        recipe_path, in_path, out_path = (Path(folder) / name for name in ("recipe.json", "in.npz", "out.npz"))
        recipe_path.write_text(json.dumps(recipe))
        np.savez(in_path, data=data, points=points.astype(np.float32))
        subprocess.run([peer_python, PEER_SCRIPT, recipe_path, in_path, out_path], check=True)
        with np.load(out_path) as arrays:
            return {name: array.astype(np.float64) for name, array in arrays.items()}


def main() -> None:
    """Print a row for each density, library and kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--densities", default="eight_gaussians,checkerboard")
    parser.add_argument("--set", default="{}", help="JSON of entries of RECIPE to change")
    args = parser.parse_args()
    recipe = {**RECIPE, "seconds": args.seconds, **json.loads(args.set)}
    points = density.grid(SIDE)
    libraries: dict[str, Callable[..., dict[str, Any]]] = {
        "ebm_jax": ours,
        "torchebm": lambda *arguments: torchebm(args.peer_python, *arguments),
    }
    print("density          library   weights   seconds  CPU s  steps      KL     NLL")
    for name in args.densities.split(","):
        data = DENSITIES[name].sample(np.random.default_rng(0), NUM_POINTS)
        log_density = DENSITIES[name].log_density(points)
        for library, train in libraries.items():
            run = train(recipe, data, points)
            for weights in ("last", "averaged"):
                report = density.report_of_energies(run[weights], log_density)
                counts = f"{float(run['seconds']):7.1f} {float(run['cpu_seconds']):6.1f} {int(run['steps']):6d}"
                print(f"{name:16s} {library:9s} {weights:9s} {counts} {report.kl:7.3f} {report.nll:7.3f}", flush=True)


if __name__ == "__main__":
    main()
