"""Checkpoints hold every array of a run, and a damaged one is never restored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebm_jax.distributed import parallel
from ebm_jax.storage import checkpoint
from ebm_jax.storage.fingerprint import fingerprint


def make_state(seed):
    """A small tree with every kind of leaf that a run has, spread over the devices."""
    mesh = parallel.device_mesh()
    keys = jax.random.split(jax.random.key(seed), 4)
    state = {
        "key": keys[0],
        "step": jnp.asarray(seed, jnp.int32),
        "float": jax.random.normal(keys[1], (64, 16)),
        "half": jax.random.normal(keys[2], (32,)).astype(jnp.bfloat16),
        "rows": jax.random.randint(keys[3], (64, 8), 0, 256).astype(jnp.uint8),
    }
    specs = {name: parallel.SHARDED if name in ("float", "rows") else parallel.REPLICATED for name in state}
    return jax.device_put(state, parallel.shardings(mesh, specs))


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def bits(state):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in state.values()
    ]


def save_steps(folder, steps):
    with checkpoint.open_manager(folder, keep=5) as manager:
        for step in steps:
            checkpoint.save(manager, step, make_state(step))


def restore(folder):
    with checkpoint.open_manager(folder, read_only=True) as manager:
        return checkpoint.restore_newest(manager, abstract(make_state(0)))


def damage(folder, step, change):
    """Apply `change` to the contents of every data file of a step (Orbax keeps some of them twice)."""
    files = [path for path in (folder / checkpoint.DIRECTORY / str(step)).glob("state/**/d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(change(path.read_bytes()))


def flip(content, place):
    changed = bytearray(content)
    changed[int(place * len(changed))] ^= 4
    return bytes(changed)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    save_steps(tmp_path, (1, 2))
    restored = restore(tmp_path)
    assert restored.step == 2
    for got, expected in zip(bits(restored.state), bits(make_state(2)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    consume = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state | {"key": state["float"]}), donate_argnums=0)
    with checkpoint.open_manager(tmp_path) as manager:
        state = make_state(7)
        checkpoint.save(manager, 7, state)
        jax.block_until_ready(consume(state))
    np.testing.assert_array_equal(bits(restore(tmp_path).state)[2], bits(make_state(7))[2])


@pytest.mark.parametrize("place", [0.1, 0.35, 0.6, 0.95])
def test_one_flipped_bit_sends_restore_back_to_the_step_before(tmp_path, place):
    save_steps(tmp_path, (1, 2))
    damage(tmp_path, 2, lambda content: flip(content, place))
    restored = restore(tmp_path)
    assert restored.step == 1
    assert list(restored.skipped) == [2]
    np.testing.assert_array_equal(bits(restored.state)[2], bits(make_state(1))[2])


def test_a_truncated_checkpoint_and_a_stray_directory_are_skipped(tmp_path):
    save_steps(tmp_path, (1, 2))
    damage(tmp_path, 2, lambda content: content[: len(content) // 2])
    (tmp_path / checkpoint.DIRECTORY / "9").mkdir()
    assert restore(tmp_path).step == 1


def test_nothing_valid_restores_nothing_and_deletes_nothing(tmp_path):
    save_steps(tmp_path, (3,))
    damage(tmp_path, 3, lambda content: b"")
    restored = restore(tmp_path)
    assert restored.step is None
    assert list(restored.skipped) == [3]
    assert checkpoint.exists(tmp_path)


def test_the_fingerprint_is_the_same_however_the_state_lies_over_devices():
    state = make_state(5)
    alone = jax.device_put(state, jax.devices()[3])
    assert fingerprint(state) == fingerprint(alone)


def test_the_fingerprint_sees_every_single_bit_two_signs_and_the_order_of_values():
    values = np.arange(64, dtype=np.float32)
    two_signs = np.where(np.isin(np.arange(64), (5, 9)), -values, values)
    seen = {fingerprint({"x": changed})["x"] for changed in (values, values[::-1].copy(), two_signs)}
    for place in range(64):
        for bit in range(32):
            changed = values.copy()
            changed.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
            seen.add(fingerprint({"x": changed})["x"])
    collisions = 3 + 64 * 32 - len(seen)
    assert collisions <= 1, "2,051 hashes of 32 bits collide twice with probability 1e-7"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8", "int32", "bool"])
def test_the_fingerprint_tells_an_array_from_itself_reversed_with_rows_or_halves_exchanged_and_transposed(dtype):
    values = jnp.asarray(np.random.default_rng(0).integers(0, 2, (16, 16)), dtype)
    others = (values[::-1], values[:, ::-1], values.reshape(-1)[::-1].reshape(16, 16), values.T)
    exchanged = values.at[jnp.array([2, 9])].set(values[jnp.array([9, 2])])
    numbers = [fingerprint({"x": one})["x"] for one in (values, *others, exchanged, jnp.roll(values, 8, 0))]
    assert len(set(numbers)) == len(numbers), "seven hashes of 32 bits collide with probability 5e-9"


def test_the_fingerprint_tells_which_leaf_holds_what():
    one, other = jnp.arange(4.0), jnp.arange(4.0) + 1
    first, second = fingerprint({"a": one, "b": other}), fingerprint({"a": other, "b": one})
    assert first == {"a": second["b"], "b": second["a"]}
    assert first["a"] != first["b"]


def test_after_a_rollback_the_newer_steps_are_kept_elsewhere_and_can_be_saved_again(tmp_path):
    with checkpoint.open_manager(tmp_path, keep=5) as manager:
        for step in (1, 2, 3, 4):
            checkpoint.save(manager, step, make_state(step))
        assert checkpoint.discard_after(manager, 2) == [4, 3]
        assert checkpoint.discard_after(manager, 2) == []
        checkpoint.save(manager, 3, make_state(33))
        assert checkpoint.discard_after(manager, 2) == [3]
        checkpoint.save(manager, 3, make_state(333))
    restored = restore(tmp_path)
    assert restored.step == 3
    np.testing.assert_array_equal(bits(restored.state)[2], bits(make_state(333))[2])
    aside = tmp_path / f"rolled_back_{checkpoint.DIRECTORY}"
    assert {path.name for path in aside.iterdir()} == {"3_0", "4_0", "3_1"}


def test_a_checkpoint_of_another_state_is_said_to_be_of_another_version_not_damaged(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, {"a": jnp.ones((4, 8)), "b": jnp.ones(3)})
    of_shapes = partial(
        jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    for other in ({"a": (4, 16), "b": (3,)}, {"a": (4, 8)}):
        with checkpoint.open_manager(tmp_path, read_only=True) as manager:
            found = checkpoint.restore_newest(manager, {name: of_shapes(shape) for name, shape in other.items()})
        assert "saved by another version of this project" in found.skipped[1]
