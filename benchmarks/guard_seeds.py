"""Logs the first steps of shrunk runs of every config, healthy and made to diverge, for `benchmarks.guard_traces`.

    python -m benchmarks.guard_seeds OUT [--colour FILE.npz] [--gray FILE.npz] [--only NAME ...] [--seeds 20] [--ill 3]

A config keeps its network, its chain's step size and its loss. Its width, batch, buffer and chain length shrink
(`SMALL`), and steps are few. OUT/NAME_SEED.json has the name, the seed, each step's metrics, and what the guard's units
need.

FILE.npz holds `images`, uint8 [n, 32, 32, 3] or [n, 28, 28, 1], and perhaps `labels`. They stand for all sets of such
images, enlarged where the config's are larger. Without a file uniform noise does. Digits, the shapes and the 2-D
density are the config's own. A row's label is the file's, or the config's example label for its place.

A run made to diverge has the same seed and FACTOR or FACTOR² times the learning rate, in `WITHOUT` also no λ-term.
Whether it diverges shows in its log.
"""

import argparse
import importlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ebm_jax import chains, program, schema
from ebm_jax.data import memory, sources
from ebm_jax.distributed import parallel
from ebm_jax.labels import example_labels, label_shape
from ebm_jax.types import Config

CONFIGS = (
    *(
        "folder_contrastive",
        "cifar10_conditional",
        "cifar10",
        "digits_contrastive",
        "density2d",
        "shapes_shape",
        "shapes_position",
    ),
    *(
        "fashion_mnist_contrastive",
        "fashion_mnist_conditional",
        "mnist",
        "dsprites_shape",
        "dsprites_position",
        "dsprites_rotation",
    ),
    *("dsprites_size", "cifar10_wider_conditional", "imagenet32", "imagenet128"),
)
SMALL = {"model.width": 8, "train.batch_size": 8, "buffer.capacity": 64, "chain.num_steps": 8}
SHAPES = {"folder_contrastive": (64, 64, 3)}
FACTOR = 30.0
WITHOUT = ("digits_contrastive", "density2d", "cifar10", "fashion_mnist_contrastive")
IMAGES = 1024


def shrunk(name: str) -> Config:
    """The config in small."""
    config = schema.with_values(importlib.import_module(f"configs.{name}").get_config(), SMALL)
    return schema.with_values(config, {"data.shape": SHAPES.get(name, tuple(config.data.shape))})


def dataset(config: Config, files: dict[int, Path | None]) -> memory.Dataset:
    """Images that stand for the config's data, with labels that fit."""
    if config.data.source in ("sklearn", "shapes"):
        return sources.load_dataset(config, print)
    height, width, channels = shape = tuple(config.data.shape)
    labels = np.asarray(example_labels(config, jnp.arange(IMAGES)))
    path = files[channels]
    if path is None:
        return memory.noise((IMAGES, *shape), config.model.num_classes, soft=False)._replace(labels=labels)
    with np.load(path) as file:
        images = file["images"][:IMAGES]
        if "labels" in file and label_shape(config) is None:
            labels = file["labels"][:IMAGES] % config.model.num_classes
    pictures = [
        np.asarray(Image.fromarray(image.squeeze()).resize((width, height), Image.Resampling.BILINEAR))
        for image in images
    ]
    return memory.Dataset(np.stack(pictures).reshape(-1, *shape), labels, config.model.num_classes)


def prepared(config: Config, files: dict[int, Path | None]) -> Callable[[int, int, int], list[dict]]:
    """The function (seed, power of FACTOR in the learning rate, steps) -> each step's metrics; it compiles once."""
    config = config.copy_and_resolve_references()
    config.guard.rescue_learning_rate = FACTOR  # so a state that was "rescued" n times has FACTOR**n times the rate
    mesh = parallel.device_mesh(jax.devices()[:1])
    step = program.make_step(config, mesh)
    data = None if config.data.source == "density" else dataset(config, files)

    def run(seed: int, power: int, steps: int) -> list[dict]:
        config.train.seed = seed
        size, state, rows = config.train.batch_size, program.make_state(config, mesh), []
        if data is None:
            batches = memory.sampled_batches(sources.make_density(config).sample, seed, size)
        else:
            batches = memory.make_batches(data, seed, size)
        state = state._replace(rescues=state.rescues + power)
        for index in range(steps):
            state, metrics = step(state, program.place_batch(config, mesh, batches(index)))
            rows.append({"step": index + 1} | {name: float(value) for name, value in jax.device_get(metrics).items()})
        return rows

    return run


def record(config: Config, name: str, seed: int, rows: list[dict], healthy: bool) -> dict:
    """A log, with what the guard's limits are made of."""
    return {
        "name": name,
        "seed": seed,
        "healthy": healthy,
        "energy_l2": max(config.loss.energy_l2, config.guard.least_energy_l2),
        "untrained": program.untrained_energy(schema.with_values(config, {"train.seed": seed})),
        "grad_unit": math.sqrt(math.prod(config.data.shape)) / chains.equivalent_step_size(config),
        "rows": rows,
    }


def log(name: str, words: argparse.Namespace, files: dict[int, Path | None]) -> None:
    """Write the logs of one config, and say what they took."""
    config, start = shrunk(name), time.perf_counter()
    steps = words.steps // 2 if config.data.shape[0] >= 128 else words.steps
    run = prepared(config, files)
    found = [record(config, name, seed, run(seed, 0, steps), True) for seed in range(words.seeds)]
    for power in (1, 2):
        kind = f"{name}_lr{FACTOR**power:g}"
        found += [record(config, kind, seed, run(seed, power, steps), False) for seed in range(words.ill)]
    if name in WITHOUT:
        config = schema.with_values(config, {"loss.energy_l2": 0.0})
        run, kind = prepared(config, files), f"{name}_l2_0_lr{FACTOR**2:g}"
        found += [record(config, kind, seed, run(seed, 2, steps), False) for seed in range(words.ill)]
    for one in found:
        (words.out / f"{one['name']}_{one['seed']}.json").write_text(json.dumps(one))
    print(f"{name}: {len(found)} logs of {steps} steps, {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """Log all configs, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--colour", type=Path, help="32x32 colour images")
    parser.add_argument("--gray", type=Path, help="28x28 gray images")
    parser.add_argument("--only", nargs="*", default=CONFIGS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--ill", type=int, default=3, help="seeds of each kind that is made to diverge")
    parser.add_argument("--steps", type=int, default=20, help="half as many for images of 128x128")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # each seed traces the making of its state anew
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        for name in words.only:
            log(name, words, {1: words.gray, 3: words.colour})


if __name__ == "__main__":
    main()
