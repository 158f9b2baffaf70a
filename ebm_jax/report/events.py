"""TensorBoard events that end with an error where they cannot be written: tensorboardX's own wait for ever then."""

import contextlib
import threading
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


class Events:
    """A tensorboardX writer; what its thread fails of, a full disk say, is raised by the next call.

    Left to itself that thread dies with a traceback, and its queue of ten blocks whoever puts an eleventh event in.
    """

    def __init__(self, folder: str | Path, **options: Any):
        before = set(threading.enumerate())
        number = sum(
            1 for _ in Path(folder).glob("events.out.tfevents.*")
        )  # one opened within a second would overwrite it
        self._writer = SummaryWriter(str(folder), filename_suffix=f".{number}", **options)
        self._threads = set(threading.enumerate()) - before
        self._error: BaseException | None = None
        self._hook, threading.excepthook = threading.excepthook, self._notice

    def _notice(self, args: threading.ExceptHookArgs) -> None:
        if args.thread in self._threads:
            self._error = args.exc_value
        else:
            self._hook(args)

    def _usable(self) -> SummaryWriter:
        if self._error is not None:
            raise self._error
        return self._writer

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """A number of one step."""
        self._usable().add_scalar(name, value, step)

    def add_image(self, name: str, picture: Any, step: int) -> None:
        """A picture uint8 [h, w, c] of one step."""
        self._usable().add_image(name, picture, step, dataformats="HWC")

    def add_text(self, name: str, text: str, step: int) -> None:
        """Words about one step."""
        self._usable().add_text(name, text, step)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        threading.excepthook = self._hook
        if self._error is not None:
            with contextlib.suppress(AttributeError):  # inside tensorboardX: without it the process waits at its end
                self._writer.file_writer.event_writer._event_queue.cancel_join_thread()  # pyright: ignore
        self._usable().close()
