"""Checkpoints of older versions give today's state exactly, or one line says that they are of another version."""

import json
import tarfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT
from test_checkpoint import damage, flip

from ebm_jax import opening, program
from ebm_jax.distributed import parallel
from ebm_jax.storage import checkpoint, workdir
from ebm_jax.storage.older import OLDER

RUNS = ROOT / "tests" / "fixtures" / "runs_a7536e2.tar.xz"


class Buffer(NamedTuple):
    images: Any
    labels: Any


class Old(NamedTuple):
    step: Any
    key: Any
    params: Any
    opt_state: Any
    spectral: Any
    buffer: Any


class New(NamedTuple):
    step: Any
    key: Any
    params: Any
    opt_state: Any
    spectral: Any
    memory: Any


def placed(tree):
    """Place a tree on all devices, with the rows of the buffer spread over them."""
    mesh = parallel.device_mesh()
    return jax.tree.map(
        lambda leaf: jax.device_put(
            leaf, parallel.shardings(mesh, parallel.SHARDED if leaf.ndim and len(leaf) == 64 else parallel.REPLICATED)
        ),
        tree,
    )


def old_state():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"Dense_0": {"kernel": jax.random.normal(keys[0], (4, 3)), "bias": jnp.arange(3.0)}}
    buffer = Buffer(jax.random.normal(keys[1], (64, 5)).astype(jnp.bfloat16), jnp.arange(64))
    return placed(Old(jnp.asarray(6), keys[2], params, ((), (params, jnp.asarray(6))), {}, buffer))


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def meta_of(folder, step=6):
    return folder / checkpoint.DIRECTORY / str(step) / "meta" / "metadata"


def saved(folder, state, as_list):
    """A checkpoint with today's fingerprint or, as up to a7536e2, with a list."""
    with checkpoint.open_manager(folder) as manager:
        checkpoint.save(manager, 6, state)
    if as_list:
        meta = json.loads(meta_of(folder).read_text())
        meta_of(folder).write_text(json.dumps({"step": 6, "fingerprint": list(meta["fingerprint"].values())}))
    return folder


def restored(folder, state, older=OLDER):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return checkpoint.restore_newest(manager, abstract(state), older=older)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.sharding == theirs.sharding
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), strict=True)


AS_LIST = pytest.mark.parametrize("as_list", [True, False], ids=["list", "by path"])


@AS_LIST
def test_a_buffer_of_old_is_the_memory_of_one_method_or_of_the_first_of_several(tmp_path, as_list):
    state = old_state()
    folder = saved(tmp_path, state, as_list)
    assert_same(restored(folder, state).state, state)
    one = New(*state[:-1], state.buffer)
    assert_same(restored(folder, one).state, one)
    several = New(*state[:-1], (state.buffer, ()))
    assert_same(restored(folder, several).state, several)


@AS_LIST
def test_a_leaf_that_a_later_version_added_has_the_value_that_its_rule_gives(tmp_path, as_list):
    state = old_state()
    folder = saved(tmp_path, state, as_list)
    later = New(*state[:-1], (state.buffer, placed({"rows": jnp.full((64, 2), 7.0), "count": jnp.asarray(3)})))
    rules = {
        "memory/1/rows": lambda leaf: jnp.full(leaf.shape, 7, leaf.dtype),
        "memory/1/count": lambda leaf: jnp.asarray(3, leaf.dtype),
    }
    found = restored(folder, later, OLDER._replace(added=rules))
    assert found.skipped == {}
    assert_same(found.state, later)
    for lacking in rules:
        fewer = OLDER._replace(added={path: rule for path, rule in rules.items() if path != lacking})
        assert "saved by another version of this project" in restored(folder, later, fewer).skipped[6]


def test_what_is_saved_wins_over_the_rule_for_what_is_not(tmp_path):
    state = old_state()
    folder = saved(tmp_path, state, False)
    rules = {path: lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) for path in ("step", "memory/labels")}
    later = New(*state[:-1], state.buffer)
    assert_same(restored(folder, later, OLDER._replace(added=rules)).state, later)


def test_a_saved_leaf_that_has_no_place_today_is_not_dropped_in_silence(tmp_path):
    state = old_state()
    folder = saved(tmp_path, state, False)
    found = restored(folder, New(*state[:-1], Buffer(state.buffer.images, ())))
    assert found.step is None
    assert "saved by another version of this project" in found.skipped[6]


@AS_LIST
def test_a_changed_bit_in_a_part_that_moved_is_noticed(tmp_path, as_list):
    state = old_state()
    folder = saved(tmp_path, state, as_list)
    damage(folder, 6, lambda content: flip(content, 0.6))
    found = restored(folder, New(*state[:-1], state.buffer))
    assert found.step is None
    assert list(found.skipped) == [6]


@AS_LIST
@pytest.mark.parametrize("place", [0, 3, -1])
def test_each_number_of_a_fingerprint_counts(tmp_path, as_list, place):
    state = old_state()
    folder = saved(tmp_path, state, as_list)
    meta = json.loads(meta_of(folder).read_text())
    numbers = meta["fingerprint"]
    key = place if as_list else list(numbers)[place]
    numbers[key] ^= 1
    meta_of(folder).write_text(json.dumps(meta))
    found = restored(folder, New(*state[:-1], state.buffer))
    assert found.skipped == {6: "its arrays are not those that were saved under this step"}


def test_the_numbers_of_a_list_belong_to_its_leaves_in_their_order(tmp_path):
    state = old_state()
    folder = saved(tmp_path, state, True)
    meta = json.loads(meta_of(folder).read_text())
    meta["fingerprint"].reverse()
    meta_of(folder).write_text(json.dumps(meta))
    assert restored(folder, state).skipped == {6: "its arrays are not those that were saved under this step"}


def test_new_checkpoints_name_the_leaf_of_each_number(tmp_path):
    state = old_state()
    folder = saved(tmp_path, New(*state[:-1], (state.buffer, ())), False)
    assert list(json.loads(meta_of(folder).read_text())["fingerprint"]) == [
        "step",
        "key",
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
        "opt_state/1/0/Dense_0/bias",
        "opt_state/1/0/Dense_0/kernel",
        "opt_state/1/1",
        "memory/0/images",
        "memory/0/labels",
    ]


@pytest.mark.skipif(not RUNS.exists(), reason=f"{RUNS} is not there")
@pytest.mark.parametrize("name", ["digits", "conditional", "density"])
def test_a_checkpoint_of_commit_a7536e2_is_restored_with_all_its_arrays(tmp_path, name):
    with tarfile.open(RUNS) as packed:
        packed.extractall(tmp_path, filter="data")
    config = workdir.read_config(tmp_path / name)
    expected = program.abstract_state(config, parallel.device_mesh())
    found = opening.restore(tmp_path / name, expected)
    assert (found.step, found.skipped) == (6, {})
    assert jax.tree.structure(found.state) == jax.tree.structure(expected)
    with ocp.StandardCheckpointer() as reader:
        raw = reader.restore(tmp_path / name / checkpoint.DIRECTORY / "6" / "state")
    for path in ("step", "key", "params", "ema", "opt_state"):
        ours = getattr(found.state, path)
        ours = jax.random.key_data(ours) if path == "key" else ours
        theirs = jax.random.key_data(raw[path]) if path == "key" else raw[path]
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(found.state) if leaf.dtype != found.state.key.dtype]
    for part in raw["buffer"].values():
        assert any(one.shape == part.shape and np.array_equal(one, part) for one in arrays)
