"""The disk is full while a run saves: the older checkpoints stay, a line says so, and the run goes on."""

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import FOR_EVER, ROOT
from test_checkpoint import abstract, bits, make_state
from test_train import bits as bits_of_run
from test_train import command, final_state

import run
from ebm_jax.report import quiet
from ebm_jax.report.events import Events
from ebm_jax.storage import checkpoint
from ebm_jax.types import BadInput


@contextlib.contextmanager
def small_files_only():
    """No file may grow beyond 600 bytes. Arrays fail as on a full disk, and any user may set the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def as_the_program():
    """What run.py does for its process."""
    quiet.be_quiet()


@pytest.fixture(autouse=True, scope="module")
def compiled(tmp_path_factory):
    """Compile a save's programs first: under the limit their cache cannot be written."""
    with checkpoint.open_manager(tmp_path_factory.mktemp("warm")) as manager:
        checkpoint.save(manager, 1, make_state(1))


def save_and_wait(manager, step):
    checkpoint.save(manager, step, make_state(step))
    return checkpoint.settle(manager)


def restored_step(folder):
    """The newest valid step; its values are exact, and no newer step is damaged."""
    with checkpoint.open_manager(folder, read_only=True) as manager:
        restored = checkpoint.restore_newest(manager, abstract(make_state(0)))
    assert restored.skipped == {}
    for got, expected in zip(bits(restored.state), bits(make_state(restored.step)), strict=True):
        np.testing.assert_array_equal(got, expected)
    return restored.step


def test_a_failed_save_is_told_at_the_next_one_and_costs_no_older_checkpoint(tmp_path, capfd):
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        assert save_and_wait(manager, 1) is None
        assert save_and_wait(manager, 2) is None
        with small_files_only():
            assert checkpoint.save(manager, 3, make_state(3)) is None
            told = checkpoint.save(manager, 4, make_state(4))
            assert "step 4 in" in str(checkpoint.settle(manager))
        assert "the checkpoint of step 3 in" in told
        assert "(File too large); that of step 2 stays; going on, step 4 is saved now" in told
        assert "\n" not in told
        assert checkpoint.save(manager, 5, make_state(5)) is None
    assert restored_step(tmp_path) == 5
    assert capfd.readouterr().err == ""
    finished = {path.name for path in (tmp_path / checkpoint.DIRECTORY).iterdir() if path.name.isdigit()}
    assert finished == {"2", "5"}, "the newest two, and nothing was deleted for one that failed"


def test_a_failure_before_a_rollback_is_told_by_the_save_after_it(tmp_path):
    with checkpoint.open_manager(tmp_path, keep=2) as manager:
        assert save_and_wait(manager, 1) is None
        with small_files_only():
            checkpoint.save(manager, 2, make_state(2))
            checkpoint.discard_after(manager, 1)
        told = checkpoint.save(manager, 2, make_state(22))
        assert "the checkpoint of step 2 in" in told
        assert "going on, step 2 is saved now" in told


def save_with_no_room(folder, step, then=None, **kwargs):
    with small_files_only(), checkpoint.open_manager(folder, keep=1, **kwargs) as manager:
        checkpoint.save(manager, step, make_state(step))
        if then is not None:
            raise then


def test_a_last_save_that_fails_is_one_clear_line_at_the_end(tmp_path, capfd):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, make_state(1))
    with pytest.raises(BadInput) as caught:
        save_with_no_room(tmp_path, 2)
    line = str(caught.value)
    assert "the checkpoint of step 2 in" in line
    assert "that of step 1 stays; mend that, and the same command goes on from there" in line
    assert "\n" not in line
    assert capfd.readouterr().err == ""
    assert restored_step(tmp_path) == 1


def test_another_error_is_not_hidden_by_a_save_that_failed_and_the_other_way_round(tmp_path, capfd):
    told = []
    with pytest.raises(ZeroDivisionError):
        save_with_no_room(tmp_path, 1, ZeroDivisionError(), warn=told.append)
    (line,) = told
    assert "the checkpoint of step 1 in" in line
    assert "there is none yet" in line
    assert "\n" not in line
    assert capfd.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match="the checkpoint of step 1 in"):
        save_with_no_room(tmp_path, 1, ZeroDivisionError())


def test_a_save_that_cannot_even_begin_is_told_and_tried_again_too(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with checkpoint.open_manager(tmp_path) as manager:
        assert save_and_wait(manager, 1) is None
        with monkeypatch.context() as patched:
            patched.setattr(ocp.CheckpointManager, "save", full)
            assert checkpoint.save(manager, 2, make_state(2)) is None
        told = checkpoint.save(manager, 3, make_state(3))
    assert "the checkpoint of step 2" in told
    assert "(No space left on device); that of step 1 stays; going on, step 3 is saved now" in told
    assert restored_step(tmp_path) == 3


def test_a_step_that_is_not_newer_than_all_is_not_dropped_silently(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 3, make_state(3))
        with pytest.raises(ValueError, match="step 2 is not newer than step 3"):
            checkpoint.save(manager, 2, make_state(2))


def noise(side):
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def ends(work):
    """Do the work in a thread, within a time that only an endless wait exceeds."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(FOR_EVER)
    return not thread.is_alive()


def test_events_that_cannot_be_written_are_an_error_and_no_wait_for_ever(tmp_path, capfd):
    raised = []

    def attempt(call):
        try:
            call()
        except OSError as error:
            raised.append(error.errno)

    def write():
        events, picture = Events(tmp_path), noise(64)
        while not raised:  # the writing thread fails whenever the machine lets it
            attempt(lambda: events.add_image("noise", picture, 0))
            time.sleep(0.01)
        for call in (
            lambda: events.add_scalar("loss", 0.0, 1),
            lambda: events.add_text("event", "ill", 1),
            events.close,
        ):
            attempt(call)

    hook = threading.excepthook
    with small_files_only():
        assert ends(write)
    assert raised == [errno.EFBIG] * 4, "the first error, and every call after it"
    assert threading.excepthook == hook
    assert "Traceback" not in capfd.readouterr().err


def test_events_do_not_wait_for_a_thread_that_failed_before_that_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(Events, "_notice", lambda self, args: None)
    dead = []

    def write():
        events, picture = Events(tmp_path), noise(64)
        events.add_image("noise", picture, 0)
        for thread in events._threads:
            thread.join(FOR_EVER)
            dead.append(not thread.is_alive())
        for step in range(100):
            events.add_image("noise", picture, step)
        with contextlib.suppress(OSError):
            events.close()

    with small_files_only():
        assert ends(write)
    assert dead == [True]


def test_a_writer_that_failed_has_nothing_left_to_do_when_the_process_ends(tmp_path):
    events = Events(tmp_path)
    of_tensorboard = events._writer.file_writer.event_writer
    events._error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        events.close()
    puts = []
    of_tensorboard._event_queue.put = puts.append
    assert ends(of_tensorboard.close), "what tensorboardX calls at the end of the process"
    assert puts == []


UNWRITABLE = """
import resource, sys
import numpy as np
from ebm_jax.report import events as of_tensorboard

events = of_tensorboard.Events(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    for step in range(int(sys.argv[2])):
        events.add_image("noise", noise, step)
finally:
    events.close()
"""


@pytest.mark.whole
@pytest.mark.parametrize("number", [10**9, 3], ids=["until it is noticed", "closed at once"])
def test_a_process_whose_events_cannot_be_written_ends_by_itself(tmp_path, number):
    words = [sys.executable, "-c", UNWRITABLE, str(tmp_path), str(number)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=FOR_EVER)
    assert ended.returncode == 1
    assert "File too large" in ended.stderr.splitlines()[-1]


def test_no_room_for_what_a_run_writes_is_one_clear_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr("ebm_jax.train.train", full)
    assert run.main(command(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "No space left on device: 'metrics.jsonl'; make room" in error
    assert error.count("\n") == 1


FULL_DISK = """
mount -t tmpfs -o size=3m none {disk} || exit 77
{short} > {out}/short || exit 78
head -c $(( $(df --output=avail {disk} | tail -n 1) - 60 ))k /dev/zero > {disk}/filler
{long} > {out}/full 2> {out}/full_errors; echo $? > {out}/status
rm {disk}/filler
{long} > {out}/room 2> {out}/room_errors || exit 79
cp -r {disk}/run {out}/run
"""


@pytest.mark.slow
@pytest.mark.eight_devices  # as the run of the other process
def test_a_whole_run_on_a_full_disk_goes_on_from_its_last_checkpoint_once_there_is_room(tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, for a small disk of its own")
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()

    def words(folder, steps):
        return [sys.executable, *command(folder, train__num_steps=steps)]

    script = FULL_DISK.format(
        disk=disk, out=out, short=" ".join(words(disk / "run", 3)), long=" ".join(words(disk / "run", 20))
    )
    made = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=900)
    if made.returncode in (1, 77):
        pytest.skip(f"may not mount a small disk here: {made.stderr}")
    assert made.returncode == 0, made.stderr
    assert (out / "status").read_text().strip() == "2"
    errors = (out / "full_errors").read_text()
    assert "No space left on device" in errors
    assert "that of step 3 stays" in errors
    assert "Traceback" not in errors
    assert "going on from step 3" in (out / "room").read_text()
    assert (out / "room_errors").read_text() == ""
    assert run.main(command(tmp_path / "undisturbed", train__num_steps=20)) == 0
    states = [final_state(folder).state for folder in (out / "run", tmp_path / "undisturbed")]
    for got, expected in zip(*map(bits_of_run, states), strict=True):
        np.testing.assert_array_equal(got, expected)
