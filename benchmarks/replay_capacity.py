"""A draw and a store against the buffer's capacity, the buffer donated as in a training step.

    python -m benchmarks.replay_capacity [--rows 128] [--pixels 3072]

The claim of ebm_jax/sampling/replay.py: the cost does not grow with the capacity.
"""

import argparse
from functools import partial

import jax

from benchmarks.timing import medians
from ebm_jax.sampling import replay
from ebm_jax.sampling.base import uniform

REPEATS = 20


@partial(jax.jit, donate_argnums=1)
def visit(key: jax.Array, buffer: replay.ReplayBuffer, labels: jax.Array) -> replay.ReplayBuffer:
    """One training step's worth of replay."""
    key_draw, key_store = jax.random.split(key)
    drawn = replay.draw(key_draw, buffer, labels, uniform(buffer.images.shape[1:]), 0.05)
    return replay.store(key_store, buffer, drawn, 0.5 * drawn.x)


def main() -> None:
    """Print one line for each capacity and storage type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=3072)
    args = parser.parse_args()
    labels = jax.numpy.zeros(args.rows, int)
    for dtype in ("uint8", "bfloat16", "float32"):
        buffers = {}

        def visits(capacity, buffers=buffers):
            for number in range(REPEATS):
                buffers[capacity] = visit(jax.random.key(number), buffers[capacity], labels)
            return buffers[capacity].images

        for capacity in (1_000, 100_000):
            init = jax.jit(partial(replay.init, capacity=capacity, base=uniform((args.pixels,)), dtype=dtype))
            buffers[capacity] = init(jax.random.key(0))
        times = medians({str(capacity): partial(visits, capacity) for capacity in buffers})
        small, large = (seconds / REPEATS * 1e3 for seconds in times.values())
        print(f"{dtype:9s} 1,000 rows {small:6.2f} ms   100,000 rows {large:6.2f} ms   ratio {large / small:.2f}")


if __name__ == "__main__":
    main()
