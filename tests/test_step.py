"""The training step: one gradient on any number of devices, chains under their own labels."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ebm_jax.distributed import parallel
from ebm_jax.methods import losses
from ebm_jax.methods.contrastive import contrastive, healthy
from ebm_jax.methods.method import Limits
from ebm_jax.sampling.base import uniform
from ebm_jax.sampling.kernel import Info, Kernel, unit_box
from ebm_jax.sampling.langevin import LangevinState, langevin
from ebm_jax.training.state import init_state, network_params, partition
from ebm_jax.training.step import make_train_step
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


def contrastive_divergence(
    kernel=STILL,
    chain_steps=1,
    objective=losses.contrastive_divergence,
    energy_l2=0.1,
    base=uniform(SHAPE),  # noqa: B008
    **options,
):
    settings = {
        "capacity": BATCH,
        "dtype": jnp.float32,
        "label_shape": None,
        "restart_prob": 0.0,
        "relabel_prob": 0.0,
        "ring": False,
        "dropout_in_chains": False,
        "start_stages": (),
        "data_noise": 0.0,
    } | options
    limits = Limits(healthy(energy=10.0, of_untrained=0.0, separation=5.0, chain_grad=(0.01, 2.0)), patience=3)
    objective = losses.regularised(objective, energy_l2, losses.energy_l2_sum)
    return contrastive([(kernel, chain_steps)], objective, base, limits, **settings)


def over_devices(method, optimizer, memory, devices=1, apply=apply, params=None, vectors=None, **rates):
    """(mesh, compiled step, state) of a method."""
    mesh, specs = parallel.device_mesh(jax.devices()[:devices]), partition(method, parallel.SHARDED)
    step = make_train_step(
        apply,
        method,
        optimizer,
        **{"ema_decay": 0.5, "ema_ramp": False, "rescue_learning_rate": 1.0, "sharpness": 0.0} | rates,
    )
    step = parallel.over_devices(step, mesh, (specs, parallel.SHARDED), (specs, parallel.REPLICATED), (0,))
    params = params_for() if params is None else params
    state = init_state(jax.random.key(3), params, vectors or {}, optimizer, memory)
    copies = jax.tree.map(lambda leaf: leaf.copy(), state)
    return mesh, step, jax.jit(lambda state: state, out_shardings=parallel.shardings(mesh, specs))(copies)


def setup(
    devices=1,
    kernel=STILL,
    capacity=BATCH,
    apply=apply,
    rescue_learning_rate=1.0,
    ema_decay=0.5,
    sharpness=0.0,
    comparing=True,
    **options,
):
    """(mesh, compiled step, state) of contrastive divergence; the buffer's chains already have labels."""
    method = contrastive_divergence(kernel, capacity=capacity, **options)
    method = method if comparing else method._replace(comparison=None)
    visited = {"labels": jnp.arange(capacity, dtype=jnp.int32) % 2, "visits": jnp.ones(capacity, jnp.int32)}
    buffer = method.init(jax.random.key(7))._replace(**visited)
    rates = {"rescue_learning_rate": rescue_learning_rate, "ema_decay": ema_decay, "sharpness": sharpness}
    return over_devices(method, optax.sgd(0.1), buffer, devices, apply, **rates)


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
    params, buffer, batch = params_for(), jax.device_get(state.memory), batch_for()

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
    assert state.memory.images.is_deleted()
    assert state.params["w"].is_deleted()


def test_a_state_without_spectral_vectors_can_be_consumed():
    mesh, step, other = setup()
    state = init_state(jax.random.key(3), params_for(), {}, optax.sgd(0.1), other.memory)
    after, _ = step(state, parallel.place_batch(mesh, batch_for()))
    assert after.step == 1
    assert state.params["w"].is_deleted()
    assert state.ema["w"].is_deleted()


def test_a_chain_runs_under_the_label_it_is_stored_with_from_step_to_step():
    targets = jnp.array([0.2, 0.9])

    def pull(params, images, labels=None, dropout_key=None):
        return 0.5 * jnp.square(images - targets[labels][:, None, None, None]).sum((1, 2, 3)) + 0.0 * params["c"].sum()

    kernel = langevin(1.0, temperature=0.0, project=unit_box)  # one step of length one lands on the target
    mesh, step, state = setup(8, apply=pull, kernel=kernel, capacity=BATCH, restart_prob=0.3)
    for seed in range(5):
        state, _ = step(state, parallel.place_batch(mesh, batch_for(seed)))
        images, labels = jax.device_get((state.memory.images, state.memory.labels))
        np.testing.assert_allclose(images, np.broadcast_to(targets[labels][:, None], images.shape), atol=1e-6)
    assert set(labels) == {0, 1}


def test_restarted_chains_take_their_labels_from_the_data():
    mesh, step, state = setup(8, restart_prob=1.0)
    batch = batch_for()._replace(labels=np.ones(BATCH, np.int32))
    state, _ = step(state, parallel.place_batch(mesh, batch))
    assert (jax.device_get(state.memory.labels) == 1).all()


@pytest.mark.parametrize("in_chains", [False, True])
def test_dropout_acts_in_the_loss_and_in_a_chain_only_where_asked_with_a_new_mask_at_every_step(in_chains):
    def marked(params, images, labels=None, dropout_key=None):
        mask = 0.0 if dropout_key is None else 1000.0 + jax.random.uniform(dropout_key)
        return apply(params, images, labels) + mask

    def look(key, state, energy_fn):
        moved = LangevinState(state.x.at[..., 0, 0].set(state.x[..., 1, 0]).at[..., 1, 0].set(0.0))
        energy = energy_fn(jnp.zeros_like(state.x))  # the mask, plus a constant of the label
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


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_the_running_mean_of_the_weights_is_the_geometric_sum(decay):
    mesh, step, state = setup(2, ema_decay=decay)
    start = mean = np.asarray(state.ema["w"], np.float64)
    for seed in range(3):
        state, _ = step(state, parallel.place_batch(mesh, batch_for(seed)))
        mean = decay * mean + (1 - decay) * np.asarray(state.params["w"])
    rounding = 3 * 4 * np.finfo(np.float32).eps * np.abs(start).max()  # of three steps of four operations
    assert np.abs(mean - start).max() > 30 * rounding
    np.testing.assert_allclose(network_params(state, ema=True)["w"], mean, rtol=0, atol=rounding)
    np.testing.assert_array_equal(network_params(state, ema=False)["w"], state.params["w"])


def test_devices_run_different_noise():
    mesh, step, state = setup(8, kernel=langevin(1e-9, 0.3, project=unit_box), restart_prob=0.0)
    state = state._replace(memory=state.memory._replace(images=jnp.full_like(state.memory.images, 0.5)))
    state, _ = step(state, parallel.place_batch(mesh, batch_for()))
    images = jax.device_get(state.memory.images)
    assert len(np.unique(images, axis=0)) == BATCH


@pytest.mark.parametrize("comparing", [True, False])
def test_with_sharpness_the_gradient_is_that_of_the_point_uphill_for_the_chains_of_this_point(comparing):
    rho, batch = 0.3, batch_for()
    mesh, step, state = setup(8, kernel=langevin(0.1, temperature=0.0, project=unit_box), restart_prob=0.0)
    plain, metrics = step(state, parallel.place_batch(mesh, batch))
    gradient = jax.tree.map(lambda before, after: (before - after) / 0.1, params_for(), plain.params)
    ends = jax.device_get(plain.memory)

    def loss(params):
        data = apply(params, jnp.asarray(batch.images), batch.labels)
        samples = apply(params, jnp.asarray(ends.images).reshape(-1, *SHAPE), ends.labels)
        return data.mean() - samples.mean() + 0.1 * (jnp.square(data).mean() + jnp.square(samples).mean())

    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    higher = jax.tree.map(lambda p, g: p + rho * g / norm, params_for(), gradient)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params_for(), jax.grad(loss)(higher))
    mesh, step, state = setup(
        8, kernel=langevin(0.1, temperature=0.0, project=unit_box), restart_prob=0.0, sharpness=rho, comparing=comparing
    )
    sharp, sharp_metrics = step(state, parallel.place_batch(mesh, batch))
    for name, value in expected.items():
        np.testing.assert_allclose(sharp.params[name], value, rtol=1e-5, atol=1e-6)
        assert not np.allclose(sharp.params[name], plain.params[name], rtol=1e-4)
    np.testing.assert_array_equal(sharp.memory.images, ends.images)
    assert sharp_metrics["loss"] == metrics["loss"]
