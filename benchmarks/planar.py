"""Langevin chains in two dimensions, ours and in two PyTorch libraries."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.peer import Peer
from benchmarks.table import Claim, Section
from benchmarks.timing import in_turn, timed
from ebm_jax.distributed import parallel
from ebm_jax.noise import hashed
from ebm_jax.sampling import kernel as kernels
from ebm_jax.sampling.langevin import langevin

CHAINS, STEPS, STEP_SIZE = 10_000, 1_000, 0.01
HIDDEN = 128  # units of both layers, ebmkit's default
LIBRARIES = ("torchebm", "ebmkit")


def double_well(x: jax.Array) -> jax.Array:
    """torchebm's DoubleWellModel."""
    return 2.0 * jnp.square(jnp.square(x) - 1.0).sum(1)


def perceptron(key: jax.Array):
    """ebmkit's MLPEnergy with its default layers."""
    keys, sizes = jax.random.split(key, 3), (2, HIDDEN, HIDDEN, 1)
    weights = [
        jax.random.normal(one, shape) / shape[0] ** 0.5
        for one, shape in zip(keys, itertools.pairwise(sizes), strict=True)
    ]

    def energy(x: jax.Array) -> jax.Array:
        for weight in weights[:-1]:
            x = jax.nn.swish(x @ weight)
        return (x @ weights[-1])[:, 0]

    return energy


def chains_of(energy, key):
    """All chains, on all devices."""
    kernel, mesh = langevin(STEP_SIZE, project=kernels.unbounded), parallel.device_mesh()

    def local(key, x):
        return kernels.run(kernel, parallel.device_key(key), x, energy, STEPS)[0]

    run = parallel.over_devices(local, mesh, (parallel.REPLICATED, parallel.SHARDED), parallel.SHARDED)
    x = jax.random.normal(jax.random.key(1), (CHAINS, 2))
    return lambda: run(key, x)


def section(peer: Peer | None, rounds: int) -> Section:
    """Times of all chains."""
    problems = {"double well": double_well, "MLP": perceptron(jax.random.key(0))}
    key = jax.random.key(2)
    keys = {"ours": hashed(key), "ours, threefry": jax.random.clone(key)}
    candidates = {
        f"{who}, {name}": timed(chains_of(energy, key))
        for who, key in keys.items()
        for name, energy in problems.items()
    }
    settings = {"hidden": HIDDEN, "chains": CHAINS, "num_steps": STEPS, "step_size": STEP_SIZE}
    if peer is not None:
        for library in LIBRARIES:
            for problem in problems:
                candidates[f"{library}, {problem}"] = partial(
                    peer.ask, "planar", library=library, problem=problem, **settings
                )
    times = in_turn(candidates, rounds)
    claims = []
    for problem in problems:
        for library in LIBRARIES if peer is not None else ():
            ratio = times[f"{library}, {problem}"].median / times[f"ours, {problem}"].median
            claims.append(
                Claim(f"2-D Langevin, {problem}, against {library}", "10 times as fast", f"{ratio:.1f}", ratio >= 10)
            )
    note = (
        f"{CHAINS:,} chains of {STEPS:,} steps, float32: torchebm's double well, an analytic energy, and ebmkit's MLP, "
        f"two layers of {HIDDEN} units with swish. All threads of the machine for everyone. Ours: noise of "
        "`ebm_jax.hashed` keys, and of JAX's default ones, threefry."
    )
    return Section("Two dimensions", note, times, claims)
