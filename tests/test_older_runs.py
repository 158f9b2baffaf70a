"""Runs of commit a7536e2 load, sample, export, evaluate and go on; tests/fixtures/README.md says how to make them."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebm_jax
import run
from ebm_jax.report.reporter import METRICS
from ebm_jax.storage import compiled, provenance, workdir

FIXTURES = Path(__file__).parent / "fixtures"
MADE = json.loads((FIXTURES / "runs_a7536e2.json").read_text())
pytestmark = [pytest.mark.optimised, pytest.mark.whole]
RUNS = ("digits", "conditional", "density")
SAME_MACHINE = (MADE["machine"], MADE["jax"]) == (compiled.machine(), jax.__version__)


@pytest.fixture
def runs(tmp_path):
    """A copy of the three runs."""
    with tarfile.open(FIXTURES / "runs_a7536e2.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def settled(out):
    """What a command printed, without the progress of long work."""
    return [line for line in out.splitlines() if "is of an earlier version" in line]


def test_the_fixture_is_small_enough_to_keep():
    assert sum(file.stat().st_size for file in FIXTURES.glob("runs_a7536e2*")) < 300_000


@pytest.mark.parametrize("name", RUNS)
def test_an_older_run_loads_with_the_energies_and_samples_that_it_had(runs, name):
    config, params = ebm_jax.load(runs / name)
    made, shape = MADE["runs"][name], tuple(config.data.shape)
    x = jnp.asarray(np.random.default_rng(0).random((4, *shape)).astype(np.float32))
    labels = None if config.model.num_classes == 1 else jnp.arange(4, dtype=jnp.int32)
    energies = ebm_jax.make_energy_fn(config)(params, x, labels)
    np.testing.assert_allclose(energies, made["energies"], rtol=1e-4, atol=1e-5)
    images = ebm_jax.make_sample_fn(config)(params, jax.random.key(5))[:2]
    if name != "density":  # a rejected move of MALA is all or nothing: another processor may reject another one
        np.testing.assert_allclose(images, made["samples"], atol=2e-3)
    elif SAME_MACHINE:
        np.testing.assert_allclose(images, made["samples"], atol=1e-5)


def without(row, *names):
    return {key: value for key, value in row.items() if key not in names}


@pytest.mark.parametrize("name", RUNS)
def test_an_older_run_goes_on_as_it_would_have_gone_on(runs, name, capsys):
    folder = runs / name
    file = "density2d" if name == "density" else "digits_contrastive"
    own = json.loads((folder / workdir.CONFIG).read_text())
    flags = [
        f"--config.{group}.{key}={tuple(value) if isinstance(value, list) else value}"
        for group in ("data", "model", "chain", "buffer", "loss", "optim", "train")
        for key, value in own[group].items()
        if value not in ("", None) and key not in ("num_steps", "cpu_devices")
    ]
    kept = ["--config.log.every=1", "--config.log.images_every=0", "--config.checkpoint.every=3"]
    steps = [f"--config.chain.num_steps={own['chain']['num_steps']}", "--config.train.num_steps=10"]
    status = run.main(["run.py", f"--config=configs/{file}.py", f"--workdir={folder}", *flags, *kept, *steps])
    told = capsys.readouterr()
    assert status == 0, told.err
    assert "going on from step 6" in told.out
    assert len(settled(told.err + told.out)) == 1
    rows = [row for row in map(json.loads, (folder / METRICS).read_text().splitlines()) if row["step"] > 6]
    expected = [without(row, "energy_gap_trend") for row in MADE["runs"][name]["continued"]]
    found = [without(row, "seconds", "steps_per_second", "energy_gap_trend") for row in rows]
    if SAME_MACHINE:
        assert found == expected
    else:
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=2e-2, abs=2e-3)
    assert all(row["energy_gap"] > 0 and row["energy_gap_trend"] == 0 for row in rows), "only a gap below 0 has one now"
    written = json.loads((folder / provenance.FILE).read_text())
    assert [(entry["event"], entry["step"]) for entry in written] == [("went on", 6)]
    assert {"jax", "flax", "commit", "ebm_jax"} <= set(written[0])


@pytest.mark.parametrize("name", RUNS)
def test_an_older_run_samples_and_exports(runs, name, capsys):
    assert run.main(["run.py", "--mode=sample", f"--workdir={runs / name}"]) == 0
    assert len(settled(capsys.readouterr().err)) == 1
    assert list((runs / name / "samples").glob("*.npz"))
    assert run.main(["run.py", "--mode=export", f"--workdir={runs / name}"]) == 0
    assert len(list((runs / name / "export").iterdir())) == 2


def test_an_older_run_evaluates(runs, capsys):
    small = {
        "num_samples": 16,
        "batch_size": 16,
        "chains.number": 8,
        "chains.steps": 16,
        "metrics": "chains,memorisation",
    }
    flags = [f"--config.eval.{key}={value}" for key, value in small.items()]
    status = run.main(["run.py", "--mode=evaluate", f"--workdir={runs / 'conditional'}", *flags])
    assert status == 0, capsys.readouterr().err
    (card,) = (runs / "conditional" / "evaluation").glob("*/evaluation.json")
    assert set(json.loads(card.read_text())["metrics"]) == {"chains", "memorisation"}


@pytest.mark.parametrize("name", RUNS)
def test_an_export_of_a7536e2_runs_beside_this_version(runs, name):
    (folder,) = (runs / name / "export").iterdir()
    environment = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": str(runs)}
    done = subprocess.run(
        [sys.executable, str(folder / "example.py")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "mean energy" in done.stdout
