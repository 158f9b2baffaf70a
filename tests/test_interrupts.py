"""Ctrl-C ends a program that XLA or another library holds in C++, and costs no step that was taken."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import FOR_EVER, ROOT

from ebm_jax import train
from ebm_jax.distributed import interrupts

pytestmark = pytest.mark.whole

INSIDE = ctypes.CDLL(None).read  # it lets other Python threads run, as XLA's compiler does


class Program:
    """A main thread that waits in C until the program is ended by force, and what happened, in order."""

    def __init__(self):
        self.wakes, self.waker = os.pipe()
        self.events = []

    def end(self):
        self.events.append("end")
        os.write(self.waker, b"x")

    def wait_in_c(self):
        INSIDE(self.wakes, ctypes.create_string_buffer(1), 1)
        self.events.append("back in Python")


@pytest.fixture
def held(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_SECONDS", 0.2)
    return Program()


def press():
    """Ctrl-C, by a thread, because a signal to the main thread would wake it up from C."""

    def send():
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    threading.Thread(target=send).start()


def held_in_c(held):
    with interrupts.watched(held.end):
        press()
        held.wait_in_c()


def test_ctrl_c_ends_a_program_whose_main_thread_is_inside_c_and_stays_there(held):
    with pytest.raises(KeyboardInterrupt):
        held_in_c(held)
    assert held.events[0] == "end", "it did not wait for the main thread"


def held_in_python(held):
    with interrupts.watched(held.end):
        try:
            press()
            for _ in range(100 * FOR_EVER):
                time.sleep(0.01)
        finally:
            time.sleep(3 * interrupts.GRACE_SECONDS)  # a save on the way out


def test_a_main_thread_in_python_gets_the_interrupt_and_ends_the_program_itself(held):
    with pytest.raises(KeyboardInterrupt):
        held_in_python(held)
    assert held.events == []


def test_the_first_ctrl_c_is_left_to_a_handler_that_saves_and_the_second_ends_at_once(held):
    with interrupts.watched(held.end):
        signal.signal(signal.SIGINT, lambda *_: held.events.append("saved"))
        press()
        while not held.events:
            time.sleep(0.01)
        time.sleep(2 * interrupts.GRACE_SECONDS)
        assert held.events == ["saved"]
        press()
        held.wait_in_c()
    assert held.events[:2] == ["saved", "end"]


def test_afterwards_signals_are_as_they_were(held):
    before = signal.getsignal(signal.SIGINT)
    with interrupts.watched(held.end):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_training_takes_the_signals_only_once_it_has_a_step_to_save(capfd):
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    with train._stop_signal() as stop:
        assert {signum: signal.getsignal(signum) for signum in before} == before
        for _ in range(2):
            stop.take_over()
        assert not stop.is_due(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.is_due(1)
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT], "the second one acts as usual"
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert {signum: signal.getsignal(signum) for signum in before} == before
    assert "stopping after this step" in capfd.readouterr().err


LONG = [
    *(sys.executable, "run.py", "--config=configs/cifar10.py", "--config.data.source=noise"),
    *("--config.train.num_steps=50", "--config.log.every=1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_run_that_compiles_ends_within_seconds(tmp_path, signum, status):
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": ""}
    with subprocess.Popen(
        [*LONG, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("training "):
            assert process.poll() is None, "the run ended before the signal"
        time.sleep(5)
        began = time.monotonic()
        process.send_signal(signum)
        out, err = process.communicate(timeout=FOR_EVER)
        seconds = time.monotonic() - began
    print(f"ended {seconds:.1f} s after the signal")
    assert process.returncode == status
    assert seconds < 15, "2.6 s with five other jobs on two cores; compiling goes on for minutes there"
    assert "step 1/" not in out
    assert (
        err == "" if signum == signal.SIGTERM else "run.py: interrupted; nothing since the last checkpoint is saved\n"
    )
