"""The processes of one run: how they meet, decide together, and end together when one of them fails.

They talk through JAX's coordination service, a table of texts that process 0 holds, not through the devices: a process
can give up waiting there, but it cannot give up in a collective of the devices.

JAX is imported only to join them: what a program tells before that, it tells at once.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from ebm_jax import invocation
from ebm_jax.distributed.launch import Launch as Launch
from ebm_jax.given import BadInput, printable

ADDRESS = "JAX_COORDINATOR_ADDRESS"  # where JAX looks for the coordinator too
MEETING, FAILED = "ebm_jax/meeting/", "ebm_jax/failed/"  # folders of the table
PATIENCE_MS = 24 * 3600 * 1000  # at a meeting: a process may be preparing data; a dead one misses its heartbeats
LEAVE_SECONDS = 5.0  # for all to end by themselves after one has failed
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
LOOK_SECONDS = 0.5  # between two looks for a failed process

_numbers = itertools.count()  # of meetings; all processes have the same meetings in the same order


def index() -> int:
    """The number of this process, 0 if it is alone; touches no device."""
    return state.process_id if (state := _state()) else 0


def count() -> int:
    """The number of processes; touches no device."""
    return state.num_processes if (state := _state()) else 1


def is_first() -> bool:
    """Whether this is the one process that writes what people read."""
    return index() == 0


def are_joined() -> bool:
    """Whether this process has joined a run, even a run of one process."""
    return _table() is not None


def _table() -> Any:
    return state.client if (state := _state()) else None


def _state() -> Any:
    """JAX's record of the processes; None before JAX is imported. A thread's import would wait for the main one's."""
    module = sys.modules.get("jax._src.distributed")  # it has no public name; Orbax takes it from here too
    return getattr(module, "global_state", None)


@contextlib.contextmanager
def joined(launch: Launch | None, alike: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Join the other processes of the run and leave with them; None: a run of one process.

    Enter it before anything touches a device. If a process fails alone, the others end with its line and its exit
    status, by themselves or after `LEAVE_SECONDS` by force: nothing else ends a wait for devices that never come. If
    the processes have not met after `launch.timeout`, this process prints one line and ends with exit status 2.

    Args:
      alike: errors that all processes raise at the same point, besides the errors of `agreed` and `meet`.

    Raises:
      BadInput: the numbers are wrong, or differ between the processes, or there is no coordinator.
    """
    if launch is None:
        yield
        return
    _join(launch)
    import jax

    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(over,), daemon=True)
    watcher.start()
    try:
        with announced(alike):
            require_same("--num_processes", str(count()))
            yield
    finally:
        jax.distributed.shutdown()  # waits for the others
        over.set()
        watcher.join(LEAVE_SECONDS)  # Python 3.11 aborts the process if it ends while a thread is inside JAX's C++


def _join(launch: Launch) -> None:
    launch = launch._replace(coordinator=launch.coordinator or os.environ.get(ADDRESS))
    _check(launch)
    import jax

    overdue = threading.Timer(launch.timeout, _give_up, [launch])  # JAX alone would abort with a stack trace
    overdue.daemon = True
    overdue.start()
    try:
        timeout = int(launch.timeout) + 60
        jax.distributed.initialize(*launch[:3], initialization_timeout=timeout)
    except Exception as error:  # each kind of cluster raises its own
        raise BadInput(
            f"--multihost does not know the other processes ({_line(error)}); this is no Cloud TPU and no SLURM step: "
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    finally:
        overdue.cancel()


def _check(launch: Launch) -> None:
    coordinator, number, own, timeout = launch
    if not timeout > 0:
        raise BadInput(f"--join_timeout {timeout} is out of range; give seconds, more than 0")
    if number is not None and number < 1:
        raise BadInput(f"--num_processes {number} is out of range; it must be at least 1")
    if own is not None and (own < 0 or (number is not None and own >= number)):
        limit = "at least 0" if number is None else f"0 to {number - 1}, of {number} processes"
        raise BadInput(f"--process_id {own} is out of range; it must be {limit}")
    if coordinator is None:
        return
    match = re.fullmatch(r"(.+):(\d{1,5})", coordinator)
    if not match:
        raise BadInput(f"--coordinator {coordinator} is not HOST:PORT; give the address of process 0 and a free port")
    if own == 0 and (reason := _unusable(int(match[2]))):  # JAX would crash
        raise BadInput(f"--coordinator {coordinator}: process 0 cannot open the port ({reason}); give a free one")


def _unusable(port: int) -> str:
    """Why this process cannot listen at the port; empty if it can."""
    both = socket.has_dualstack_ipv6()
    try:
        with socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both):
            return ""
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or _line(error)


def _give_up(launch: Launch) -> NoReturn:
    """End this process, which waits inside JAX for the others, with one line."""
    at = f" at {launch.coordinator}" if launch.coordinator else ""
    who = "the processes" if launch.process_id is None else f"process {launch.process_id} of {launch.num_processes}"
    _end(
        f"{who} did not meet the others{at} within {launch.timeout:g} s{_why(launch)}; start the same command on every "
        "host, with one coordinator, each process with an id of its own",
        2,
    )


def _why(launch: Launch) -> str:
    if not launch.coordinator or launch.process_id == 0:
        return ""
    host, _, port = launch.coordinator.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return ""
    except OSError as error:
        return f" ({_line(error)})"


def meet(value: str = "", error: str = "") -> list[str]:
    """Wait for all processes; each brings a text, and gets all texts in the order of the processes.

    Raises:
      BadInput: a process brought an error; all processes raise it.
    """
    if not are_joined():
        texts = [json.dumps([value, error])]
    else:
        table, place = _table(), f"{MEETING}{next(_numbers)}/"
        table.key_value_set(f"{place}{index():06d}", json.dumps([value, error]))
        table.wait_at_barrier(place, PATIENCE_MS)
        texts = [text for _, text in sorted(table.key_value_dir_get(place))]
    values, errors = zip(*map(json.loads, texts), strict=True)
    for process, reason in enumerate(errors):
        if reason:
            raise _everywhere(reason if process == index() else f"process {process}: {reason}")
    return list(values)


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """For work that all processes do alike, or one does for all; if it fails on one, the others raise BadInput."""
    try:
        yield
    except Exception as error:  # the others must know of any error
        if not (isinstance(error, BadInput) and error.everywhere):
            with contextlib.suppress(BadInput):
                meet(error=_line(error))
        if isinstance(error, BadInput):
            error.everywhere = True
        raise
    meet()


def require_same(what: str, value: str) -> None:
    """Raise BadInput on all processes if their values of `what` differ."""
    values = meet(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise _everywhere(
                f"{what} is {values[0]} on process 0 and {other} on process {process}; start the same command on all"
            )


def from_first(value: str) -> str:
    """Process 0's value, on all processes."""
    return meet(value)[0]


@contextlib.contextmanager
def announced(alike: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """For work that may fail on one process alone; tells the others at once, because they may wait for it for ever.

    Args:
      alike: as for `joined`.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if are_joined() and not isinstance(error, alike) and not (isinstance(error, BadInput) and error.everywhere):
            _tell(_status(error), _line(error), traceback.format_exc() if _status(error) == 1 else "")
        raise


def _tell(status: int, line: str, trace: str) -> None:
    """Tell all processes that this one has failed."""
    import jax

    with contextlib.suppress(jax.errors.JaxRuntimeError):  # told already, or nobody is left to tell
        _table().key_value_set(f"{FAILED}{index()}", json.dumps([status, line, trace]))


def stop_is_due(step: int) -> bool:
    """Whether all processes must save and end after this step, because one of them got SIGTERM.

    Ask after every step. The caller counts steps by ones.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def _status(error: BaseException) -> int:
    return 2 if isinstance(error, BadInput) else 130 if isinstance(error, KeyboardInterrupt) else 1


def _watch(over: threading.Event) -> None:
    """End this process `LEAVE_SECONDS` after any process has announced its failure."""
    import jax

    while not over.wait(LOOK_SECONDS):
        try:
            told = _table().key_value_dir_get(FAILED)
        except (jax.errors.JaxRuntimeError, AttributeError):  # this process is leaving already
            return
        failures = {int(place.rpartition("/")[2]): json.loads(text) for place, text in told}
        if failures and not over.wait(LEAVE_SECONDS):
            _end_for(failures)


def _end_for(failures: dict[int, tuple[int, str, str]]) -> NoReturn:
    """End by force for this process's own failure, or else for the failure of the failed process of lowest number."""
    process = index() if index() in failures else min(failures)
    status, line, trace = failures[process]
    if process == index():
        sys.stderr.write(trace)
    else:
        line = f"process {process} failed: {line}"
        import jax

        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)  # the failed process waits for it
        leaving.start()
        leaving.join(LEAVE_SECONDS)
    if is_first():
        time.sleep(LEAVE_SECONDS)  # without the coordinator JAX would abort processes that are still leaving
    _end(line, status)


def end_interrupted(line: str) -> NoReturn:
    """End this process with one line and exit status 130, from a thread beside the main one, which is inside C++.

    The other processes of the run end too: this one tells them, and waits until `joined` ends it as it ends them.
    """
    if are_joined():
        telling = threading.Thread(target=_tell, args=(130, line, ""), daemon=True)
        telling.start()
        telling.join(LEAVE_SECONDS)
        time.sleep(LOOK_SECONDS + 3 * LEAVE_SECONDS)
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR)
    _end(line, 130)


def _end(line: str, status: int) -> NoReturn:
    print(f"{invocation.name()}: {printable(line)}", file=sys.stderr, flush=True)
    os._exit(status)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, BadInput | OSError) else f"{type(error).__name__}: {text[:200]}"


def _everywhere(line: str) -> BadInput:
    error = BadInput(line)
    error.everywhere = True
    return error
