"""The training step: one gradient on any number of devices, chains under their own labels."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ebm_jax.distributed import parallel
from ebm_jax.methods import losses
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import Info, Kernel
from ebm_jax.sampling.langevin import LangevinState, langevin
from ebm_jax.training.state import PARTITION, init_state, network_params
from ebm_jax.training.step import dequantise, make_train_step, of_any_class, of_the_batch
from ebm_jax.types import Batch

BATCH, SHAPE = 16, (3, 2, 1)
STILL = Kernel(
    init=lambda x, energy_fn: LangevinState(x),
    step=lambda key, state, energy_fn: (state, Info(*[energy_fn(state.x)] * 3)),
)


def apply(params, images, labels=None, dropout_key=None):
    flat = images.reshape(images.shape[0], -1)
    return jnp.tanh(flat @ params["w"]).sum(-1) + params["c"][labels]


def params_for(num_classes=2):
    w = jax.random.normal(jax.random.key(1), (int(np.prod(SHAPE)), 5))
    return {"w": w, "c": jnp.linspace(-1.0, 1.0, num_classes)}


def batch_for(seed=0, num_classes=2):
    keys = jax.random.split(jax.random.key(seed), 2)
    images = jax.random.uniform(keys[0], (BATCH, *SHAPE))
    labels: Any = np.asarray(jax.random.randint(keys[1], (BATCH,), 0, num_classes))
    return Batch(cast(Any, np.asarray(images)), labels)


def setup(
    devices=1,
    kernel=STILL,
    capacity=BATCH,
    objective=losses.contrastive_divergence,
    apply=apply,
    chain_steps=1,
    **options,
):
    mesh = parallel.device_mesh(jax.devices()[:devices])
    optimizer = optax.sgd(0.1)
    objective = losses.regularised(objective, 0.1, losses.energy_l2_sum)
    settings = {
        "restart_prob": 0.0,
        "relabel_prob": 0.0,
        "label_weight": 0.0,
        "label_margin": 0.05,
        "wrong_labels": of_any_class,
        "num_classes": 2,
        "ring": False,
        "ema_decay": 0.5,
        "rescue_learning_rate": 1.0,
    } | options
    step = make_train_step(apply, [(kernel, chain_steps)], objective, optimizer, **settings)
    step = parallel.over_devices(step, mesh, (PARTITION, parallel.SHARDED), (PARTITION, parallel.REPLICATED), (0,))
    visited = {"labels": jnp.arange(capacity, dtype=jnp.int32) % 2, "visits": jnp.ones(capacity, jnp.int32)}
    buffer = replay.init(jax.random.key(7), capacity, SHAPE)._replace(**visited)
    state = init_state(jax.random.key(3), params_for(), {}, optimizer, buffer)
    state = jax.device_put(jax.tree.map(lambda x: x.copy(), state), parallel.shardings(mesh, PARTITION_TREE(state)))
    return mesh, step, state


def PARTITION_TREE(state):  # noqa: N802 - the prefix, spread over the state's leaves
    return jax.tree.map(
        lambda spec, part: jax.tree.map(lambda _: spec, part),
        PARTITION,
        state,
        is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
    )


@pytest.mark.parametrize("objective", [losses.contrastive_divergence, losses.logsumexp(parallel.gather)])
def test_one_two_and_eight_devices_make_the_same_update_of_the_same_negatives(objective):
    # capacity = batch: every chain of the buffer is drawn, whatever the slots, and the still kernel leaves it
    results = []
    for devices in (1, 2, 8):
        mesh, step, state = setup(devices, objective=objective)
        state, metrics = step(state, parallel.place_batch(mesh, batch_for()))
        results.append((state.params, metrics))
    for params, metrics in results[1:]:
        for name, value in params.items():
            np.testing.assert_allclose(value, results[0][0][name], rtol=2e-6, atol=2e-7)
        for name, value in metrics.items():
            np.testing.assert_allclose(value, results[0][1][name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_the_update_is_sgd_on_the_loss_that_autodiff_alone_gives():
    mesh, step, state = setup(8)
    params, buffer, batch = params_for(), jax.device_get(state.buffer), batch_for()

    def loss(params):
        data = apply(params, jnp.asarray(batch.images), batch.labels)
        samples = apply(params, jnp.asarray(buffer.images).reshape(-1, *SHAPE), buffer.labels)
        return data.mean() - samples.mean() + 0.1 * (jnp.square(data).mean() + jnp.square(samples).mean())

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    state, metrics = step(state, parallel.place_batch(mesh, batch))
    for name, value in expected.items():
        np.testing.assert_allclose(state.params[name], value, rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(metrics["loss"], loss(params), rtol=2e-6)


def test_the_state_is_donated():
    mesh, step, state = setup(8, capacity=32)
    step(state, parallel.place_batch(mesh, batch_for()))
    assert state.buffer.images.is_deleted()
    assert state.params["w"].is_deleted()


def test_a_chain_runs_under_the_label_it_is_stored_with_from_step_to_step():
    targets = jnp.array([0.2, 0.9])

    def pull(params, images, labels=None, dropout_key=None):
        return 0.5 * jnp.square(images - targets[labels][:, None, None, None]).sum((1, 2, 3)) + 0.0 * params["c"].sum()

    kernel = langevin(1.0, temperature=0.0)  # one step of length one lands on the target
    mesh, step, state = setup(8, apply=pull, kernel=kernel, capacity=BATCH, restart_prob=0.3)
    for seed in range(5):
        state, _ = step(state, parallel.place_batch(mesh, batch_for(seed)))
        images, labels = jax.device_get((state.buffer.images, state.buffer.labels))
        np.testing.assert_allclose(images, np.broadcast_to(targets[labels][:, None], images.shape), atol=1e-6)
    assert set(labels) == {0, 1}


def test_restarted_chains_take_their_labels_from_the_data():
    mesh, step, state = setup(8, restart_prob=1.0)
    batch = batch_for()._replace(labels=np.ones(BATCH, np.int32))
    state, _ = step(state, parallel.place_batch(mesh, batch))
    assert (jax.device_get(state.buffer.labels) == 1).all()


@pytest.mark.parametrize("in_chains", [False, True])
def test_dropout_acts_in_the_loss_and_in_a_chain_only_where_asked_with_a_new_mask_at_every_step(in_chains):
    def marked(params, images, labels=None, dropout_key=None):
        mask = 0.0 if dropout_key is None else 1000.0 + jax.random.uniform(dropout_key)
        return apply(params, images, labels) + mask

    def look(key, state, energy_fn):
        moved = LangevinState(state.x.at[..., 0, 0].set(state.x[..., 1, 0]).at[..., 1, 0].set(0.0))
        energy = energy_fn(jnp.zeros_like(state.x))  # the mask alone, but for a constant of the label
        return moved, Info(energy, energy, energy)  # the step reports the mean of the second as chain_grad_norm

    kernel = Kernel(init=STILL.init, step=look)
    means = []
    for steps in (1, 2):
        mesh, step, state = setup(1, apply=marked, kernel=kernel, chain_steps=steps, dropout_in_chains=in_chains)
        _, metrics = step(state, parallel.place_batch(mesh, batch_for()))
        assert metrics["energy_data"] > 900
        assert metrics["energy_samples"] > 900
        means.append(metrics["chain_grad_norm"])
    if in_chains:
        assert min(means) > 900
        assert means[0] != means[1]
    else:
        assert max(means) < 10


def test_the_running_mean_of_the_weights_is_the_geometric_sum():
    mesh, step, state = setup(2)
    mean = np.asarray(state.ema["w"])
    for seed in range(3):
        state, _ = step(state, parallel.place_batch(mesh, batch_for(seed)))
        mean = 0.5 * mean + 0.5 * np.asarray(state.params["w"])
    np.testing.assert_allclose(network_params(state, ema=True)["w"], mean, rtol=1e-6)
    np.testing.assert_array_equal(network_params(state, ema=False)["w"], state.params["w"])


def test_devices_run_different_noise():
    mesh, step, state = setup(8, kernel=langevin(1e-9, 0.3), restart_prob=0.0)
    state = state._replace(buffer=state.buffer._replace(images=jnp.full_like(state.buffer.images, 0.5)))
    state, _ = step(state, parallel.place_batch(mesh, batch_for()))
    images = jax.device_get(state.buffer.images)
    assert len(np.unique(images, axis=0)) == BATCH


def test_dequantised_pixels_are_uniform_within_their_own_bin():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(400, 0)
    values = np.asarray(dequantise(jax.random.key(0), jnp.asarray(images))) * 256
    fraction = (values - images).reshape(-1)
    assert fraction.min() >= 0
    assert fraction.max() <= 1
    standard_error = np.sqrt(1 / 12 / fraction.size)
    assert abs(fraction.mean() - 0.5) < 5 * standard_error
    np.testing.assert_array_equal(dequantise(jax.random.key(0), jnp.ones((2, 3)) * 0.3), jnp.ones((2, 3)) * 0.3)


def test_a_wrong_label_of_any_class_is_each_other_class_equally_often_and_never_its_own():
    labels = jnp.arange(4000) % 4
    wrong = np.asarray(of_any_class(jax.random.key(0), labels, 4)).reshape(-1, 4)
    for label, column in enumerate(wrong.T):
        counts = np.bincount(column, minlength=4)
        assert counts[label] == 0
        others = np.delete(counts, label)
        assert (np.abs(others - 1000 / 3) < 5 * np.sqrt(1000 / 3 * 2 / 3)).all()


def test_wrong_labels_of_the_batch_are_those_of_its_other_images():
    labels = jnp.asarray([3, 5, 3, 5, 7, 7])
    seen = {tuple(np.asarray(of_the_batch(jax.random.key(seed), labels, 10)).tolist()) for seed in range(60)}
    assert seen == {tuple(np.roll(labels, shift).tolist()) for shift in range(1, 6)}
