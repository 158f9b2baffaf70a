"""Keeps and shows a training run: the progress line, metrics.jsonl, TensorBoard events, pictures."""

import contextlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from ebm_jax.distributed import processes
from ebm_jax.report import figures
from ebm_jax.report.console import density_line, say, warn
from ebm_jax.report.contents import EVALUATION, METRICS, VERSIONS
from ebm_jax.report.events import Events
from ebm_jax.report.pictures import grid, write_grid
from ebm_jax.report.rewriting import Rewriting
from ebm_jax.storage import workdir
from ebm_jax.storage.bucket import Mirror
from ebm_jax.storage.writing import appending, write_atomically
from ebm_jax.types import Folder

GROWING = (METRICS, EVALUATION, "events.out.tfevents.*")  # files that a resumed run goes on with
FOR_THE_PAGE = (workdir.CONFIG, workdir.DATA, VERSIONS)
SHOWN = {
    "matching_error": "matching error",
    "energy_data": "U data",
    "energy_samples": "samples",
    "energy_gap": "gap",
    "chain_grad_norm": "chain |∇U|",
    "noise_accuracy": "told from noise",
    "log_normaliser": "log Z",
}


class Reporter:
    """The watchers of one training run, a context manager. It drops the lines of steps after `start` from the files.

    On processes other than the first it accepts all calls and writes nothing.

    Args:
      page: whether to keep the run's page, report.html, up to date.
    """

    def __init__(self, folder: Folder, start: int, num_steps: int, *, page: bool = False):
        self._writes = processes.is_first()
        self._mirror = Mirror(folder if self._writes else Path(), GROWING + FOR_THE_PAGE)
        self._workdir = self._mirror.local
        self._page = Rewriting(self._workdir if self._writes and page else None, folder)
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
        self._jsonl = appending(self._workdir / METRICS if self._writes else Path(os.devnull))
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
            self._page.rewrite(last=True)
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
        self._show_files()

    def go_back(self, step: int) -> None:
        """Drop the lines of steps after `step`, because the run does these steps again; events stay."""
        self._jsonl.close()
        self._events.close()
        self._open(step)
        self._marked, self._marked_step = time.perf_counter(), step

    def image(self, name: str, step: int, images: np.ndarray, captions: Sequence[str] = (), title: str = "") -> None:
        """Write a grid as images/NAME_STEP.png and into the TensorBoard events; its words as for `pictures.grid`."""
        if not self._writes:
            return
        path = self._workdir / "images" / f"{name}_{step:06d}.png"
        write_grid(path, images, captions, title=title)
        self._events.add_image(name, grid(images, captions, title=title), step)
        self._show_files()

    def density(
        self,
        step: int,
        log_p: np.ndarray,
        samples: np.ndarray,
        log_q: np.ndarray,
        report: dict[str, float],
        title: str = "",
    ) -> None:
        """Write images/density_STEP.png and a line of evaluation.jsonl, and say how far the model is from the truth.

        Args:
          log_p, log_q: the data's and the model's log-density on the grid, in nats.
          samples: points [n, 2].
          report: kl, nll and entropy, in nats.
        """
        if not self._writes:
            return
        path = self._workdir / "images" / f"density_{step:06d}.png"
        figures.density_figure(path, log_p, samples, log_q, title=title)
        self.evaluation(step, report, density_line(report))

    def evaluation(self, step: int, report: dict[str, float], line: str) -> None:
        """Keep numbers as a row of evaluation.jsonl and as TensorBoard scalars, and say a line about them."""
        if not self._writes:
            return
        with appending(self._workdir / EVALUATION) as file:
            file.write(json.dumps({"step": step, **report}) + "\n")
        for name, value in report.items():
            self._events.add_scalar(f"evaluation/{name}", value, step)
        self._show_files()
        say(f"step {step}: {line}")

    def smallest(self, name: str) -> float:
        """The smallest value of this name in evaluation.jsonl; infinite if there is none."""
        path = self._workdir / EVALUATION
        rows = map(json.loads, path.read_text().splitlines()) if self._writes and path.exists() else ()
        return min((row[name] for row in rows if name in row), default=math.inf)

    def _show_files(self) -> None:
        """Bring what is new in the folder onto the page and into the bucket."""
        self._page.rewrite()
        self._mirror.push()

    def _measure_speed(self, step: int) -> None:
        now = time.perf_counter()
        self._speed = (step - self._marked_step) / max(now - self._marked, 1e-9)
        self._marked, self._marked_step = now, step

    def _line(self, metrics: dict[str, float]) -> str:
        staged = "stage" in metrics  # then a metric of the other stage is 0
        known = {
            name: label for name, label in SHOWN.items() if name in metrics and not (staged and metrics[name] == 0)
        }
        shown = " ".join(f"{label} {metrics[name]:.4f}" for name, label in (known or {"loss": "loss"}).items())
        return f"{self._speed:.2f} steps/s {shown}"

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        seconds = time.perf_counter() - self._began
        row = {"step": step, **metrics, "steps_per_second": self._speed, "seconds": seconds}
        self._jsonl.write(json.dumps(row) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._show_files()
        if not self._live:
            left = (self._num_steps - step) / self._speed if self._speed else math.inf
            say(f"step {step}/{self._num_steps} {self._line(metrics)} {left:.0f} s left")


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and a line that a killed run left half written.

    Events stay: they happened, even if the run does the steps again.
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
