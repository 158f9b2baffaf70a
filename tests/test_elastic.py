"""A run of eight devices continues with every chain on any number of devices that divides its batch and buffer."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_train import bits, command, density_command, files

import run
from ebm_jax import cli, opening, program
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.report import console
from ebm_jax.storage import checkpoint, workdir

pytestmark = pytest.mark.whole

# 24 rows a batch: 1, 2, 3, 4, 6 and 8 devices divide it
SIZES = {"train__batch_size": 24, "buffer__capacity": 48}


def on_devices(monkeypatch, number):
    """Let the mesh of all devices hold only the first `number`."""
    whole = parallel.device_mesh
    monkeypatch.setattr(parallel, "device_mesh", lambda devices=None: whole(devices or jax.devices()[:number]))


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory):
    """The folder of a run of labelled digits with a checkpoint of eight devices, and what was saved in it."""
    folder, rng = tmp_path_factory.mktemp("conditional") / "run", np.random.default_rng(0)
    config = cli.parse(command(folder, model__num_classes=10, **SIZES)).config
    workdir.claim(folder, config)
    mesh = parallel.device_mesh(jax.devices())
    state = program.make_state(config, mesh)
    buffer = state.memory._replace(
        labels=parallel.place_batch(mesh, rng.integers(0, 10, 48, np.int32)),
        visits=parallel.place_batch(mesh, rng.permutation(48).astype(np.int32)),
    )
    state = state._replace(memory=buffer)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, 3, state)
    return folder, bits(state)


class Points(NamedTuple):
    """A run of 2-D points without added noise: its checkpoint of step 3 and its metrics of the next step."""

    config: ConfigDict
    folder: Path
    next_metrics: dict


def one_step(config, mesh, state, step):
    with sources.open_batches(config, console.warn) as batches:
        state, metrics = program.make_step(config, mesh)(state, program.place_batch(config, mesh, batches(step)))
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    folder, mesh = tmp_path_factory.mktemp("points") / "run", parallel.device_mesh(jax.devices())
    config = cli.parse(density_command(folder, chain__kernel="langevin", buffer__ring=True, **SIZES)).config
    workdir.claim(folder, config)
    state = program.make_state(config, mesh)
    for step in range(3):
        state, _ = one_step(config, mesh, state, step)
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, 3, state)
    return Points(config, folder, one_step(config, mesh, state, 3)[1])


@pytest.mark.parametrize("number", [1, 3, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 6))])
def test_all_of_a_run_of_eight_devices_comes_back_on_another_number_every_chain_in_its_place(conditional_run, number):
    folder, saved = conditional_run
    mesh = parallel.device_mesh(jax.devices()[:number])
    restored = opening.restore(folder, program.abstract_state(workdir.read_config(folder), mesh))
    assert (restored.step, restored.skipped) == (3, {})
    assert restored.state.memory.images.sharding.num_devices == number
    assert restored.state.memory.images.addressable_shards[0].data.shape[0] == 48 // number
    for got, expected in zip(bits(restored.state), saved, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.sort(restored.state.memory.visits), np.arange(48))


@pytest.mark.parametrize("number", [3, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4, 6))])
def test_the_first_metrics_after_restoring_are_those_that_the_run_would_have_shown(points, number):
    mesh = parallel.device_mesh(jax.devices()[:number])
    restored = opening.restore(points.folder, program.abstract_state(points.config, mesh))
    _, metrics = one_step(points.config, mesh, restored.state, 3)
    if number == 8:
        assert metrics == points.next_metrics
    else:  # the chains' noise depends on the number of devices; the weights and the batch of data do not
        assert math.isclose(metrics["energy_data"], points.next_metrics["energy_data"], rel_tol=1e-5)
        assert metrics["energy_samples"] != points.next_metrics["energy_samples"]


def test_a_number_of_devices_that_does_not_divide_is_one_clear_line_and_touches_nothing(
    conditional_run, capsys, monkeypatch
):
    folder, _ = conditional_run
    before = files(folder)
    on_devices(monkeypatch, 5)
    assert run.main(command(folder, train__num_steps=6, model__num_classes=10, **SIZES)) == 2
    error = capsys.readouterr().err
    assert "train.batch_size 24 is not divisible by 5 devices; use 20 or 25" in error
    assert error.count("\n") == 1
    assert files(folder) == before
