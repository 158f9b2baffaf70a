"""Ours beside its own limits: the step, the scan, the buffer, the start, the memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from jax import lax

from benchmarks.resnet import chain_of, stepper
from benchmarks.table import Claim, Section
from benchmarks.timing import Times, in_turn, timed
from configs import cifar10
from configs import digits_contrastive as digits
from configs import fashion_mnist_contrastive as fashion_mnist
from ebm_jax import assemble, program
from ebm_jax.distributed import parallel
from ebm_jax.models import energy, networks
from ebm_jax.types import Batch, Config

ROOT = Path(__file__).parents[1]
GIB = 2**30


def noise_batch(config: Config) -> Batch:
    """Uniform noise in the place of data."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.train.batch_size, *config.data.shape), np.uint8)
    return Batch(images, np.zeros(config.train.batch_size, np.int32))  # pyright: ignore[reportArgumentType]


def chain(config: Config):
    """The config's training chain from noise, as a call."""
    images, labels = noise_batch(config)
    return chain_of(config, assemble.init_params(config, jax.random.key(0)), images.astype(np.float32) / 255, labels)


def step_section(rounds: int) -> Section:
    """The whole step of the laptop's configs over K + 3 steps of its chain."""
    candidates, lengths = {}, {}
    for name, module in (("digits", digits), ("fashion_mnist", fashion_mnist)):
        config = module.get_config()
        lengths[name] = config.chain.num_steps
        candidates[f"ours, {name}, the chain of {lengths[name]} steps"] = timed(chain(config))
        candidates[f"ours, {name}, the training step"] = timed(stepper(config, noise_batch(config)))
    times = in_turn(candidates, 4 * rounds)
    claims = []
    for name, steps in lengths.items():
        one = times[f"ours, {name}, the chain of {steps} steps"].median / steps
        ratio = times[f"ours, {name}, the training step"].median / ((steps + 3) * one)
        measure = f"training step of K = {steps}, {name}, over K + 3 chain steps"
        claims.append(Claim(measure, "at most 1.10", f"{ratio:.2f}", ratio <= 1.10))
    note = "The whole training step (replay, data, loss, optimiser, monitors) and the chain alone, configs as they are."
    return Section("The training step on a laptop", note, times, claims)


def scan_section(rounds: int) -> Section:
    """An input gradient inside a chain's scan and outside."""
    length = 6
    x = jax.random.uniform(jax.random.key(0), (16, 32, 32, 3))
    network = networks.resnet32(width=128, num_classes=1, spectral_norm=False)
    params = network.init(jax.random.key(1), x)["params"]
    apply = energy.from_module(network)
    gradient = jax.grad(lambda x, params: apply(params, x).sum())
    once = jax.jit(lambda x, params: x - 1e-3 * gradient(x, params))
    scanned = jax.jit(
        lambda x, params: lax.scan(lambda x, _: (x - 1e-3 * gradient(x, params), None), x, None, length)[0]
    )
    inside = timed(lambda: scanned(x, params))
    candidates = {"ours, outside": timed(lambda: once(x, params)), "ours, inside": lambda: inside() / length}
    times = in_turn(candidates, rounds)
    ratio = times["ours, inside"].median / times["ours, outside"].median
    claim = Claim("input gradient inside the scan, over one outside", "at most 1.05", f"{ratio:.2f}", ratio <= 1.05)
    note = (
        f"ResNet32 of width 128, batch 16, one device, {length} gradients in the scan. Below 1 because what belongs to "
        "the kernels alone (Winograd's transform) is done once for the whole scan and at every call outside."
    )
    return Section("The scan", note, times, [claim])


def capacity_section(rounds: int) -> Section:
    """A digits step with a small and a large buffer."""
    sizes, candidates = (1_024, 1_048_576), {}
    for capacity in sizes:
        config = digits.get_config()
        config.buffer.capacity = capacity
        candidates[f"ours, {capacity:,} rows"] = timed(stepper(config, noise_batch(config)))
    times = in_turn(candidates, 8 * rounds)
    small, large = (times[f"ours, {capacity:,} rows"].median for capacity in sizes)
    ratio = large / small
    claim = Claim(
        "training step, replay buffer of 1k rows to 1M", "within 5 %", f"{ratio:.3f} times", abs(ratio - 1) <= 0.05
    )
    return Section("The buffer", "configs/digits_contrastive.py, all else as it is.", times, [claim])


def linear_section(rounds: int) -> Section:
    """A step against the chain's length and against the batch."""
    lengths, batches, times, claims = (5, 10, 20, 40), (16, 32, 64, 128), {}, []
    for what, values in (("K", lengths), ("batch", batches)):
        candidates = {}
        for value in values:
            config = fashion_mnist.get_config()
            config.chain.num_steps = value if what == "K" else 10
            config.train.batch_size = 64 if what == "K" else value
            candidates[f"ours, {what} {value}"] = timed(stepper(config, noise_batch(config)))
        found = in_turn(candidates, rounds)
        medians = np.array([one.median for one in found.values()])
        slope, intercept = np.polyfit(values, medians, 1)
        residual = np.abs(medians - (slope * np.array(values) + intercept)).max() / medians.max()
        times |= found
        words = (
            f"{1e3 * intercept:.1f} ms + {1e3 * slope:.2f} ms for each {'chain step' if what == 'K' else 'image'}; "
            f"largest residual {100 * residual:.1f} % of the longest"
        )
        claims.append(Claim(f"training step against {what}", "linear", words, bool(residual <= 0.05)))
    note = "configs/fashion_mnist_contrastive.py with noise for data; K at a batch of 64, the batch at K = 10."
    note += " Linear: within 5 %."
    return Section("Batch and chain length", note, times, claims)


def start_section() -> Section:
    """From the command to the metrics of the first step, digits, in a new and in a filled cache."""
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        for cache, repeats in (("cold", 1), ("cached", 3)):
            seconds = [_start(Path(folder) / f"{cache}{index}", environment) for index in range(repeats)]
            times[f"ours, {cache}"] = Times(seconds if repeats > 1 else seconds * 2)
    claims = []
    for cache, limit in (("cold", 15.0), ("cached", 6.0)):
        seconds = times[f"ours, {cache}"].median
        claims.append(
            Claim(f"start to first step, digits, {cache}", f"at most {limit:g} s", f"{seconds:.1f} s", seconds <= limit)
        )
    command = "`python run.py --config=configs/digits_contrastive.py`"
    note = f"{command} until the first step's metrics are written, once cold, three times cached."
    return Section("The start", note, times, claims)


def _start(workdir: Path, environment: dict[str, str]) -> float:
    words = ["--config=configs/digits_contrastive.py", f"--workdir={workdir}", "--config.log.every=1"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "run.py", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().strip()):
        if process.poll() is not None:
            raise RuntimeError(f"run.py ended with status {process.returncode} before its first step")
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    json.loads(metrics.read_text().splitlines()[0])
    process.kill()
    process.wait()
    return seconds


def memory_section() -> Section:
    """Memory of the CIFAR-10 config's step at batch 128 on one device, by XLA's count, against the least it needs."""
    config, mesh = cifar10.get_config(), parallel.device_mesh(jax.devices()[:1])
    state, batch = program.abstract_state(config, mesh), program.abstract_batch(config, mesh)
    step = program.make_step(config, mesh).lower(state, batch).compile().memory_analysis()
    assert step is not None
    peak = step.argument_size_in_bytes + step.temp_size_in_bytes + step.output_size_in_bytes - step.alias_size_in_bytes
    apply, pair = assemble.make_apply(config), 2 * config.train.batch_size
    images = jax.ShapeDtypeStruct((pair, *config.data.shape), np.float32)

    def loss(params, images):
        return apply(params, images, dropout_key=jax.random.key(0)).mean()

    gradient = jax.jit(jax.grad(loss)).lower(state.params, images).compile().memory_analysis()
    assert gradient is not None
    held, needed = step.argument_size_in_bytes, gradient.temp_size_in_bytes
    ratio = peak / (held + needed)
    found = (
        f"{peak / GIB:.2f} GiB, {ratio:.2f} times {(held + needed) / GIB:.2f}: {held / GIB:.2f} of parameters, "
        f"optimiser, EMA, buffer and batch, {needed / GIB:.2f} of the loss's gradient over {pair} images"
    )
    claim = Claim("peak memory, CIFAR-10, batch 128", "at most 1.3 times what it holds", found, ratio <= 1.3)
    note = (
        "XLA's count for configs/cifar10.py (ResNet32Large, 18.6 M parameters) compiled for one CPU device. The loss "
        "takes one gradient of the parameters over data and samples together, compiled alone for the line above."
    )
    return Section("Memory", note, {}, [claim])
