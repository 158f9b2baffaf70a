"""Two models of generated shapes, one conditional on the shape and one on the position, composed and judged.

    python run.py --config=configs/shapes_shape.py && python run.py --config=configs/shapes_position.py
    python -m benchmarks.composition --shape-run runs/shapes_shape --position-run runs/shapes_position

The judge knows nothing of the models. It takes the nearest template (L2), among all shapes at all positions of a fine
lattice. A sample satisfies the shape if that template has the shape asked for, and the position if that template lies
within TOLERANCE pixels of it. The residual tells how well the template fits: the squared distance to it over the square
of the template, 0 for the generator's own image, 1 for a black one.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ebm_jax import TrainedRun, chains, open_run
from ebm_jax.data.toys import MARGIN, SHAPES, render
from ebm_jax.report import pictures
from ebm_jax.sampling.kernel import Kernel, Stages, alternating, run_stages
from ebm_jax.tasks import compose
from ebm_jax.types import EnergyFn, PRNGKey

TOLERANCE = 1.5  # pixels between the position asked for and found
LATTICE = 29  # template positions a side: a quarter of a pixel apart in images of 16x16
ASKED = 5  # requested positions a side
CHAINS = 4  # for every shape at every position
GAP = 8  # pixels of the picture on either side of a block
SUM, IN_TURN = "both, sum of energies", "both, steps in turn"


class Asked(NamedTuple):
    """The requests, one a chain: shapes [n] and positions [n, 2], (x, y) in [0, 1]."""

    shapes: np.ndarray
    positions: np.ndarray


class Verdict(NamedTuple):
    """The shape [n] and position [n, 2] of each image's nearest template, and the residual [n]."""

    shapes: np.ndarray
    positions: np.ndarray
    residuals: np.ndarray


class Shares(NamedTuple):
    """Shares of samples, 0 to 1: with the shape asked for, at the position asked for, with both; median residual."""

    shape: float
    position: float
    both: float
    residual: float


def lattice(side: int) -> np.ndarray:
    """The points (x, y) [side², 2] of a lattice on the unit square, row by row."""
    ticks = np.linspace(0, 1, side)
    y, x = np.meshgrid(ticks, ticks, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)


def every_pair(side: int, repeats: int) -> Asked:
    """All shapes at all positions of a lattice, `repeats` times: shape by shape, position by position."""
    positions = lattice(side)
    kinds = np.repeat(np.arange(len(SHAPES)), len(positions) * repeats)
    return Asked(kinds.astype(np.int32), np.tile(np.repeat(positions, repeats, 0), (len(SHAPES), 1)).astype(np.float32))


def judge(images: np.ndarray) -> Verdict:
    """The best match of each image [n, side, side, 1] among all templates."""
    kinds, positions = every_pair(LATTICE, 1)
    templates = render(kinds, positions, images.shape[1]).reshape(len(kinds), -1)
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    norms = np.square(templates).sum(1)
    squares = np.square(flat).sum(1)[:, None] - 2 * flat @ templates.T + norms
    best = squares.argmin(1)
    return Verdict(kinds[best], positions[best], squares[np.arange(len(best)), best] / norms[best])


def shares(images: np.ndarray, asked: Asked) -> Shares:
    """The shares of the images [n, side, side, 1] that the judge finds as asked."""
    verdict, side = judge(images), images.shape[1]
    offsets = (1 - 2 * MARGIN) * side * (verdict.positions - asked.positions)
    shape, position = verdict.shapes == asked.shapes, np.linalg.norm(offsets, axis=1) <= TOLERANCE
    both, residual = shape & position, np.median(verdict.residuals)
    return Shares(float(shape.mean()), float(position.mean()), float(both.mean()), float(residual))


def sample_all(shape_model: TrainedRun, position_model: TrainedRun, asked: Asked, seed: int) -> dict[str, np.ndarray]:
    """Chains from noise, one for each thing asked, under both models together and under each alone.

    The shape model's run gives the noise and the kernels.
    """
    key_init, key_sum, key_in_turn, key_shape, key_position = jax.random.split(jax.random.key(seed), 5)
    config, shapes = shape_model.config, jnp.asarray(asked.shapes)
    base, sampling = chains.make_base(config), config.sample
    init = base.sample(key_init, len(asked.shapes))
    shape, position = shape_model.energy_fn(shapes), position_model.energy_fn(jnp.asarray(asked.positions))
    both = compose.product_of(config, shape_model.params, [shape, position], shapes)

    def chain(key: PRNGKey, energy_fn: EnergyFn, stages: Stages) -> np.ndarray:
        return np.asarray(jax.jit(lambda key, x: base.finish(run_stages(stages, key, x, energy_fn)[0]))(key, init))

    def sample(key: PRNGKey, energy_fn: EnergyFn, change: Callable[[Kernel], Kernel] = lambda kernel: kernel, turns=1):
        heats = (config.chain.temperature, sampling.num_steps - sampling.quiet_steps), (0.0, sampling.quiet_steps)
        stages = [(change(chains.make_kernel(config, heat)), turns * steps) for heat, steps in heats if steps]
        return chain(key, energy_fn, stages)

    return {
        SUM: chain(key_sum, both, compose.stages_of(config)),
        IN_TURN: sample(key_in_turn, both, lambda kernel: alternating(kernel, [shape, position]), turns=2),
        "shape model alone": sample(key_shape, shape),
        "position model alone": sample(key_position, position),
    }


def controls(asked: Asked, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Images that no model made: real ones as asked, real ones in shuffled order, and uniform noise."""
    rng = np.random.default_rng(seed)
    real = render(asked.shapes, asked.positions, shape[0])
    noise = rng.random((len(asked.shapes), *shape), np.float32)
    return {"generator, as asked": real, "generator, shuffled": rng.permutation(real), "uniform noise": noise}


def picture(images: np.ndarray, asked: Asked, repeats: int) -> np.ndarray:
    """A block of images for each shape, side by side. Every image stands at the place that it was asked to show."""
    blocks = []
    for kind, of_kind in enumerate(images.reshape(len(SHAPES), -1, *images.shape[1:])):
        rows = asked.shapes == kind
        right = shares(of_kind, Asked(asked.shapes[rows], asked.positions[rows])).both
        title = f"{SHAPES[kind]}, where it was asked for: {right:.0%} of {len(of_kind)} are"
        block = pictures.grid(of_kind[::repeats], title=title)[:, :, 0]
        blocks.append(np.pad(block, ((0, 0), (GAP, GAP)), constant_values=255))
    return np.concatenate(blocks, axis=1)


def main() -> None:
    """Print a row of shares for each way to sample, and write the picture of the sum of energies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape-run", required=True)
    parser.add_argument("--position-run", required=True)
    parser.add_argument("--picture", default="composition.png")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape_model, position_model = (open_run(folder) for folder in (args.shape_run, args.position_run))
    asked = every_pair(ASKED, CHAINS)
    samples = sample_all(shape_model, position_model, asked, args.seed)
    print(f"{len(asked.shapes)} of each; position within {TOLERANCE} pixels")
    print(f"{'':24s}  shape  position   both  residual")
    for name, images in (samples | controls(asked, shape_model.config.data.shape, args.seed)).items():
        row = shares(images, asked)
        print(f"{name:24s} {row.shape:6.1%}    {row.position:6.1%} {row.both:6.1%}    {row.residual:6.3f}")
    Image.fromarray(picture(samples[SUM], asked, CHAINS)).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
