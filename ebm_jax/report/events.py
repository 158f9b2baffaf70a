"""TensorBoard events that raise an error if they cannot be written; tensorboardX alone would wait for ever."""

import contextlib
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter, summary


class Events:
    """A tensorboardX writer. If its thread fails, for example because the disk is full, later calls raise that error.

    tensorboardX alone lets the thread die with a traceback. Its queue of ten then blocks whoever puts in an eleventh
    event, even before the failure is noticed; so the queue here has no limit.
    """

    def __init__(self, folder: str | Path, **options: Any):
        before = set(threading.enumerate())
        # A name that nobody can foresee: it overwrites no file of the same second, and follows no link put there
        self._writer = SummaryWriter(str(folder), max_queue=0, filename_suffix=f".{uuid.uuid4().hex}", **options)
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

    def add_scalar(self, name: str, value: float, step: int, description: str = "") -> None:
        """Write a number of one step; TensorBoard shows the description beside its name."""
        self._usable().add_scalar(name, value, step, summary_description=description)

    def add_image(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """Write a picture uint8 [h, w, c] of one step; TensorBoard shows the caption beside its name."""
        found = summary.image(name, picture, dataformats="HWC")
        found.value[0].metadata.summary_description = caption
        self._usable().file_writer.add_summary(found, step)  # pyright: ignore[reportOptionalMemberAccess]

    def add_text(self, name: str, text: str, step: int) -> None:
        """Write words about one step."""
        self._usable().add_text(name, text, step)

    def add_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Write the values by which TensorBoard tells runs apart in its table of hyper-parameters."""
        known = {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in values.items()}
        for part in summary.hparams(known, {"optim/loss": 0.0}):
            self._usable().file_writer.add_summary(part)  # pyright: ignore[reportOptionalMemberAccess]

    def close(self) -> None:
        """Write what waits, and end the thread."""
        writer: Any = None
        queue: Any = None
        with contextlib.suppress(AttributeError):  # without events on this disk there is none
            writer = self._writer.file_writer.event_writer  # pyright: ignore
            queue = writer._event_queue
        try:
            self._usable().close()
            self._usable()  # the thread may have failed meanwhile
        except BaseException:
            if queue is not None:
                queue.cancel_join_thread()  # else the process waits at its end for a queue that nobody empties
                writer._closed = True  # else tensorboardX closes it once more there
            raise
        finally:
            threading.excepthook = self._hook
