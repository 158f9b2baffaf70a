"""Checkpoint folders damaged in every way: an older step with exact values or one clear line, and nothing is lost."""

import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import abstract, bits, make_state, save_steps

from ebm_jax.report import quiet
from ebm_jax.storage import checkpoint

CASES = 40
STEPS = (1, 2, 3)


@pytest.fixture(autouse=True)
def as_the_program():
    """What run.py does for its process."""
    quiet.be_quiet()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a run with three valid checkpoints."""
    folder = tmp_path_factory.mktemp("sound")
    save_steps(folder, STEPS)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "run", symlinks=True))


def step_folder(folder, step):
    return folder / checkpoint.DIRECTORY / str(step)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents(folder):
    """The contents of all files in a folder and below it."""
    return sorted(path.read_bytes() for path in files_of(folder))


def restored_or_refused(folder, capfd):
    """What a run goes on with after setting aside the damaged steps, as `train` does; no file may be lost."""
    before = contents(folder)
    with checkpoint.open_manager(folder, keep=len(STEPS)) as manager:
        restored = checkpoint.restore_newest(manager, abstract(make_state(0)))
        if restored.step is not None:
            checkpoint.set_aside(manager, folder, restored.skipped)
            assert manager.latest_step() in (None, restored.step)
    assert contents(folder) == before
    assert "Traceback" not in capfd.readouterr().err
    for reason in restored.skipped.values():
        assert 0 < len(reason) < 200
        assert "\n" not in reason
    if restored.step is None:
        assert "\n" not in checkpoint.all_damaged(folder, restored)
    else:
        for got, expected in zip(bits(restored.state), bits(make_state(restored.step)), strict=True):
            np.testing.assert_array_equal(got, expected)
    return restored


def flip_bits(rng, step):
    path = rng.choice([path for path in files_of(step) if path.stat().st_size])
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 5))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(rng, step):
    path = rng.choice(files_of(step))
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])


def empty_every_file(rng, step):
    for path in files_of(step):
        path.write_bytes(b"")


def zero_a_block(rng, step):
    path = rng.choice(files_of(step))
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content) + 1)
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def overwrite_with_noise(rng, step):
    path = rng.choice(files_of(step))
    path.write_bytes(rng.randbytes(path.stat().st_size))


def swap_two_files(rng, step):
    one, other = rng.sample(files_of(step), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def replace_a_file_by_a_folder(rng, step):
    path = rng.choice(files_of(step))
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(content)


def move_files_of_an_older_step_in(rng, step):
    older = step.with_name(str(STEPS[0]))
    shutil.copytree(older / rng.choice(("state", "meta", "state/d")), step / "state", dirs_exist_ok=True)


DAMAGES = (
    flip_bits,
    flip_bits,
    flip_bits,
    truncate,
    empty_every_file,
    zero_a_block,
    overwrite_with_noise,
    swap_two_files,
    replace_a_file_by_a_folder,
    move_files_of_an_older_step_in,
)


@pytest.mark.parametrize("case", range(CASES))
def test_fuzz_of_damage_ends_in_an_older_step_with_exact_values_or_one_clear_line(folder, capfd, case):
    rng = random.Random(case)
    newest = STEPS if case % 8 == 0 else STEPS[-rng.choice((1, 1, 2)) :]
    for step in newest:
        rng.choice(DAMAGES)(rng, step_folder(folder, step))
    restored = restored_or_refused(folder, capfd)
    assert set(restored.skipped) <= set(newest), "no valid step is skipped"


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_whatever_file_or_folder_of_a_checkpoint_is_missing_no_value_is_wrong(sound, tmp_path, capfd, every):
    parts = sorted(path.relative_to(step_folder(sound, 3)) for path in step_folder(sound, 3).rglob("*"))
    assert len(parts) > 15
    vital = {"meta", "meta/metadata", "state", "state/d", "state/manifest.ocdbt"} & set(map(str, parts[::every]))
    assert vital
    noticed = set()
    for number, part in enumerate(parts[::every]):
        folder = Path(shutil.copytree(sound, tmp_path / str(number)))
        missing = step_folder(folder, 3) / part
        shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
        if restored_or_refused(folder, capfd).step == 2:
            noticed.add(str(part))
    assert vital <= noticed


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_a_copy_that_was_interrupted_is_skipped(folder, capfd, share):
    whole, half = files_of(step_folder(folder, 3)), step_folder(folder, 7)
    half.mkdir()
    for path in whole[: int(share * len(whole))]:
        target = half / path.relative_to(step_folder(folder, 3))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    restored = restored_or_refused(folder, capfd)
    assert restored.step == 3
    assert list(restored.skipped) == [7]


def test_a_whole_checkpoint_under_another_number_is_not_taken_for_that_step(folder, capfd):
    shutil.copytree(step_folder(folder, 3), step_folder(folder, 9))
    restored = restored_or_refused(folder, capfd)
    assert restored.step == 3
    assert "not those that were saved under this step" in restored.skipped[9]


def test_strays_named_by_a_number_are_set_aside_and_others_left_alone(folder, capfd):
    checkpoints = folder / checkpoint.DIRECTORY
    (checkpoints / "8").mkdir()
    (checkpoints / "11" / "default").mkdir(parents=True)
    (checkpoints / "9").write_text("a file")
    (checkpoints / "10").symlink_to("nowhere")
    (checkpoints / "12").symlink_to(checkpoints / "2", target_is_directory=True)
    others = {"notes.txt", "007", "5_old", "backup_6", "7.bak", "1e3", "-3", "٣", "²"}
    for name in others:
        (checkpoints / name).mkdir()
    restored = restored_or_refused(folder, capfd)
    assert restored.step == 3
    assert set(restored.skipped) == {8, 9, 10, 11, 12}
    assert {path.name for path in checkpoints.iterdir()} == others | {"1", "2", "3"}
    assert {path.name for path in (folder / "damaged_checkpoints").iterdir()} == {"8_0", "9_0", "10_0", "11_0", "12_0"}


def test_a_step_that_was_set_aside_is_saved_again_and_the_last_valid_one_is_not_deleted_for_damaged_ones(folder):
    for step in (2, 3):
        empty_every_file(None, step_folder(folder, step))
    with checkpoint.open_manager(folder, keep=1) as manager:
        restored = checkpoint.restore_newest(manager, abstract(make_state(0)))
        assert restored.step == 1
        checkpoint.set_aside(manager, folder, restored.skipped)
        assert manager.all_steps() == [1]
        checkpoint.save(manager, 2, make_state(22))
    with checkpoint.open_manager(folder, keep=1) as manager:
        restored = checkpoint.restore_newest(manager, abstract(make_state(0)))
    assert restored.step == 2
    np.testing.assert_array_equal(bits(restored.state)[2], bits(make_state(22))[2])


def test_a_folder_of_checkpoints_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / checkpoint.DIRECTORY).write_text("mine")
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(checkpoint.BadInput, match="cannot be opened"), checkpoint.open_manager(tmp_path):
        pass
    assert (tmp_path / checkpoint.DIRECTORY).read_text() == "mine"


class Planted:
    """Leaves a file behind if someone reads its pickle."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_a_planted_pickle_is_never_read_as_one(folder, tmp_path, capfd):
    trace = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Planted(trace)))
    assert trace.exists(), "the pickle works"
    trace.unlink()
    for path in files_of(step_folder(folder, 3)):
        path.write_bytes(pickle.dumps(Planted(trace)))
    assert restored_or_refused(folder, capfd).step == 2
    assert not trace.exists()
