"""The words on the terminal: lines, warnings, tables, and the progress of work in pieces.

If there are several processes, the first one speaks and the others only warn.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ebm_jax.distributed import processes
from ebm_jax.given import printable

TABLE_WIDTH = 200  # characters at most; a narrower terminal wraps the lines
QUIET_SECONDS = 15.0  # of silence before a note, without a terminal


def say(text: str) -> None:
    """Print one plain line, on the first process only."""
    if processes.is_first():
        print(printable(text), flush=True)


def warn(text: str) -> None:
    """Print one plain line to standard error; every process but the first begins it with its number."""
    line = text if processes.is_first() else f"process {processes.index()}: {text}"
    print(printable(line), file=sys.stderr, flush=True)


def command(*words: str) -> str:
    """A command as one line to paste into the shell, its words quoted where that is needed."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def warn_skipped(checkpoints: dict[int, str]) -> None:
    """Print one line for each damaged checkpoint: its step, and what is wrong with it."""
    for step, reason in checkpoints.items():
        warn(f"skipped a damaged checkpoint, step {step}: {reason}")


def density_line(report: dict[str, float]) -> str:
    """How far a model is from a 2-D law, in words; `report` has kl, nll and entropy, in nats."""
    return (
        f"KL(data || model) {report['kl']:.4f} nats, negative log-likelihood {report['nll']:+.4f}, of which the data's "
        f"entropy is {report['entropy']:+.4f}"
    )


def table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title, the header row first, on the first process only."""
    if not processes.is_first():
        return
    found = Table(box=box.SIMPLE, title=Text(printable(title)), title_justify="left")
    for cell in rows[0]:
        found.add_column(Text(printable(cell)), no_wrap=True)
    for row in rows[1:]:
        found.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=TABLE_WIDTH).print(found)


class Pieces:
    """A progress bar of work that comes in a few named pieces: a context manager; iterating begins each piece in turn.

    Without a terminal it prints a line when a piece begins, and a note only after `QUIET_SECONDS` of silence.
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
            self._progress.update(self._task, description=printable(words))
        else:
            say(words)
