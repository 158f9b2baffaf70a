"""The words on the terminal: lines, warnings and tables.

If there are several processes, the first one speaks and the others only warn.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ebm_jax import invocation
from ebm_jax.distributed import processes
from ebm_jax.given import printable
from ebm_jax.types import Folder

TABLE_WIDTH = 200  # characters at most; a narrower terminal wraps the lines


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


def next_command(what: str, folder: Folder, mode: str, *words: str) -> str:
    """One line with a command to paste next, for the run in the folder; `what` it is for."""
    return f"{what}: {command(*invocation.words(), f'--mode={mode}', f'--workdir={folder}', *words)}"


def say_written(*paths: Folder) -> None:
    """Say which files a command wrote: each by its path."""
    say(f"wrote {' and '.join(filter(None, (', '.join(map(str, paths[:-1])), str(paths[-1]))))}")


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
