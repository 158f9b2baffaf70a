"""Several processes of one run, each a host of its own on this machine's CPU: the same training, files and stops."""

import json
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest
from conftest import FOR_EVER, ROOT, finished, free_port, start
from PIL import Image

from configs import density2d
from configs import digits_contrastive as digits
from ebm_jax import opening, program
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.report import reporter, style
from ebm_jax.storage import checkpoint
from ebm_jax.storage.workdir import read_config
from ebm_jax.types import BadInput

pytestmark = pytest.mark.whole

SHORT = {
    "model.width": 4,
    "chain.num_steps": 2,
    "buffer.capacity": 64,
    "train.batch_size": 16,
    "train.num_steps": 6,
    "sample.num_steps": 3,
    "sample.quiet_steps": 1,
    "sample.num_images": 16,
    "log.every": 1,
    "log.images_every": 0,
    "checkpoint.every": 3,
}
LOOKS = {"eval__during": 3, "eval__during_samples": 140, "eval__classifier_distance__steps": 2, "eval__splits": 2}


def words(workdir, devices, **changes):
    values = SHORT | {"train.cpu_devices": devices} | {key.replace("__", "."): value for key, value in changes.items()}
    named = [f"--config.{key}={value}" for key, value in values.items()]
    return [
        str(ROOT / "run.py"),
        f"--config={ROOT / 'configs' / 'digits_contrastive.py'}",
        f"--workdir={workdir}",
        *named,
    ]


def run_alone(workdir, devices, **changes):
    return [start([sys.executable, *words(workdir, devices, **changes)])]


def run_together(workdir, count, devices, *, folders=None, homes=None, **changes):
    """`count` processes, started in these folders and with these home folders."""
    meeting = f"--coordinator=127.0.0.1:{free_port()} --num_processes={count} --join_timeout={FOR_EVER}"
    ours = [["--multihost", *meeting.split()]]
    commands = [
        [sys.executable, *words(workdir, devices, **changes), *ours[0], f"--process_id={me}"] for me in range(count)
    ]
    environments = [{"HOME": str(home)} for home in homes] if homes else [{}] * count
    return [
        start(command, folder, **environment)
        for command, folder, environment in zip(commands, folders or [ROOT] * count, environments, strict=True)
    ]


def state_at(workdir, step, devices=4):
    """The checkpoint of this step, restored in this process over some of its devices."""
    mesh = parallel.device_mesh(jax.devices()[:devices])
    restored = opening.restore(workdir, program.abstract_state(read_config(workdir), mesh), before=step + 0.5)
    assert restored.step == step
    return restored.state


def named_leaves(state):
    leaves = jax.tree_util.tree_leaves_with_path(state._replace(key=jax.random.key_data(state.key)))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def rows(workdir, file=reporter.METRICS):
    return [json.loads(line) for line in (workdir / file).read_text().splitlines()]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def runs(tmp_path_factory, request):
    """Folders and output of one process with 4 devices, and of two with 2 each for half the steps, then two or four."""
    folder = tmp_path_factory.mktemp("runs")
    alone, half, whole = folder / "alone", folder / "half", folder / "whole"
    side_by_side = [*run_alone(alone, 4, **LOOKS), *run_together(half, 2, 2, train__num_steps=3, **LOOKS)]
    printed = finished(side_by_side)
    shutil.copytree(half, whole)
    printed += finished(run_together(whole, request.param, 4 // request.param, **LOOKS))
    assert [status for status, _ in printed] == [0] * (3 + request.param), printed
    return alone, half, whole, [out for _, out in printed]


@pytest.mark.parametrize(("name", "step"), [("half", 3), ("whole", 6)])
def test_two_processes_and_then_two_or_four_train_the_model_of_one(runs, name, step):
    alone, half, whole, _ = runs
    expected, state = state_at(alone, step), state_at({"half": half, "whole": whole}[name], step)
    for path, leaf in named_leaves(state).items():
        reference = named_leaves(expected)[path]
        if np.issubdtype(leaf.dtype, np.floating):  # gradients are summed in another order: 9e-7 of the largest seen
            np.testing.assert_allclose(leaf, reference, rtol=0, atol=1e-5 * np.abs(reference).max(), err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, reference, err_msg=path)


def test_a_checkpoint_of_two_processes_restores_in_one_with_as_many_or_fewer_devices(runs):
    _, half, whole, _ = runs
    four, two = (named_leaves(state_at(half, 3, devices)) for devices in (4, 2))
    for path, leaf in four.items():
        np.testing.assert_array_equal(two[path], leaf, err_msg=path)
    chains, later = state_at(half, 3, 2).memory, state_at(whole, 6, 2).memory
    assert len(np.unique(np.asarray(chains.images), axis=0)) == 64, "a chain is lost or doubled"
    assert np.asarray(chains.visits).sum() <= 3 * 16 < np.asarray(later.visits).sum() <= 6 * 16


def test_what_people_read_is_written_once_and_is_that_of_one_process(runs):
    alone, half, whole, printed = runs
    assert [row["step"] for row in rows(whole)] == [1, 2, 3, 4, 5, 6]
    clock = {"steps_per_second", "seconds"}
    for row, expected in zip(rows(whole), rows(alone), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - clock:
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    looks, expected = (rows(run, reporter.EVALUATION) for run in (whole, alone))
    assert [look["step"] for look in looks] == [3, 6]
    for look, one in zip(looks, expected, strict=True):  # of pixels that rounding moves by one gray level
        assert look == pytest.approx(one, rel=2e-2)
    pictures = {path.name for path in (alone / "images").iterdir()}
    assert {path.name for path in (whole / "images").iterdir()} - {"buffer_000003.png", "chains_000003.png"} == pictures
    for name in pictures:
        ours, one = (np.asarray(Image.open(run / "images" / name), int) for run in (whole, alone))
        assert ours.shape == one.shape
        title = (one == style.TITLE_BACKGROUND).mean(1) > 0.5  # rows of the title, which has the run's name
        assert 0 < title.sum() < len(one) / 2
        assert np.abs(ours - one)[~title].max() <= 1, "more than one gray level from rounding"
    assert len(list(half.glob("events.out.tfevents.*"))) == 1
    assert len(list(whole.glob("events.out.tfevents.*"))) == 2, "one for each start, whatever the number of processes"
    assert {path.name for path in whole.iterdir() if "events" not in path.name} == {
        path.name for path in alone.iterdir() if "events" not in path.name
    }
    for out in (printed[2], *printed[4:]):
        assert not any(line.startswith(("step ", "training ", "wrote ", "going on ")) for line in out.splitlines())
    assert "going on from step 3" in printed[3]


@pytest.mark.parametrize(
    ("signum", "whom", "expected"),
    [(signal.SIGTERM, 1, [0, 0]), pytest.param(signal.SIGINT, 0, [130, 0], marks=pytest.mark.slow)],
)
def test_a_signal_to_one_of_two_processes_saves_one_step_on_both_and_ends_them(tmp_path, signum, whom, expected):
    both = run_together(tmp_path / "run", 2, 2, train__num_steps=100_000, checkpoint__every=100_000)
    try:
        read_until("step 5/", both[0])
        began = time.monotonic()
        both[whom].send_signal(signum)
        results = finished(both)
    finally:
        for process in both:
            process.kill()
    print(f"{time.monotonic() - began:.1f} s from the signal to the end of both")
    assert [status for status, _ in results] == expected
    saved = rows(tmp_path / "run")[-1]["step"]
    assert f"stopped and saved at step {saved};" in results[0][1]
    assert state_at(tmp_path / "run", saved).step == saved


def read_until(words, process):
    while not (line := process.stdout.readline()).startswith(words):
        assert line, f"the run ended before {words}"


def test_data_that_one_host_lacks_ends_all_with_one_line_and_touches_nothing(tmp_path):
    homes = [tmp_path / "0", tmp_path / "1"]
    homes[0].mkdir()
    np.savez(homes[0] / "mine.npz", images=np.zeros((40, 8, 8), np.uint8))
    results = finished(run_together(tmp_path / "run", 2, 1, homes=homes, data__source="npz:~/mine.npz"))
    for (status, out), whose in zip(results, ("process 1: ", ""), strict=True):
        assert status == 2
        assert f"run.py: {whose}{homes[1]}/mine.npz does not exist" in out
        assert "Traceback" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_that_process_0_refuses_ends_all(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    results = finished(run_together(tmp_path, 2, 1))
    for (status, out), whose in zip(results, ("", "process 0: "), strict=True):
        assert status == 2
        assert f"run.py: {whose}--workdir {tmp_path} is not empty and has no config.json" in out
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_workdir_that_is_another_folder_on_another_host_ends_all(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    results = finished(run_together("run", 2, 1, folders=folders))
    for status, out in results:
        assert status == 2
        assert "--workdir run is not the folder that process 0 sees there" in out


PIECES = """
import json, sys
import jax
import numpy as np
import orbax.checkpoint as ocp
from configs import density2d, digits_contrastive as digits
from ebm_jax import program
from ebm_jax.data import sources
from ebm_jax.distributed import parallel, processes
from ebm_jax.storage import checkpoint
from pathlib import Path

coordinator, me, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
with processes.joined(processes.Launch(coordinator, 2, me, 600)):
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = parallel.device_mesh()
    arrays = {}
    for name, config, memory, members in json.loads(sys.argv[4]):
        config = {"digits": digits, "density2d": density2d}[config].get_config()
        config.train.batch_size, config.data.memory_gib, config.train.num_models = 8, memory, members
        with sources.open_batches(config, print) as batches:
            batch = program.place_batch(config, mesh, batches(5))
            assert not batch.images.is_fully_addressable
            arrays[f"{name}_images"], arrays[f"{name}_labels"] = parallel.on_host(tuple(batch))
            shards = {shard.device.id: np.asarray(shard.data) for shard in batch.images.addressable_shards}
    if processes.is_first():
        np.savez(folder / "batches.npz", **arrays)

    rows = jax.device_put(np.arange(8.0, dtype=np.float32), parallel.shardings(mesh, parallel.SHARDED))
    with checkpoint.open_manager(folder, keep=5) as manager:
        for step in (1, 2, 3):
            checkpoint.save(manager, step, {"rows": rows * step})
    restore = ocp.Checkpointer.restore

    def torn(self, directory, *args, **kwargs):
        if (me, Path(directory).name) == (1, "3"):
            raise OSError("torn")
        return restore(self, directory, *args, **kwargs)

    ocp.Checkpointer.restore = torn
    with checkpoint.open_manager(folder, keep=5) as manager:
        abstract = jax.ShapeDtypeStruct((8,), np.float32, sharding=rows.sharding)
        step, state, skipped = checkpoint.restore_newest(manager, {"rows": abstract})
        checkpoint.set_aside(manager, folder, skipped)
        print("restored", step, sorted(skipped), parallel.on_host(state["rows"]).tolist(), manager.all_steps())
"""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """How two processes with two devices each dealt with batches and with damaged checkpoints."""
    folder, coordinator = tmp_path_factory.mktemp("pieces"), f"127.0.0.1:{free_port()}"
    cases = json.dumps(CASES)
    commands = [[sys.executable, "-c", PIECES, coordinator, str(me), str(folder), cases] for me in (0, 1)]
    results = finished([start(command) for command in commands])
    assert [status for status, _ in results] == [0, 0], results
    return folder, [out for _, out in results]


CASES = [("memory", "digits", 1.0, 1), ("streamed", "digits", 0.0, 1), ("members", "digits", 1.0, 3)]
CASES += [("density", "density2d", 1.0, 1), ("densities", "density2d", 1.0, 2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_the_shares_of_all_processes_are_the_batch_of_one(pieces, case):
    name, config, memory, members = case
    config = {"digits": digits, "density2d": density2d}[config].get_config()
    config.train.batch_size, config.data.memory_gib, config.train.num_models = 8, memory, members
    with sources.open_batches(config, print) as batches:
        expected = batches(5)
    together = np.load(pieces[0] / "batches.npz")
    np.testing.assert_array_equal(together[f"{name}_images"], expected.images)
    np.testing.assert_array_equal(together[f"{name}_labels"], expected.labels)


def test_a_checkpoint_that_one_process_cannot_read_is_damaged_for_all(pieces):
    folder, outputs = pieces
    for out in outputs:
        line = next(line for line in out.splitlines() if line.startswith("restored"))
        assert line == f"restored 2 [3] {(2 * np.arange(8.0)).tolist()} [1, 2]"
    assert [path.name for path in (folder / f"damaged_{checkpoint.DIRECTORY}").iterdir()] == ["3_0"]


class Device:
    """The part of a device that a mesh looks at."""

    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


def test_the_devices_of_a_process_lie_side_by_side_whatever_order_they_come_in():
    devices = [Device(process, 10 * (3 - process) + number) for number in (1, 0) for process in (2, 0, 1)]
    mesh = parallel.device_mesh(devices)
    assert [device.process_index for device in mesh.devices] == [0, 0, 1, 1, 2, 2]


def test_processes_of_different_numbers_of_devices_are_refused():
    with pytest.raises(BadInput, match="process 0 has 2, process 1 has 1; give each the same number"):
        parallel.device_mesh([Device(0, 0), Device(1, 2), Device(0, 1)])


@pytest.mark.eight_devices
def test_a_pods_devices_without_multihost_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [Device(0, 0), Device(1, 1)])
    with pytest.raises(BadInput, match="the devices here belong to 2 hosts; start the command with --multihost"):
        parallel.device_mesh()


@pytest.mark.parametrize("mode", ["sample", "export", "prepare"])
def test_other_modes_are_for_one_host(mode, capsys):
    import run

    assert run.main(["run.py", "--config=configs/digits_contrastive.py", f"--mode={mode}", "--multihost"]) == 2
    assert f"--multihost is for --mode=train, not {mode}; run that on one host" in capsys.readouterr().err


def test_flags_of_processes_without_multihost_are_refused(capsys):
    import run

    assert run.main(["run.py", "--config=configs/digits_contrastive.py", "--process_id=1"]) == 2
    assert "--process_id 1 is for a run of several processes; add --multihost" in capsys.readouterr().err
