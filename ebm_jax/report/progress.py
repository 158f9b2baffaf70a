"""What a person sees while a command works: its phases, its steps and the time left, live or as lines of a log.

A verb enters a `Board`. Whatever it calls opens a `phase` on it, or says by `note` how far the open phase is; without a
board both are silent, as they are for who uses the package as a library. If there are several processes, the first one
speaks.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ebm_jax.distributed import processes
from ebm_jax.report.console import say
from ebm_jax.types import printable

Clock = Callable[[], float]
"""Gives seconds since any moment, never fewer than before."""

LASTS = 3.0  # seconds after which a log names a phase; shorter ones leave no line
QUIET = 15.0  # seconds between two lines of a log on how far a phase is
WINDOW, FEWEST = 60.0, 10  # the rate is over the steps of so many seconds, and over at least so many looks
TOGETHER = 0.05  # seconds; steps that are seen within them may be of one call of the devices
WIDTH = 100  # characters of the panel at most


class Pace:
    """How fast steps go, by a clock that stands still in all that is no step.

    Before the first step all is preparation: the clock of steps starts when the last phase before it ends.
    """

    def __init__(self, step: int, clock: Clock):
        self._clock, self._away, self._depth = clock, 0.0, 0
        self._paused_at = 0.0
        self._start(step)

    def _start(self, step: int) -> None:
        self._seen, self._lap = deque([(step, self._seconds())]), (step, self._seconds())

    def _seconds(self) -> float:
        """The seconds that went into steps, since any moment; for use outside pauses."""
        return self._clock() - self._away

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock; pauses may lie inside pauses."""
        if not self._depth:
            self._paused_at = self._clock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._away += self._clock() - self._paused_at
                if len(self._seen) == 1:
                    self._start(self._seen[0][0])

    def see(self, step: int) -> None:
        """Take note that the run has done this step, now."""
        now, (_, before) = self._seconds(), self._seen[-1]
        if len(self._seen) > 1 and now - before < TOGETHER:
            self._seen[-1] = step, before
        else:
            self._seen.append((step, now))
        while len(self._seen) > FEWEST and now - self._seen[0][1] > WINDOW:
            self._seen.popleft()

    def rate(self) -> float:
        """Steps a second, of late; 0 before the first step."""
        return _rate(self._seen[0], self._seen[-1])

    def lap(self, step: int) -> float:
        """Steps a second since the lap before."""
        before, self._lap = self._lap, (step, self._seconds())
        return _rate(before, self._lap)

    def forget(self) -> None:
        """Tell rates of the steps that follow alone, because they are of another kind."""
        self._seen = deque([self._seen[-1]])

    def left(self, total: int) -> float | None:
        """Seconds of steps up to step `total`, at the present rate; None: it is not known yet, or no step is left."""
        rate, steps = self.rate(), total - self._seen[-1][0]
        return steps / rate if rate and steps > 0 else None


def _rate(before: tuple[int, float], after: tuple[int, float]) -> float:
    steps, seconds = after[0] - before[0], after[1] - before[1]
    return steps / max(seconds, 1e-9) if steps > 0 else 0.0


class _Phase:
    """One piece of work that is no step."""

    def __init__(self, words: str, began: float):
        self.words, self.began, self.spoke, self.told, self.note = words, began, began, False, ""


class Board:
    """The panel on a terminal, or the lines in a log, of one command; a context manager.

    Args:
      title: the command's work in words.
      clock: seconds; the time left and what phases took are by it.
    """

    def __init__(self, title: str, clock: Clock = time.perf_counter):
        self._title, self._clock = title, clock
        self._pace, self._total, self._done, self._first_stage = Pace(0, clock), 0, 0, 0
        self._phases: list[_Phase] = []
        self._facts = self._last = ""
        self._live: Live | None = None

    def __enter__(self) -> "Board":
        terminal = Console()
        if processes.is_first() and terminal.is_terminal and not terminal.is_dumb_terminal:
            self._live = Live(self, console=terminal, refresh_per_second=4)
            self._live.start()
        _boards.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _boards.remove(self)
        if self._live:
            self._live.transient = not self._total  # the state of a run stays to be read
            self._live.stop()
            self._live = None

    @property
    def is_live(self) -> bool:
        """Whether it is a panel on a terminal, which shows each step without a line for it."""
        return self._live is not None

    def begin(self, step: int, total: int, first_stage: int = 0) -> None:
        """Steps follow, from this one on up to step `total`; also after the run went back. No phase is open.

        Args:
          first_stage: steps of another kind than those after them, whose rate says nothing about those; 0: none.
        """
        self._pace, self._done, self._total = Pace(step, self._clock), step, total
        self._first_stage = first_stage

    def step(self, step: int, facts: str) -> None:
        """The run has done this step; `facts` say how it is."""
        self._pace.see(step)
        if self._done < self._first_stage <= step:
            self._pace.forget()
        self._done, self._facts = step, printable(facts)

    def lap(self) -> float:
        """Steps a second since the lap before: of steps alone, whatever phases took."""
        return self._pace.lap(self._done)

    def line(self) -> str:
        """The present step as a line of a log."""
        line = f"step {self._done}/{self._total} {self._pace.rate():.2f} steps/s {self._facts}"
        return f"{line} {self._left()}".rstrip()

    def _left(self) -> str:
        """The time left in words: of the first stage alone as long as it lasts; empty if it is not known."""
        staged = self._done < self._first_stage < self._total
        left = self._pace.left(self._first_stage if staged else self._total)
        return "" if left is None else f"{duration(left)} left{' of the first stage' if staged else ''}"

    def event(self, words: str) -> None:
        """Keep in view what has happened last."""
        self._last = printable(words)

    @contextlib.contextmanager
    def phase(self, words: str) -> Iterator[None]:
        """Show work that is no step, and how long it takes; a log has a line if it lasts, and one at its end."""
        here = _Phase(words, self._clock())
        teller = threading.Timer(LASTS, self._tell, (here,))
        teller.daemon = True
        if processes.is_first() and not self._live:
            teller.start()
        self._phases.append(here)
        try:
            with self._pace.paused():
                yield
        finally:
            teller.cancel()
            self._phases.remove(here)
        if here.told:
            say(f"{words}: took {duration(self._clock() - here.began)}")

    def note(self, words: str) -> None:
        """Say how far the innermost open phase is."""
        if not self._phases:
            return
        here, now = self._phases[-1], self._clock()
        here.note = words
        if not self._live and now - here.spoke > QUIET:
            here.spoke, here.told = now, True
            say(f"{here.words}: {words}")

    def _tell(self, here: _Phase) -> None:
        if not here.told:
            here.told = True
            say(f"{here.words} ...")

    def __rich__(self) -> RenderableType:
        rows: list[RenderableType] = []
        if self._total:
            rate = self._pace.rate()
            bar = Table.grid(padding=(0, 2), expand=True)
            for ratio in (None, 1, None, None):
                bar.add_column(ratio=ratio, no_wrap=True)
            bar.add_row(
                f"step {self._done:,} of {self._total:,}",
                ProgressBar(total=self._total, completed=self._done),
                f"{rate:.2f} steps/s" if rate else "",
                self._left(),
            )
            rows.append(bar)
        if phases := list(self._phases):
            said = ": ".join(filter(None, (*(one.words for one in phases), phases[-1].note)))
            work = Table.grid(padding=(0, 1))
            work.add_column()
            work.add_column(no_wrap=True, vertical="bottom")
            took = duration(self._clock() - phases[-1].began)
            work.add_row(Text(f"{printable(said)},"), Text(took), style="bold")  # no markup, whatever words say
            rows.append(work)
        if self._facts:
            rows.append(Text(self._facts))
        if self._last:
            rows.append(Text(f"last: {self._last}", style="dim"))
        return Panel(Group(*rows), title=Text(printable(self._title)), title_align="left", width=_width())


_boards: list[Board] = []
"""The boards that are entered, the innermost last."""


@contextlib.contextmanager
def phase(words: str) -> Iterator[None]:
    """Show work that is no step on the board of the command at work; without one, nothing. It decorates functions."""
    with _boards[-1].phase(words) if _boards else contextlib.nullcontext():
        yield


def note(words: str) -> None:
    """Say how far the innermost open phase is, on the board of the command at work."""
    if _boards:
        _boards[-1].note(words)


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 22 s, 5 min 07 s, 3 h 20 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole // 60 % 60:02d} min"


def _width() -> int:
    return min(WIDTH, Console().width)
