"""What a person sees of a run: the progress line, metrics.jsonl, TensorBoard events and image grids."""

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from ebm_jax.io import figures
from ebm_jax.io.workdir import write_atomically

METRICS, EVALUATION = "metrics.jsonl", "evaluation.jsonl"
SHOWN = {"energy_data": "U data", "energy_samples": "samples", "energy_gap": "gap", "chain_grad_norm": "chain |∇U|"}
TILE = 56  # pixels: small images are enlarged to at least about this side in a grid


def grid(images: np.ndarray) -> np.ndarray:
    """Images [n, h, w, c] in [0, 1] as one nearly square uint8 picture, row by row, small ones enlarged."""
    n, h, w, c = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, TILE // max(h, w))
    pixels = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)
    gap = max(1, max(h, w) * scale // 16)  # without it neighbouring strokes read as one
    tiles = np.full((rows * columns, h * scale + 2 * gap, w * scale + 2 * gap, c), 128, np.uint8)
    tiles[:n, gap:-gap, gap:-gap] = pixels
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], c)


def write_grid(path: Path, images: np.ndarray) -> None:
    """The grid of images [n, h, w, c] in [0, 1], c being 1 or 3, as a PNG file."""
    picture = grid(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path)


def say(text: str) -> None:
    """One plain line to the terminal."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One plain line to standard error."""
    print(text, file=sys.stderr, flush=True)


def warn_skipped(checkpoints: dict[int, str]) -> None:
    """One line for each damaged checkpoint: its step, and what is wrong with it."""
    for step, reason in checkpoints.items():
        warn(f"skipped a damaged checkpoint, step {step}: {reason}")


def density_line(report: dict[str, float]) -> str:
    """How far a model is from a 2-D law, in words; `report` has kl, nll and entropy, in nats."""
    return (
        f"KL(data || model) {report['kl']:.4f} nats, negative log-likelihood {report['nll']:+.4f}, of which the data's "
        f"entropy is {report['entropy']:+.4f}"
    )


class Reporter:
    """The watchers of one training run, a context manager; lines of steps after `start` are dropped from the files."""

    def __init__(self, workdir: Path, start: int, num_steps: int):
        self._workdir = workdir
        for name in (METRICS, EVALUATION):
            _drop_after(workdir / name, start)
        self._jsonl = (workdir / METRICS).open("a")
        self._events = SummaryWriter(str(workdir), purge_step=start + 1)
        self._live = Console().is_terminal
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total} {task.description}"),
            TimeRemainingColumn(),
            disable=not self._live,
        )
        self._task = self._progress.add_task("compiling", total=num_steps, completed=start)
        self._num_steps = num_steps
        self._began = self._marked = time.perf_counter()
        self._marked_step = start
        self._speed = 0.0

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        self._jsonl.close()
        self._events.close()

    def progress(self, step: int, metrics: dict[str, float], every: int) -> None:
        """Show one step; keep each `every`-th in the files and, without a terminal, print it."""
        if step % every == 0 or step == self._num_steps:
            self._measure_speed(step)
            self._keep(step, metrics)
        if self._live:
            self._progress.update(self._task, completed=step, description=self._line(metrics))

    def image(self, name: str, step: int, images: np.ndarray) -> Path:
        """Write a grid as images/NAME_STEP.png and into the TensorBoard events."""
        path = self._workdir / "images" / f"{name}_{step:06d}.png"
        write_grid(path, images)
        self._events.add_image(name, grid(images), step, dataformats="HWC")
        return path

    def density(
        self, step: int, data: np.ndarray, samples: np.ndarray, log_q: np.ndarray, report: dict[str, float]
    ) -> None:
        """Write images/density_STEP.png and a line of evaluation.jsonl, and say how far the model is from the truth.

        Args:
          data, samples: points [n, 2]; log_q: the model's log-density on the grid; report: kl, nll, entropy, in nats.
        """
        figures.density_figure(self._workdir / "images" / f"density_{step:06d}.png", data, samples, log_q)
        with (self._workdir / EVALUATION).open("a") as file:
            file.write(json.dumps({"step": step, **report}) + "\n")
        for name, value in report.items():
            self._events.add_scalar(f"evaluation/{name}", value, step)
        say(f"step {step}: {density_line(report)}")

    def _measure_speed(self, step: int) -> None:
        now = time.perf_counter()
        self._speed = (step - self._marked_step) / max(now - self._marked, 1e-9)
        self._marked, self._marked_step = now, step

    def _line(self, metrics: dict[str, float]) -> str:
        shown = " ".join(f"{label} {metrics[name]:.4f}" for name, label in SHOWN.items())
        return f"{self._speed:.2f} steps/s {shown}"

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        seconds = time.perf_counter() - self._began
        row = {"step": step, **metrics, "steps_per_second": self._speed, "seconds": seconds}
        self._jsonl.write(json.dumps(row) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        if not self._live:
            left = (self._num_steps - step) / self._speed if self._speed else math.inf
            say(f"step {step}/{self._num_steps} {self._line(metrics)} {left:.0f} s left")


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines of steps that are about to be done again, and a line that a killed run left half written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept))
