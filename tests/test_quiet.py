"""The noise of libraries: the program keeps it off the terminal, and the package as a library touches no logging."""

import asyncio
import gc
import io
import logging
import os
import sys
from types import SimpleNamespace

import pytest
from test_checkpoint import damage, make_state, restore, save_steps
from test_full_disk import small_files_only

from ebm_jax.report import quiet
from ebm_jax.storage import checkpoint

pytestmark = pytest.mark.whole

LIBRARIES = ("absl", "asyncio", "gcsfs", "jax", "orbax", "tensorstore")


def settings():
    """Everything that decides which log records and unraisable errors of a process are seen."""
    loggers = [logging.getLogger(name) for name in ("", *LIBRARIES)]
    return [(one.level, list(one.filters), list(one.handlers), one.disabled) for one in loggers], sys.unraisablehook


@pytest.fixture(autouse=True)
def noisy(monkeypatch):
    """Nothing in the process is silenced before a test, and nothing of a test stays after it."""
    for name in LIBRARIES:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "filters", [])
        monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


def forgotten(error):
    future = asyncio.new_event_loop().create_future()
    future.set_exception(OSError(error))


def test_a_file_in_another_code_page_takes_every_line(monkeypatch):
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="cp1252", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    quiet.be_quiet()
    print("chain |∇U| ± 1")
    assert file.getvalue() == b"chain |\\u2207U| \xb1 1" + os.linesep.encode()


def test_opening_saving_and_restoring_a_damaged_checkpoint_leaves_the_logging_of_the_process_alone(tmp_path):
    before = settings()
    save_steps(tmp_path, (1, 2))
    damage(tmp_path, 2, lambda content: b"")
    assert restore(tmp_path).step == 1
    assert settings() == before


def test_a_library_user_sees_what_orbax_logs_of_a_failed_save_and_the_program_does_not(tmp_path, caplog):
    def logged(folder):
        caplog.clear()
        with checkpoint.open_manager(folder) as manager:
            checkpoint.save(manager, 1, make_state(1))  # compiles before the limit is set
            with small_files_only():
                checkpoint.save(manager, 2, make_state(2))
                assert "step 2 in" in checkpoint.settle(manager)
        gc.collect()
        return [record for record in caplog.records if record.name in ("absl", "asyncio")]

    assert logged(tmp_path / "library")
    quiet.be_quiet()
    assert logged(tmp_path / "program") == []


def test_reading_a_sound_checkpoint_logs_nothing_even_for_a_library_user(tmp_path, caplog):
    save_steps(tmp_path, (1,))
    caplog.clear()
    assert restore(tmp_path).step == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_failed_beside_a_failed_save_is_not_logged_however_late_it_is_collected(caplog):
    gc.collect()  # what other tests of this process left
    caplog.clear()
    forgotten("before")
    gc.collect()
    quiet.be_quiet()
    forgotten("after")
    gc.collect()
    logging.getLogger("asyncio").warning("something else")
    told = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert ["before" in told[0], *told[1:]] == [True, "something else"]


def test_what_others_log_with_the_same_logger_stays(caplog):
    quiet.be_quiet()
    logging.getLogger("absl").error("of somebody else")
    assert [record.getMessage() for record in caplog.records] == ["of somebody else"]


def test_unraisable_errors_of_others_go_where_they_went_and_a_second_call_changes_nothing(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    quiet.be_quiet()
    once = settings()
    quiet.be_quiet()
    assert settings() == once

    def of(error, file=None):
        code = SimpleNamespace(cr_code=SimpleNamespace(co_filename=file)) if file else None
        return SimpleNamespace(object=code, exc_value=error)

    others = [of(ValueError("mine")), of(RuntimeError("mine"), "/site-packages/aiohttp/client.py")]
    noise = [of(RuntimeError("x"), "/site-packages/orbax/a.py"), of(RuntimeError("Event loop is closed"))]
    for one in (*others, *noise):
        sys.unraisablehook(one)
    assert seen == others
