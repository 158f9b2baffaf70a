"""A chain step and a training step of CIFAR-10's ResNet32, ours and in PyTorch."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peer import Peer
from benchmarks.table import Claim, Section
from benchmarks.timing import Times, in_turn, timed
from configs import cifar10_conditional
from ebm_jax import assemble, chains, program, samplers
from ebm_jax.distributed import parallel
from ebm_jax.models import energy
from ebm_jax.sampling import kernel as kernels
from ebm_jax.types import Batch, Config

BATCH, CHAIN = 16, 20
WHOLE = cifar10_conditional.get_config().chain.num_steps
AGREE = 1e-4  # relative to the largest energy: float32 sums 256 · 16 positive values in another order
SHIPPED = "igebm-pytorch as shipped"


def configuration(dtype: str, num_steps: int = CHAIN) -> Config:
    """CIFAR-10's conditional config with a small batch."""
    config = cifar10_conditional.get_config()
    config.model.dtype, config.train.batch_size, config.chain.num_steps = dtype, BATCH, num_steps
    config.buffer.capacity = 1_024
    return config


def chain_of(config: Config, params: Any, images: Any, labels: Any):
    """The training chain of a config, from these images, on all devices."""
    apply, stages, mesh = assemble.make_apply(config), chains.make_stages(config, "chain"), parallel.device_mesh()

    def local(params, key, images, labels):
        params = parallel.varying(params)
        energy_fn = energy.bind(apply, params, labels)
        return kernels.run_stages(stages, parallel.device_key(key), images, energy_fn)[0]

    specs = (parallel.REPLICATED, parallel.REPLICATED, parallel.SHARDED, parallel.SHARDED)
    run = parallel.over_devices(local, mesh, specs, parallel.SHARDED)
    return lambda: run(params, jax.random.key(1), images, labels)


def stepper(config: Config, batch: Batch):
    """A training step that goes on from the one before."""
    mesh = parallel.device_mesh()
    step, held = program.make_step(config, mesh), [program.make_state(config, mesh)]
    placed = program.place_batch(config, mesh, batch)

    def call():
        held[0], metrics = step(held[0], placed)
        return metrics

    return call


def per_step(seconds):
    """Seconds of one step of the chain."""
    return lambda: seconds() / CHAIN


def section(peer: Peer | None, igebm: str, rounds: int) -> Section:
    """Times of all candidates, and whether the networks are the same."""
    config = configuration("float32")
    params = assemble.init_params(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.random((BATCH, 32, 32, 3), np.float32)
    labels = np.arange(BATCH, dtype=np.int32) % 10
    batch = Batch((255 * images).astype(np.uint8), labels)  # pyright: ignore[reportArgumentType]
    candidates = {}
    for dtype in ("float32", "bfloat16"):
        candidates[f"ours, {dtype}, a chain step"] = per_step(
            timed(chain_of(configuration(dtype), params, images, labels))
        )
    agreement = ""
    if peer is not None:
        energies = np.asarray(samplers.make_energy_fn(config)(params, images, labels))
        with tempfile.TemporaryDirectory() as folder:
            weights, pixels = Path(folder) / "weights.npz", Path(folder) / "images.npz"
            leaves = jax.tree_util.tree_leaves_with_path(params)
            named = {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}
            np.savez(weights, **named)  # pyright: ignore[reportArgumentType]
            np.savez(pixels, images=images, labels=labels.astype(np.int64))
            theirs = peer.ask("resnet32", weights=str(weights), images=str(pixels), num_steps=CHAIN)
        difference = float(np.abs(energies - theirs).max() / np.abs(energies).max())
        if difference > AGREE:
            raise RuntimeError(f"the networks differ: energies by {difference:.1e} of the largest")
        agreement = f" The energies of both differ by at most {difference:.1e} of the largest."
        for dtype in ("float32", "bfloat16"):
            for compiled in (False, True):
                name = f"PyTorch, {dtype}, {'compiled' if compiled else 'eager'}, a chain step"
                candidates[name] = partial(peer.ask, "tuned", dtype=dtype, compiled=compiled)
    shipped_steps: list[float] = []
    if peer is not None and igebm:
        peer.ask("igebm", clone=igebm, batch_size=BATCH, chain_steps=CHAIN)

        def shipped():
            step, chain = peer.ask("igebm_step")
            shipped_steps.append(step)
            return chain

        candidates[f"{SHIPPED}, a chain step"] = shipped
    for dtype, steps in (("float32", CHAIN), ("float32", WHOLE), ("bfloat16", WHOLE)):
        name = f"ours, {dtype}, a training step of K = {steps}"
        candidates[name] = timed(stepper(configuration(dtype, steps), batch))
    times = in_turn(candidates, rounds)
    if shipped_steps:
        times[f"{SHIPPED}, a training step of K = {CHAIN}"] = Times(shipped_steps[1:])
    note = (
        f"ResNet32 of width 128, 10 classes, batch {BATCH}, chains of {CHAIN} steps, on {parallel.device_mesh().size} "
        "devices; a chain step is the chain's time divided by its steps. PyTorch: the same network and chain, our "
        f"weights copied, channels-last, bfloat16 by autocast, with and without torch.compile.{agreement} {SHIPPED} "
        "has a network of its own, with 1x1 convolutions in three skips where ours has a 3x3 one in one: ours has 6 % "
        "more multiplications. It normalises its kernels anew at every step of the chain, and takes the gradients of "
        "its parameters there too: its generator of parameters is used up when it would turn them off."
    )
    return Section("CIFAR-10, ResNet32", note, times, claims(times))


def claims(times: dict[str, Times]) -> list[Claim]:
    """Ratios of medians."""
    chain = {dtype: times[f"ours, {dtype}, a chain step"].median for dtype in ("float32", "bfloat16")}
    found = []
    if f"{SHIPPED}, a chain step" in times:
        shipped = times[f"{SHIPPED}, a chain step"].median
        for dtype, target in (("float32", 1.25), ("bfloat16", 3.0)):
            ratio = shipped / chain[dtype]
            found.append(
                Claim(
                    f"chain step, {dtype}, against {SHIPPED}",
                    f"{target:g} times as fast",
                    f"{ratio:.2f}",
                    ratio >= target,
                )
            )
    for dtype in ("float32", "bfloat16"):
        tuned = [value.median for name, value in times.items() if name.startswith(f"PyTorch, {dtype}")]
        if tuned:
            ratio = min(tuned) / chain[dtype]
            found.append(
                Claim(
                    f"chain step, {dtype}, against tuned PyTorch",
                    "not behind",
                    f"{ratio:.2f} times as fast",
                    ratio >= 1,
                )
            )
    for dtype in chain:
        ratio = times[f"ours, {dtype}, a training step of K = {WHOLE}"].median / ((WHOLE + 3) * chain[dtype])
        measure = f"training step of K = {WHOLE}, CIFAR-10, {dtype}, over K + 3 chain steps"
        found.append(Claim(measure, "at most 1.10", f"{ratio:.2f}", ratio <= 1.10))
    return found
