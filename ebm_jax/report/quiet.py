"""Keeps libraries' logs and tracebacks off the terminal if this project reports the same failure in one line.

It also keeps a terminal or file without our letters, such as ∇, from ending the program.

Only a program that owns its process may do this: run.py does. Whoever uses the package as a library keeps all logs.
"""

import io
import logging
import sys
from functools import partial
from typing import Any


def be_quiet() -> None:
    """Drop these libraries' noise for the rest of the process; a second call changes nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Windows writes files in its own code page
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_of_a_task)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs failures that it also raises, or gets over
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = partial(_unraisable, sys.unraisablehook)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """False for Orbax's logs, such as those about a checkpoint that it cannot read or write."""
    return "orbax" not in record.pathname


def _is_not_of_a_task(record: logging.LogRecord) -> bool:
    """False for asyncio's logs about Orbax's reads and writes that fail beside the one that raises.

    asyncio logs them when Python collects them, perhaps long after, at the end of the process.
    """
    words = record.getMessage()
    return "exception was never retrieved" not in words and "Task was destroyed but it is pending" not in words


def _unraisable(otherwise: Any, unraisable: Any) -> None:
    """Drop what Orbax's coroutines raise when Python collects them: one failed file ends the event loop of all."""
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
        otherwise(unraisable)
