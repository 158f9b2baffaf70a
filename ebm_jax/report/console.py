"""What a person sees of a run: the progress line, metrics.jsonl, TensorBoard events, pictures and films.

Of several processes the first one writes and speaks; the others only warn.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ebm_jax.distributed import processes
from ebm_jax.report import figures
from ebm_jax.report.events import Events
from ebm_jax.storage.bucket import Mirror
from ebm_jax.storage.workdir import write_atomically
from ebm_jax.types import Folder

METRICS, EVALUATION = "metrics.jsonl", "evaluation.jsonl"
GROWING = (METRICS, EVALUATION, "events.out.tfevents.*")  # files that a resumed run goes on with
SHOWN = {"energy_data": "U data", "energy_samples": "samples", "energy_gap": "gap", "chain_grad_norm": "chain |∇U|"}
TILE = 56  # pixels: small images are enlarged to at least about this side in a grid
BACKGROUND = 128  # gray, between images
CAPTION, CAPTION_WIDTH = 16, 160  # pixels: height of a caption, and the least width of a picture with captions
STRIP = 12  # columns
TABLE_WIDTH = 200  # characters at most; what a terminal has no room for it wraps
QUIET_SECONDS = 15.0  # without a word where there is no terminal
FRAME_MS, LAST_FRAME_MS = 80, 1500


def grid(images: np.ndarray) -> np.ndarray:
    """Images [n, h, w, c] in [0, 1] as one nearly square uint8 picture, row by row, small ones enlarged."""
    return _arranged(_tiles(images, TILE), math.ceil(math.sqrt(len(images))))


def write_grid(path: Path, images: np.ndarray) -> None:
    """The grid of images [n, h, w, c] in [0, 1], c being 1 or 3, as a PNG file."""
    _write_png(path, grid(images))


def write_rows(path: Path, rows: dict[str, np.ndarray]) -> None:
    """A row of images [n, h, w, c] in [0, 1] below each caption, as a PNG file.

    Rows may differ in size and channels (1 or 3), as what was observed of images may: small ones are enlarged alike.
    """
    largest = max(rows.values(), key=lambda images: max(images.shape[1:3]))
    side = _scale(largest, TILE) * max(largest.shape[1:3])
    pictures = [_arranged(_tiles(images, side), len(images)) for images in rows.values()]
    width = max(CAPTION_WIDTH, *(picture.shape[1] for picture in pictures))
    canvas = Image.new("RGB", (width, sum(CAPTION + len(picture) for picture in pictures)), (BACKGROUND,) * 3)
    pen, top = ImageDraw.Draw(canvas), 0
    for caption, picture in zip(rows, pictures, strict=True):
        pen.text((3, top), caption, fill="white", font=ImageFont.load_default(CAPTION - 4))
        canvas.paste(_pil(picture), (0, top + CAPTION))
        top += CAPTION + len(picture)
    _write_png(path, np.asarray(canvas))


def write_strip(path: Path, frames: np.ndarray) -> None:
    """Chains as rows, their frames [frames, n, h, w, c] from left to right, as a PNG file.

    At most `STRIP` columns, evenly from the first frame to the last.
    """
    shown = np.rint(np.linspace(0, len(frames) - 1, min(len(frames), STRIP))).astype(int)
    images = frames[shown].swapaxes(0, 1)
    _write_png(path, _arranged(_tiles(images.reshape(-1, *images.shape[2:]), TILE), len(shown)))


def write_film(path: Path, frames: np.ndarray) -> None:
    """The grids of frames [frames, n, h, w, c] one after another, as an animated GIF that starts anew for ever.

    A second is `1000 / FRAME_MS` frames. Pillow joins a frame that is equal to the one before with it.
    """
    pictures = [_pil(grid(images)) for images in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _scale(images: np.ndarray, side: int) -> int:
    """How often a pixel is repeated for images of at most about `side` pixels."""
    return max(1, side // max(images.shape[1:3]))


def _tiles(images: np.ndarray, side: int) -> np.ndarray:
    """Each image as uint8, enlarged to about `side` pixels, in a frame: without it neighbouring strokes read as one."""
    n, h, w, c = images.shape
    scale = _scale(images, side)
    gap = max(1, max(h, w) * scale // 16)
    tiles = np.full((n, h * scale + 2 * gap, w * scale + 2 * gap, c), BACKGROUND, np.uint8)
    pixels = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    tiles[:, gap:-gap, gap:-gap] = pixels.repeat(scale, 1).repeat(scale, 2)
    return tiles


def _arranged(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles [n, h, w, c] in reading order, the last row filled up with background."""
    n, h, w, c = tiles.shape
    rows = math.ceil(n / columns)
    full = np.full((rows * columns, h, w, c), BACKGROUND, np.uint8)
    full[:n] = tiles
    return full.reshape(rows, columns, h, w, c).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)


def _pil(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def _write_png(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _pil(picture).save(path)


def say(text: str) -> None:
    """One plain line to the terminal, of the first process."""
    if processes.is_first():
        print(text, flush=True)


def warn(text: str) -> None:
    """One plain line to standard error; those of other processes than the first begin with their number."""
    print(text if processes.is_first() else f"process {processes.index()}: {text}", file=sys.stderr, flush=True)


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


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Rows, the header first, under a title to the terminal, of the first process."""
    if not processes.is_first():
        return
    found = Table(box=box.SIMPLE, title=Text(title), title_justify="left")
    for cell in rows[0]:
        found.add_column(Text(cell), no_wrap=True)
    for row in rows[1:]:
        found.add_row(*map(Text, row))
    Console(width=TABLE_WIDTH).print(found)


class Pieces:
    """The progress bar of work that comes in a few named pieces, a context manager; iterating begins each in turn.

    Without a terminal each piece is a line when it begins, and a note one when `QUIET_SECONDS` have passed in silence.
    """

    def __init__(self, names: Sequence[str]):
        self._names, self._live = names, processes.is_first() and Console().is_terminal
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(20), TextColumn("{task.description}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), disable=not self._live)
        self._task = self._progress.add_task("", total=len(names))
        self._name, self._spoke = "", 0.0

    def __enter__(self) -> "Pieces":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def __iter__(self) -> Iterator[str]:
        for done, name in enumerate(self._names):
            self._name = name
            self._progress.update(self._task, completed=done)
            self._show(name)
            yield name
        self._progress.update(self._task, completed=len(self._names), description="")

    def note(self, words: str) -> None:
        """Say how far the present piece is."""
        if self._live or time.perf_counter() - self._spoke > QUIET_SECONDS:
            self._show(f"{self._name}: {words}")

    def _show(self, words: str) -> None:
        self._spoke = time.perf_counter()
        if self._live:
            self._progress.update(self._task, description=words)
        else:
            say(words)


class Reporter:
    """The watchers of one training run, a context manager; lines of steps after `start` are dropped from the files.

    On other processes than the first it takes everything and writes nothing.
    """

    def __init__(self, workdir: Folder, start: int, num_steps: int):
        self._writes = processes.is_first()
        self._mirror = Mirror(workdir if self._writes else Path(), GROWING)
        self._workdir = self._mirror.local
        self._open(start)
        self._live = self._writes and Console().is_terminal
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

    def _open(self, start: int) -> None:
        for name in (METRICS, EVALUATION) if self._writes else ():
            _drop_after(self._workdir / name, start)
        self._jsonl = (self._workdir / METRICS if self._writes else Path(os.devnull)).open("a")
        self._events = Events(self._workdir, purge_step=start + 1, write_to_disk=self._writes)

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        try:
            with contextlib.closing(self._events):
                self._jsonl.close()
        finally:
            if failure := self._mirror.close():
                warn(failure)

    def progress(self, step: int, metrics: dict[str, float], every: int) -> None:
        """Show one step; keep each `every`-th in the files and, without a terminal, print it."""
        if step % every == 0 or step == self._num_steps:
            self._measure_speed(step)
            self._keep(step, metrics)
        if self._live:
            self._progress.update(self._task, completed=step, description=self._line(metrics))

    def event(self, step: int, text: str) -> None:
        """Keep what happened to the run as a row of metrics.jsonl and as TensorBoard text."""
        self._jsonl.write(json.dumps({"step": step, "event": text}) + "\n")
        self._jsonl.flush()
        self._events.add_text("event", text, step)
        self._mirror.push()

    def go_back(self, step: int) -> None:
        """Drop what was written of the steps after `step`, which are about to be done again; events stay."""
        self._jsonl.close()
        self._events.close()
        self._open(step)
        self._marked, self._marked_step = time.perf_counter(), step

    def image(self, name: str, step: int, images: np.ndarray) -> None:
        """Write a grid as images/NAME_STEP.png and into the TensorBoard events."""
        if not self._writes:
            return
        path = self._workdir / "images" / f"{name}_{step:06d}.png"
        write_grid(path, images)
        self._events.add_image(name, grid(images), step)
        self._mirror.push()

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
        self._mirror.push()
        if not self._live:
            left = (self._num_steps - step) / self._speed if self._speed else math.inf
            say(f"step {step}/{self._num_steps} {self._line(metrics)} {left:.0f} s left")


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines of steps that are about to be done again, and a line that a killed run left half written.

    Events stay: they happened, whatever is done again.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            if row["step"] <= step or "event" in row:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept))
