"""SIGKILL at random moments of a run, saves included: it always goes on, and ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from test_train import bits, command, final_state, rows

from ebm_jax.storage import checkpoint

KILLS = 30
ENOUGH = 10  # steps, in the time of which a kill falls
TWO_DEVICES = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # a process soon trains again
    "PYTHONUNBUFFERED": "1",
}


def long_command(workdir, num_steps=100_000):
    return [sys.executable, *command(workdir, train__num_steps=num_steps, checkpoint__every=2, checkpoint__keep=3)]


@pytest.mark.slow
def test_thirty_kills_at_random_moments_cost_nothing_but_time(tmp_path):
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with started(long_command(tmp_path / "timed"), tmp_path / "log") as process:
        began = time.monotonic()
        while newest(tmp_path / "timed") < ENOUGH:
            assert time.monotonic() - began < 300
            time.sleep(0.01)
        process.kill()
    longest = time.monotonic() - began
    rng, in_saves, reached = random.Random(0), 0, []
    for _ in range(KILLS):
        with started(long_command(killed), tmp_path / "log") as process:
            time.sleep(rng.uniform(0, longest))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        in_saves += any(checkpoint.UNFINISHED in path.name for path in (killed / checkpoint.DIRECTORY).iterdir())
        reached.append(newest(killed))
    print(f"{KILLS} kills within {longest:.1f} s, {in_saves} of them in a save; newest step after each: {reached}")
    assert in_saves > 0
    assert sorted(reached) == reached, "no kill costs a finished checkpoint"
    assert reached[-1] > 60

    end = reached[-1] + 10
    for workdir in (killed, undisturbed):
        subprocess.run(long_command(workdir, end), cwd=ROOT, env=TWO_DEVICES, check=True, timeout=1200)
    states = [final_state(workdir) for workdir in (killed, undisturbed)]
    assert [state.step for state in states] == [end, end]
    for got, expected in zip(*(bits(state.state) for state in states), strict=True):
        np.testing.assert_array_equal(got, expected)
    clock = ("steps_per_second", "seconds")
    shown = [[{k: v for k, v in row.items() if k not in clock} for row in rows(run)] for run in (killed, undisturbed)]
    assert shown[0] == shown[1]


def newest(workdir):
    """The step of the newest finished checkpoint, 0 before the first."""
    names = [path.name for path in (workdir / checkpoint.DIRECTORY).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def started(words, log):
    """A process of the command, once it has said that a step was done."""
    with log.open("w") as file, subprocess.Popen(words, cwd=ROOT, env=TWO_DEVICES, stdout=file) as process:
        deadline = time.monotonic() + 300
        while "\nstep " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        yield process
