"""Whole runs through run.py: what they write, how they go on, how they stop."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FOR_EVER, wait_until
from PIL import Image

import run
from ebm_jax import identity, opening, program, samplers
from ebm_jax.distributed import parallel
from ebm_jax.report import pictures, reporter, style
from ebm_jax.storage import checkpoint
from ebm_jax.storage.workdir import locked, read_config

ROOT = Path(run.__file__).parent
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


def command(workdir, mode="train", **changes):
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    values = SHORT | changed if mode == "train" else changed
    words = [f"--config.{key}={value}" for key, value in values.items()]
    return [
        "run.py",
        f"--config={ROOT / 'configs' / 'digits_contrastive.py'}",
        f"--workdir={workdir}",
        f"--mode={mode}",
        *words,
    ]


def rows(workdir):
    return [json.loads(line) for line in (workdir / reporter.METRICS).read_text().splitlines()]


def final_state(workdir):
    mesh = parallel.device_mesh()
    return opening.restore(workdir, program.abstract_state(read_config(workdir), mesh))


def bits(state):
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return [np.asarray(leaf) for leaf in leaves]


def files(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run.main(command(workdir)) == 0
    return workdir


def test_a_run_writes_everything_it_promises(whole_run):
    assert [row["step"] for row in rows(whole_run)] == [1, 2, 3, 4, 5, 6]
    assert {"energy_data", "energy_samples", "energy_gap", "chain_grad_norm", "loss", "steps_per_second"} <= set(
        rows(whole_run)[0]
    )
    assert read_config(whole_run).model.width == 4
    assert {path.stem for path in (whole_run / "images").iterdir()} == {"buffer_000006", "chains_000006"}
    assert list(whole_run.glob("events.out.tfevents.*"))
    assert checkpoint.exists(whole_run)
    assert [record.images for record in identity.records_of(whole_run)] == [1438]


def test_the_pictures_of_training_name_the_classes_of_their_images(one_run):
    side, band = 90, style.CAPTION_LINE  # a digit of 8x8 pixels, enlarged 10 times, with a gap of 5
    for name in ("chains", "buffer"):
        (path,) = (one_run / "images").glob(f"{name}_*.png")
        picture = np.asarray(Image.open(path))
        picture = picture[2 * style.TITLE_LINE :]
        assert picture.shape == (8 * (side + band), 8 * side)
        bands = picture.reshape(8, side + band, 8, side).swapaxes(1, 2).reshape(64, side + band, side)[:, side:]
        assert (bands != style.BACKGROUND).any((1, 2)).all()
        if name == "chains":  # their labels are 0 to 9 in turn
            np.testing.assert_array_equal(bands, bands[np.arange(64) % 10])
            assert len({caption.tobytes() for caption in bands}) == 10


@pytest.mark.whole
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "uint8"])
def test_training_2n_steps_is_training_n_stopping_and_n_more_bit_for_bit(tmp_path, dtype):
    for workdir, stops in ((tmp_path / "once", (6,)), (tmp_path / "twice", (3, 6))):
        for stop in stops:
            assert run.main(command(workdir, train__num_steps=stop, buffer__dtype=dtype, buffer__ring=True)) == 0
    once, twice = final_state(tmp_path / "once"), final_state(tmp_path / "twice")
    assert once.step == twice.step == 6
    for a, b in zip(bits(once.state), bits(twice.state), strict=True):
        np.testing.assert_array_equal(a, b)
    clock = ("steps_per_second", "seconds")
    kept = [[{k: v for k, v in row.items() if k not in clock} for row in rows(tmp_path / n)] for n in ("once", "twice")]
    assert kept[0] == kept[1]


@pytest.mark.whole
def test_several_steps_a_call_are_the_same_steps_and_stop_and_go_on_between_calls(whole_run, tmp_path, capsys):
    for stop in (3, 6):
        assert run.main(command(tmp_path / "calls", train__steps_per_call=3, train__num_steps=stop)) == 0
    assert [row["step"] for row in rows(tmp_path / "calls")] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(rows(tmp_path / "calls"), rows(whole_run), strict=True):
        for name in ("loss", "energy_data", "energy_samples", "chain_grad_norm", "grad_norm"):
            # XLA fuses the program in other places; five steps of training enlarge the float32 rounding
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6)
    found, expected = final_state(tmp_path / "calls"), final_state(whole_run)
    assert found.step == expected.step == 6
    for a, b in zip(jax.tree.leaves(found.state.ema), jax.tree.leaves(expected.state.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert run.main(command(tmp_path / "bad", train__steps_per_call=4)) == 2
    assert "train.num_steps 6 is not divisible by 4 train.steps_per_call; use 4 or 8" in capsys.readouterr().err


def test_resuming_takes_the_random_stream_and_the_data_on_not_from_the_start(whole_run):
    losses = [row["loss"] for row in rows(whole_run)]
    assert len(set(losses)) == len(losses)


def test_another_config_in_the_same_workdir_is_refused_by_key_and_nothing_is_touched(whole_run, capsys):
    before = files(whole_run)
    assert run.main(command(whole_run, chain__step_size=7.0, loss__energy_l2=0.5)) == 2
    error = capsys.readouterr().err
    assert "chain.step_size is 10.0 there and 7.0 here" in error
    assert "loss.energy_l2" in error
    assert error.count("\n") == 1
    assert files(whole_run) == before


def test_a_foreign_folder_is_refused_and_nothing_is_touched(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run.main(command(tmp_path)) == 2
    assert "is not empty and has no config.json" in capsys.readouterr().err
    assert files(tmp_path) == {tmp_path / "thesis.txt": b"mine"}


def test_a_workdir_that_is_a_file_or_below_one_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run.main(command(tmp_path / "file")) == 2
    assert run.main(command(tmp_path / "file" / "below")) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_run_started_again_says_so(whole_run, capsys):
    assert run.main(command(whole_run)) == 0
    assert "has done its 6 steps; raise train.num_steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(tmp_path, capsys):
    assert run.main(command(tmp_path / "run")) == 0
    expected = bits(final_state(tmp_path / "run").state)
    for path in (tmp_path / "run" / checkpoint.DIRECTORY / "6").glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[:-200])
    assert run.main(command(tmp_path / "run", train__num_steps=6)) == 0
    captured = capsys.readouterr()
    assert "skipped a damaged checkpoint, step 6" in captured.err
    assert "going on from step 3" in captured.out
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(bits(final_state(tmp_path / "run").state), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sampling_writes_a_picture_and_arrays_and_never_overwrites(whole_run):
    for _ in range(2):
        assert run.main(command(whole_run, "sample")) == 0
    names = sorted(path.name for path in (whole_run / "samples").iterdir())
    assert names == ["000006_0.npz", "000006_0.png", "000006_1.npz", "000006_1.png"]
    arrays = np.load(whole_run / "samples" / "000006_0.npz")
    below_the_title = np.asarray(Image.open(whole_run / "samples" / "000006_0.png"))[-4 * 90 :, : 4 * 90]
    np.testing.assert_array_equal(below_the_title, pictures.grid(arrays["images"])[:, :, 0])
    config, params = opening.load(whole_run)
    energies = samplers.make_energy_fn(config)(params, jnp.asarray(arrays["images"]), jnp.asarray(arrays["labels"]))
    np.testing.assert_allclose(arrays["energies"], energies, rtol=1e-4, atol=1e-6)


@pytest.mark.whole
def test_the_command_that_training_names_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main(command("my run")) == 0
    named = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sample with: "))
    python, *words = shlex.split(named.removeprefix("sample with: "))
    assert python == sys.executable
    assert run.main(words) == 0
    assert run.main([*words, "--config.sample.num_images=3"]) == 0
    assert len(np.load(tmp_path / "my run" / "samples" / "000006_1.npz")["images"]) == 3


def test_more_samples_than_a_batch_are_all_different(whole_run):
    assert run.main(command(whole_run, "sample", sample__num_images=50, sample__batch_size=16)) == 0
    newest = max((whole_run / "samples").glob("*.npz"), key=lambda path: path.stat().st_mtime)
    images = np.load(newest)["images"]
    assert len(np.unique(images.reshape(50, -1), axis=0)) == 50


def test_sampling_uses_the_runs_own_config_and_refuses_to_change_it(whole_run, capsys):
    assert run.main(command(whole_run, "sample", model__width=9)) == 2
    assert "model.width is 4 there and 9 here" in capsys.readouterr().err


def test_sampling_without_a_checkpoint_says_so(tmp_path, capsys):
    assert run.main(command(tmp_path / "none", "sample")) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.whole
@pytest.mark.parametrize(
    ("signum", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 0)]
)
def test_ctrl_c_saves_the_step_it_reached_and_says_so(tmp_path, signum, status):
    words = command(tmp_path / "run", train__num_steps=100_000, checkpoint__every=100_000)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("step 5/"):
            assert process.poll() is None, "the run ended before the signal"
        process.send_signal(signum)
        out, _ = process.communicate(timeout=FOR_EVER)
    assert process.returncode == status
    saved = final_state(tmp_path / "run").step
    assert f"stopped and saved at step {saved}" in out
    assert rows(tmp_path / "run")[-1]["step"] == saved


@pytest.mark.slow
@pytest.mark.eight_devices  # as the run of the other process
def test_killed_at_once_a_run_starts_again_from_its_newest_checkpoint(tmp_path):
    words = command(tmp_path / "run", train__num_steps=15, checkpoint__every=5)
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: checkpoint.exists(tmp_path / "run"))
        process.kill()
    assert run.main(words) == 0
    assert run.main(command(tmp_path / "undisturbed", train__num_steps=15, checkpoint__every=5)) == 0
    disturbed, undisturbed = (bits(final_state(tmp_path / name).state) for name in ("run", "undisturbed"))
    for a, b in zip(disturbed, undisturbed, strict=True):
        np.testing.assert_array_equal(a, b)


def density_command(workdir, mode="train", **changes):
    words = command(workdir, mode, **changes)
    return [words[0], f"--config={ROOT / 'configs' / 'density2d.py'}", *words[2:]]


@pytest.mark.slow
def test_a_density_run_measures_itself_and_draws_data_samples_and_density_side_by_side(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run.main(density_command(workdir, log__images_every=3)) == 0
    lines = [json.loads(line) for line in (workdir / reporter.EVALUATION).read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert line["kl"] > 0
        assert abs(line["nll"] - line["kl"] - line["entropy"]) < 1e-9
    width, height = Image.open(workdir / "images" / "density_000006.png").size
    assert width > 3 * height, "four panels side by side"
    assert f"KL(data || model) {lines[-1]['kl']:.4f} nats" in capsys.readouterr().out

    assert run.main(density_command(workdir, "sample", sample__num_images=20)) == 0
    assert f"KL(data || model) {lines[-1]['kl']:.4f} nats" in capsys.readouterr().out
    points = np.load(workdir / "samples" / "000006_0.npz")["images"]
    assert points.shape == (20, 2)
    assert ((points >= 0) & (points <= 1)).all()
    assert (workdir / "samples" / "000006_0.png").exists()


@pytest.mark.slow
def test_a_dry_run_of_any_config_needs_no_data_and_ends_in_seconds(tmp_path, capsys):
    words = ["run.py", f"--config={ROOT / 'configs' / 'fashion_mnist.py'}", f"--workdir={tmp_path / 'run'}"]
    assert run.main([*words, "--config.train.dry_run=True"]) == 0
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    assert read_config(tmp_path / "run").data.source == "noise"


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    """40 noisy pictures of 12x10 pixels in two classes, and one more file that is no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(40):
        path = folder / "train" / ("dark" if index % 2 else "light") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 0 if index % 2 else 128
        Image.fromarray(rng.integers(low, low + 128, (12, 10, 3), np.uint8)).save(path)
    (folder / "train" / "dark" / "broken.png").write_bytes(b"no picture")
    return folder


FOLDER = {
    "data__shape": "(8,8,3)",
    "data__crop": True,
    "model__num_classes": 2,
    "model__name": "small",
    "buffer__restart_prob": 1.0,
}


@pytest.mark.slow
def test_a_folder_with_a_broken_picture_trains_streamed_or_in_memory_to_the_same_bits(tmp_path, picture_folder, capsys):
    states = []
    for memory in (1.0, 0.0):
        workdir = tmp_path / f"{memory}"
        words = command(workdir, data__source=f"folder:{picture_folder}", data__memory_gib=memory, **FOLDER)
        assert run.main(words) == 0
        assert "broken.png cannot be decoded (UnidentifiedImageError); skipped, 1 so far" in capsys.readouterr().err
        states.append(bits(final_state(workdir).state))
    for in_memory, streamed in zip(*states, strict=True):
        np.testing.assert_array_equal(in_memory, streamed)


def test_more_broken_pictures_than_allowed_are_one_clear_line(tmp_path, picture_folder, capsys):
    words = command(tmp_path / "run", data__source=f"folder:{picture_folder}", data__max_unreadable=0, **FOLDER)
    assert run.main(words) == 2
    error = capsys.readouterr().err
    assert "broken.png cannot be decoded" in error
    assert "raise data.max_unreadable" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_second_trainer_in_the_folder_of_a_running_one_is_refused_and_nothing_changes(whole_run, capsys):
    before = {path: path.read_bytes() for path in whole_run.rglob("*") if path.is_file()}
    with locked(whole_run):
        assert run.main(command(whole_run, train__num_steps=8)) == 2
    assert "is being trained in by another process; wait, or use another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole_run.rglob("*") if path.is_file()} == before
    with locked(whole_run):
        pass
