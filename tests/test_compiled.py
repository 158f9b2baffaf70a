"""The cache of compiled programs: where it is, and that a second start reads it."""

import sys

import pytest
from conftest import finished, start

pytestmark = pytest.mark.whole

PROGRAM = """
import sys, types
sys.modules["ebm_jax"] = types.ModuleType("ebm_jax")  # of the package this module alone: the rest imports for seconds
sys.modules["ebm_jax"].__path__ = ["ebm_jax"]
import jax
from ebm_jax.storage import compiled

compiled.WORTH_SECONDS = 0.0
compiled.keep()
taken = []
jax.monitoring.register_event_listener(lambda event, **more: taken.append(event) if "cache_hits" in event else None)
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((3, 3)))
print(len(taken) > 0)
"""


def taken_from_cache(**environment):
    ((status, out),) = finished([start([sys.executable, "-c", PROGRAM], **environment)])
    assert status == 0, out
    return out == "True\n"


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


def test_a_second_start_takes_what_the_first_compiled_from_the_users_cache_folder(fresh, tmp_path):
    assert [taken_from_cache(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)] == [False, True]
    (folder,) = (tmp_path / "ebm_jax" / "compiled").iterdir()
    assert len(folder.name) == 8
    assert any(path.is_file() for path in folder.iterdir())


def test_jaxs_own_variable_decides_where_it_is_set_and_empty_keeps_nothing(tmp_path):
    where = {"XDG_CACHE_HOME": str(tmp_path / "user"), "JAX_COMPILATION_CACHE_DIR": ""}
    assert [taken_from_cache(**where) for _ in range(2)] == [False, False]
    assert not (tmp_path / "user").exists()


def test_a_cache_folder_that_cannot_be_made_is_done_without(fresh, tmp_path):
    (tmp_path / "file").touch()
    assert not taken_from_cache(XDG_CACHE_HOME=str(tmp_path / "file"))
