"""Rewrites the page of a run while the run goes on, in at most a hundredth of its time."""

import time
from collections.abc import Callable
from pathlib import Path

from ebm_jax.paths import Folder
from ebm_jax.report import page
from ebm_jax.report.console import warn

SHARE = 0.01  # of a run's time


class Rewriting:
    """The page of the run in a folder of this machine, written at once, as often as `SHARE` allows, and at the end.

    A failure is one line of warning, and ends neither the run nor later attempts.

    Args:
      folder: None: write nothing.
      place: the run's own folder, of which `folder` may be a copy.
      clock: gives seconds.
    """

    def __init__(
        self, folder: Path | None, place: Folder | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._folder, self._place, self._clock = folder, place, clock
        self._began, self._spent, self._last = clock(), 0.0, 0.0
        self._warned = False

    def rewrite(self, *, last: bool = False) -> None:
        """Write the page anew, unless it would take too much of the time so far; the last time in any case."""
        before = self._clock()
        expected = self._spent + self._last
        if self._folder is None or (expected > SHARE * (before - self._began) and not last):
            return
        self._warned = _written(self._folder, self._place, self._warned)
        self._last = self._clock() - before
        self._spent += self._last


def write(folder: Folder) -> None:
    """Write the page of the run in `folder`, or one line of warning that says why there is none."""
    _written(folder, folder, False)


def _written(folder: Folder, place: Folder | None, warned: bool) -> bool:
    """Write the page; whether there was a warning now or before."""
    try:
        page.write(folder, place)
    except Exception as error:  # a page is not worth a run, whatever is wrong with it
        if not warned:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            warn(f"{folder / page.NAME} is not written ({type(error).__name__}: {reason}); all else is")
        return True
    return warned
