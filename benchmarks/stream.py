"""Streamed batches of JPEG images in an array_record file: speed against threads, memory over an epoch, a restart.

    python -m benchmarks.stream [--images 4096] [--side 128] [--batch 64] [--rounds 5]

The claims of ebm_jax/data/stream.py: decoding scales with the cores, memory stays flat, a restart goes on exactly.
"""

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
import psutil
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from benchmarks.timing import medians
from ebm_jax.data import decode, stream
from ebm_jax.data.source import Source

WORKERS = (1, 2, 4, 8)
STEPS = 32  # batches of one timing


def write_jpegs(path: Path, number: int, side: int) -> None:
    """Smooth random colors with some noise: about as many bytes a pixel as in a photograph."""
    rng = np.random.default_rng(0)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(number):
        colors = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.clip(np.asarray(colors) + rng.normal(0, 10, (side, side, 3)), 0, 255).astype(np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(noisy).save(encoded, "jpeg", quality=90)
        writer.write(encoded.getvalue())
    writer.close()


def open_source(path: Path, side: int) -> Source:
    """The images of `path`, without labels."""
    records = ArrayRecordDataSource(str(path))
    shape = (side, side, 3)
    return Source(len(records), lambda row: (decode.decode(records[row], shape, crop=False), 0), str, 1)


def speeds(source: Source, batch_size: int, rounds: int) -> None:
    """Print images a second of one thread in a plain loop, and of streams, taken in turn."""
    number = STEPS * batch_size

    def loop() -> None:
        for row in np.random.default_rng(1).permutation(source.length)[:number]:
            source.read(int(row))

    def streamed(workers: int) -> None:
        with stream.open_batches(source, 0, batch_size, workers) as batches:
            for step in range(STEPS):
                batches(step)

    calls = {"loop": loop} | {f"{n} threads": lambda n=n: streamed(n) for n in WORKERS}
    times = medians(calls, rounds)
    for name, seconds in times.items():
        print(f"{name:10s} {number / seconds:7.0f} images/s   {times['loop'] / seconds:5.2f} of the loop")


def memory(source: Source, batch_size: int) -> None:
    """Print the resident memory at ten places of an epoch."""
    process, steps = psutil.Process(), source.length // batch_size
    with stream.open_batches(source, 0, batch_size, 2) as batches:
        for step in range(steps):
            batches(step)
            if step % max(1, steps // 10) == 0:
                print(f"step {step:5d} of {steps}: {process.memory_info().rss / 2**20:6.0f} MiB resident")


def restart(source: Source, batch_size: int, step: int) -> None:
    """Print whether a stream opened at `step` gives the same batch as a stream that ran up to it."""
    with stream.open_batches(source, 0, batch_size, 2) as batches:
        through = [batches(number) for number in range(step + 1)][-1]
    with stream.open_batches(source, 0, batch_size, 2) as batches:
        anew = batches(step)
    print(f"batch {step} after a restart is identical: {np.array_equal(through.images, anew.images)}")


def main() -> None:
    """Write the records, then print the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 4096), ("side", 128), ("batch", 64), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.array_record"
        write_jpegs(path, args.images, args.side)
        print(f"{args.images} JPEG images, {path.stat().st_size / args.images / 1024:.1f} KiB each")
        source = open_source(path, args.side)
        speeds(source, args.batch, args.rounds)
        memory(source, args.batch)
        restart(source, args.batch, 11)


if __name__ == "__main__":
    main()
