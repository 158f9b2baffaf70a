"""SIGKILL at random moments of a run, saves included: it always goes on, and ends as if nothing had happened."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, wait_until
from test_train import bits, command, final_state, rows

from ebm_jax.storage import checkpoint

KILLS = 30
ENOUGH = 10  # steps at most, from one kill to the next
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
    rng, in_saves, reached = random.Random(0), 0, [0]
    while len(reached) <= KILLS or (in_saves == 0 and len(reached) <= 10 * KILLS):
        with started(long_command(killed), tmp_path / "log") as process:
            due = reached[-1] + rng.randrange(ENOUGH)
            wait_until(partial(reached_step, killed, due))
            if len(reached) % 2:
                wait_until(lambda: is_saving(killed))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        in_saves += is_saving(killed)
        assert newest(killed) >= due, "no kill costs a finished checkpoint"
        reached.append(newest(killed))
    print(f"{len(reached) - 1} kills, {in_saves} of them in a save; newest step after each: {reached[1:]}")
    assert in_saves > 0

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


def reached_step(workdir, step):
    return newest(workdir) >= step


def is_saving(workdir):
    """Whether a checkpoint is not finished yet."""
    return any(checkpoint.UNFINISHED in path.name for path in (workdir / checkpoint.DIRECTORY).glob("*"))


def newest(workdir):
    """The step of the newest finished checkpoint, 0 before the first."""
    names = [path.name for path in (workdir / checkpoint.DIRECTORY).glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def started(words, log):
    """A process of the command, once it has said that a step was done."""
    with log.open("w") as file, subprocess.Popen(words, cwd=ROOT, env=TWO_DEVICES, stdout=file) as process:
        wait_until(lambda: "\nstep " in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process
