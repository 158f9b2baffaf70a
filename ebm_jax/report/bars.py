"""The bars of tqdm, which libraries draw while they fetch and prepare data, as notes on the board."""

import contextlib
import io
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ebm_jax.report import progress
from ebm_jax.report.numbers import Number


@contextlib.contextmanager
def as_notes() -> Iterator[None]:
    """Inside it a bar says by `progress.note` how far it is, and draws nothing: it would tear the panel apart.

    Without tqdm there is nothing to do. It holds for the whole process, so it is for a program's verbs.
    """
    if find_spec("tqdm") is None:
        yield
        return
    automatic: Any = import_module("tqdm.auto")
    drawn = automatic.tqdm
    automatic.tqdm = _noted(drawn)
    try:
        yield
    finally:
        automatic.tqdm = drawn


def _noted(drawn: Any) -> Any:
    """A class of bars like this one, which note what they would draw."""

    class Noted(drawn):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"file": io.StringIO(), "leave": False}))

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            del pos
            if msg is None and 0 < self.n != self.total:  # TFDS calls bytes MiB in bars that are full at once
                progress.note(in_words(self.desc, self.n, self.total, self.unit))

    return Noted


def in_words(what: str, done: Number, total: Number | None, unit: str) -> str:
    """How far a bar is: its words, without the folders of a path, how many of how many, and the unit."""
    what = re.sub(r"\S*/", "", what)
    of = f" of {total:,.0f}" if total else ""
    return f"{what.rstrip('.: ')}, {done:,.0f}{of} {unit.strip()}".strip(", ")
