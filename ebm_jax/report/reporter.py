"""Keeps and shows a training run: its lines, metrics.jsonl, pictures, and what trackers get of them."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from ebm_jax.distributed import processes
from ebm_jax.report import figures, scalars
from ebm_jax.report.console import density_line, say, warn
from ebm_jax.report.contents import EVALUATION, METRICS, VERSIONS
from ebm_jax.report.pictures import grid, write_grid
from ebm_jax.report.progress import Board
from ebm_jax.report.rewriting import Rewriting
from ebm_jax.report.trackers import IDENTITIES, TENSORBOARD, Point, Trackers
from ebm_jax.storage import workdir
from ebm_jax.storage.bucket import Mirror
from ebm_jax.storage.writing import appending, write_atomically
from ebm_jax.types import Folder

GROWING = (METRICS, EVALUATION, IDENTITIES, "events.out.tfevents.*")  # files that a resumed run goes on with
FOR_THE_PAGE = (workdir.CONFIG, workdir.DATA, VERSIONS)  # files of the run that are whole before it trains
PICTURES = {
    "buffer": "images of the replay buffer, as training left them",
    "chains": "chains from the same fresh noise at every step",
}
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
      board: where the steps are shown; None: as lines of a log.
      trackers: of `trackers.KNOWN`, which get all that metrics.jsonl and images/ get.
      page: whether to keep the run's page, report.html, up to date.
      first_stage: of `Board.begin`.
    """

    def __init__(
        self,
        folder: Folder,
        start: int,
        num_steps: int,
        board: Board | None = None,
        trackers: tuple[str, ...] = (TENSORBOARD,),
        *,
        page: bool = False,
        first_stage: int = 0,
    ):
        self._writes = processes.is_first()
        self._names = trackers if self._writes else ()
        self._mirror = Mirror(folder if self._writes else Path(), GROWING + FOR_THE_PAGE)
        self._workdir = self._mirror.local
        self._page = Rewriting(self._workdir if self._writes and page else None, folder)
        self._values: dict[str, Any] = {}
        self._told = -1  # the last step that trackers were told, as they stand now
        self._open(start)
        self._board, self._num_steps = board or Board("training"), num_steps
        self._first_stage = first_stage
        self._board.begin(start, num_steps, first_stage)
        self._began = time.perf_counter()

    def _open(self, start: int, *, rescued: bool = False) -> None:
        self._at = start
        told = max(self._told, _last_step(self._workdir / METRICS) if self._writes else 0)
        is_void = rescued and told > start
        self._told = start if is_void else told
        for name in (METRICS, EVALUATION) if self._writes else ():
            _drop_after(self._workdir / name, start)
        self._jsonl = appending(self._workdir / METRICS if self._writes else Path(os.devnull))
        before = _points(self._workdir) if is_void and self._writes else None
        self._trackers = Trackers(self._names, self._workdir, start, told, before, self._values)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with contextlib.closing(self._trackers):
                self._jsonl.close()
        finally:
            self._page.rewrite(last=True)
            if failure := self._mirror.close():
                warn(failure)

    def hyperparameters(self, values: dict[str, Any]) -> None:
        """Tell the trackers the values of the config that differ from the defaults."""
        self._values = values
        self._trackers.add_hyperparameters(values)

    def progress(self, step: int, metrics: dict[str, float], every: int) -> None:
        """Show one step; keep each `every`-th in the files and, without a terminal, print it."""
        self._at = step
        self._board.step(step, _facts(metrics))
        if step % every == 0 or step == self._num_steps:
            self._keep(step, metrics)

    def event(self, step: int, text: str) -> None:
        """Keep what happened to the run as a row of metrics.jsonl and as a tracker's text."""
        self._jsonl.write(json.dumps({"step": step, "event": text}) + "\n")
        self._jsonl.flush()
        self._trackers.add_text("health/event", text, min(step, self._at))  # a rescue's step is done again
        self._show_files()
        self._board.event(f"step {step:,}: {text.removeprefix(f'step {step}: ')}")

    def go_back(self, step: int) -> None:
        """Drop the lines of steps after `step`, because the run does these steps again; events stay."""
        self._jsonl.close()
        self._trackers.add_text("health/event", f"a rescue goes back to step {step}; what is later is void", self._at)
        self._trackers.close()
        self._open(step, rescued=True)
        self._board.begin(step, self._num_steps, self._first_stage)

    def image(
        self,
        name: str,
        step: int,
        images: np.ndarray,
        captions: Sequence[str] = (),
        title: str = "",
        classes: Sequence[str] = (),
    ) -> None:
        """Write a grid as images/NAME_STEP.png and for the trackers; its words as for `pictures.write_grid`."""
        if not self._writes:
            return
        path = self._workdir / "images" / f"{name}_{step:06d}.png"
        write_grid(path, images, captions, title=title, classes=classes)
        shown = grid(images, captions, title=title)
        self._trackers.add_image(f"pictures/{name}", shown, step, PICTURES.get(name) or "")
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
        line = density_line(report)
        self._trackers.add_image("pictures/density", np.asarray(Image.open(path).convert("RGB")), step, line)
        self.evaluation(step, report, line)

    def evaluation(self, step: int, report: dict[str, float], line: str) -> None:
        """Keep numbers as a row of evaluation.jsonl and for the trackers, and say a line about them."""
        if not self._writes:
            return
        with appending(self._workdir / EVALUATION) as file:
            file.write(json.dumps({"step": step, **report}) + "\n")
        for name, value in report.items():
            self._trackers.add_scalar(f"evaluation/{name}", value, step, line)
        self._show_files()
        self._board.event(f"step {step:,}: {line}")
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

    def _keep(self, step: int, metrics: dict[str, float]) -> None:
        seconds = time.perf_counter() - self._began
        row = {"step": step, **metrics, "steps_per_second": self._board.lap(), "seconds": seconds}
        self._jsonl.write(json.dumps(row) + "\n")
        self._jsonl.flush()
        for name, value in row.items():
            if name != "step":
                self._trackers.add_scalar(scalars.tag(name), value, step, scalars.description(name))
        self._show_files()
        if not self._board.is_live:
            say(self._board.line())


def _points(folder: Path) -> Iterator[Point]:
    """The numbers that a run's files have, as trackers were told them, in the order of their steps."""
    rows = [(row, False) for row in _rows(folder / METRICS)] + [(row, True) for row in _rows(folder / EVALUATION)]
    for row, judged in sorted(rows, key=lambda pair: pair[0]["step"]):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                yield Point(f"evaluation/{name}" if judged else scalars.tag(name), value, row["step"])


def _facts(metrics: dict[str, float]) -> str:
    """The metrics of a step that a person looks at, in words."""
    staged = "stage" in metrics  # then a metric of the other stage is 0
    known = {name: label for name, label in SHOWN.items() if name in metrics and not (staged and metrics[name] == 0)}
    return " ".join(f"{label} {metrics[name]:.4f}" for name, label in (known or {"loss": "loss"}).items())


def _last_step(path: Path) -> int:
    """The last step that the rows of a file have, however many of them the run does again; -1 for none."""
    return max((row["step"] for row in _rows(path)), default=-1)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that are whole and no events."""
    rows = map(_row, path.read_text().splitlines()) if path.exists() else ()
    return (row for row in rows if row and "event" not in row)


def _row(line: str) -> dict[str, Any] | None:
    """A line's row; None for one that a killed run left half written."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else None
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and a line that a killed run left half written.

    Events stay: they happened, even if the run does the steps again.
    """
    if not path.exists():
        return
    rows = ((line, _row(line)) for line in path.read_text().splitlines())
    kept = [f"{line}\n" for line, row in rows if row and (row["step"] <= step or "event" in row)]
    write_atomically(path, "".join(kept))
