"""Ctrl-C ends the program within seconds, even while XLA compiles.

Python runs a signal's handler when the main thread comes back from C++, and XLA compiles there for minutes. So a thread
hears of the signal too, and ends the process if the main thread does not.
"""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

GRACE_SECONDS = 2.0  # for the main thread to come back from C++


@contextlib.contextmanager
def watched(end: Callable[[], object]) -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt, and call `end` if it has not done so after `GRACE_SECONDS`.

    The second Ctrl-C calls `end` at once. Training has a handler of its own as soon as it has a step to save; then only
    the second one counts. Enter it in the main thread.
    """
    heard, (near, far) = threading.Event(), socket.socketpair()

    def handler(signum: int, frame: object) -> None:
        heard.set()
        raise KeyboardInterrupt

    def listen() -> None:
        presses = 0
        while received := far.recv(64):
            presses += received.count(signal.SIGINT)
            is_ours = presses == 1 and signal.getsignal(signal.SIGINT) is handler
            if presses > 1 or (is_ours and not heard.wait(GRACE_SECONDS)):
                end()

    near.setblocking(False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = signal.signal(signal.SIGINT, handler), signal.set_wakeup_fd(near.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGINT, before[0])
        near.close()
        listener.join(GRACE_SECONDS)
        far.close()
