"""Methods, and the combinators that make methods of methods: losses, memories, metrics and healthy regions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import changed
from test_guard import judged, metrics_for
from test_step import BATCH, SHAPE, apply, batch_for, contrastive_divergence, over_devices, params_for

from configs import digits_contrastive as digits
from ebm_jax import assemble, checks, schema
from ebm_jax.distributed import parallel
from ebm_jax.methods.denoising import denoising
from ebm_jax.methods.label import label_contrast, of_any_class, of_the_batch
from ebm_jax.methods.method import Limits, Method, Model, Range, idle, no_memory, staged, weighted_sum
from ebm_jax.sampling.base import uniform
from ebm_jax.sampling.kernel import Info, Kernel
from ebm_jax.sampling.langevin import LangevinState
from ebm_jax.types import BadInput

MARGIN, WEIGHT = 0.3, 0.7


def next_class(key, labels, num_classes):
    del key
    return (labels + 1) % num_classes


def labels_contrasted(wrong_labels=next_class):
    return label_contrast(uniform(SHAPE), wrong_labels=wrong_labels, num_classes=2, label_margin=MARGIN)


def denoised():
    return denoising(uniform(SHAPE), sigma=0.2, least=0.0, most=0.0, patience=3)


def both():
    return weighted_sum([(1.0, contrastive_divergence()), (WEIGHT, labels_contrasted())])


def started(method):
    """A memory whose chains already have labels."""
    return with_labels(method.init(jax.random.key(7)))


def with_labels(buffer):
    return buffer._replace(labels=jnp.arange(BATCH, dtype=jnp.int32) % 2, visits=jnp.ones(BATCH, jnp.int32))


def evaluated(method, memory, apply=apply):
    """((loss, (memory, metrics)), gradient) of a method on one device."""

    def loss(params, batch, memory):
        return method.loss(jax.random.key(5), Model(apply, params), batch, memory)

    batch = jax.tree.map(jnp.asarray, batch_for())
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params_for(), batch, memory)


def assert_close(actual, expected):
    """Equal, to float32 rounding of sums over a batch."""
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), actual, expected)


def test_a_weighted_sum_is_sgd_on_the_sum_that_autodiff_alone_gives():
    method, params = both(), params_for()
    unequal = (np.arange(BATCH) % 3 == 0).astype(np.int32)  # the contrast of equally many of both has no sign here
    batch = batch_for()._replace(labels=unequal)
    memory = (with_labels(method.init(jax.random.key(7))[0]), ())
    chains = np.asarray(memory[0].images).reshape(-1, *SHAPE)  # capacity = batch: all are drawn, and they stand still
    own = np.asarray(memory[0].labels)

    def loss(params):
        data, samples = apply(params, batch.images, batch.labels), apply(params, chains, own)
        wrong = apply(params, batch.images, 1 - batch.labels)
        contrast = MARGIN * jnp.log1p(jnp.exp((data - wrong) / MARGIN)).mean()
        penalty = 0.1 * (jnp.square(data).mean() + jnp.square(samples).mean())
        return data.mean() - samples.mean() + penalty + WEIGHT * contrast

    mesh, step, state = over_devices(method, optax.sgd(0.1), memory, 2)
    state, metrics = step(state, parallel.place_batch(mesh, batch))
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    assert_close(jax.device_get(state.params), expected)
    assert_close(metrics["loss"], loss(params))
    np.testing.assert_allclose(metrics["energy_gap"], metrics["energy_data"] - metrics["energy_samples"], rtol=1e-6)


def test_comparisons_share_one_call_of_the_network_and_give_what_they_give_apart():
    sizes = []

    def counted(params, images, labels=None, dropout_key=None):
        sizes.append(len(images))
        mask = 0.0 if dropout_key is None else jax.random.uniform(dropout_key)  # equal keys give equal masks
        return (1.0 + mask) * apply(params, images, labels)

    parts = [contrastive_divergence(), labels_contrasted(of_the_batch)]
    memories = [started(parts[0]), ()]
    (value, (kept, metrics)), gradient = evaluated(
        weighted_sum(list(zip([2.0, WEIGHT], parts, strict=True))), tuple(memories), counted
    )
    assert sizes[-1] == 3 * BATCH, "the data under their own labels only once"
    assert sizes.count(3 * BATCH) == 1
    apart = [evaluated(part, memory, counted) for part, memory in zip(parts, memories, strict=True)]
    assert_close(value, 2.0 * apart[0][0][0] + WEIGHT * apart[1][0][0])
    assert_close(gradient, jax.tree.map(lambda one, other: 2.0 * one + WEIGHT * other, apart[0][1], apart[1][1]))
    assert_close(kept[0], apart[0][0][1][0])
    assert_close(metrics, apart[0][0][1][1] | apart[1][0][1][1])


def test_a_sum_within_a_sum_is_the_sum_of_all():
    inner = weighted_sum([(0.5, labels_contrasted()), (2.0, contrastive_divergence())])
    memory = started(contrastive_divergence())
    (nested, _), gradient = evaluated(weighted_sum([(2.0, inner)]), (((), memory),))
    flat = weighted_sum([(4.0, contrastive_divergence()), (1.0, labels_contrasted())])
    (value, _), expected = evaluated(flat, (memory, ()))
    assert_close(nested, value)
    assert_close(gradient, expected)


def test_methods_that_do_more_than_compare_are_summed_each_with_its_own_key_and_memory():
    method = weighted_sum([(1.0, contrastive_divergence()), (WEIGHT, denoised())])
    memory = started(contrastive_divergence())
    (value, (kept, metrics)), gradient = evaluated(method, (memory, ()))
    batch = jax.tree.map(jnp.asarray, batch_for())

    def alone(params):
        keys = jax.random.split(jax.random.key(5), 2)
        first, (_, of_first) = contrastive_divergence().loss(keys[0], Model(apply, params), batch, memory)
        second, (_, of_second) = denoised().loss(keys[1], Model(apply, params), batch, ())
        return first + WEIGHT * second, of_first | of_second

    (expected, found), by_hand = jax.jit(jax.value_and_grad(alone, has_aux=True))(params_for())
    assert_close(value, expected)
    assert_close(gradient, by_hand)
    assert_close(metrics, found)
    np.testing.assert_array_equal(kept[0].visits, 2)
    assert kept[1] == ()


def test_terms_that_report_one_name_for_two_values_are_refused():
    twice = weighted_sum([(1.0, denoised()), (1.0, denoised())])
    with pytest.raises(BadInput, match="two terms of a weighted sum report a metric 'denoising_error'"):
        evaluated(twice, ((), ()))


def test_a_term_without_memory_leaves_the_others_first_memory_as_it_is():
    alone, (beside, _) = contrastive_divergence().init(jax.random.key(7)), both().init(jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, alone, beside)
    two = weighted_sum([(1.0, contrastive_divergence()), (1.0, contrastive_divergence())]).init(jax.random.key(7))
    assert np.abs(two[0].images - two[1].images).max() > 0.1


def test_a_step_of_the_label_contrast_lowers_data_under_their_labels_against_the_wrong_ones():
    batch = batch_for()

    def bilinear(params, images, labels=None, dropout_key=None):
        return jnp.take_along_axis(images.reshape(len(images), -1) @ params["v"], labels[:, None], 1)[:, 0]  # pyright: ignore[reportOptionalSubscript]

    def contrast(params):
        labels = jnp.asarray(batch.labels)
        return (bilinear(params, batch.images, labels) - bilinear(params, batch.images, 1 - labels)).mean()

    params = {"v": 0.1 * jax.random.normal(jax.random.key(1), (int(np.prod(SHAPE)), 2))}
    before = contrast(params)
    mesh, step, state = over_devices(labels_contrasted(), optax.sgd(1.0), (), 1, bilinear, params)
    state, _ = step(state, parallel.place_batch(mesh, batch))
    assert contrast(jax.device_get(state.params)) < before - 1e-3


def switched(steps):
    """Contrastive divergence for some steps, denoising ever after."""
    return staged(contrastive_divergence(), steps, denoised())


@pytest.mark.parametrize("devices", [1, 2])
def test_staged_methods_change_places_after_the_stated_steps_and_both_memories_stay(devices):
    method, memory = switched(2), switched(2).init(jax.random.key(7))
    memory = memory._replace(first=with_labels(memory.first))
    start = np.asarray(memory.first.visits)
    mesh, step, state = over_devices(method, optax.sgd(0.1), memory, devices)
    rows, visits = [], []
    for seed in range(4):
        state, metrics = step(state, parallel.place_batch(mesh, batch_for(seed)))
        rows.append(jax.device_get(metrics))
        visits.append(np.asarray(state.memory.first.visits) - start)
    assert [row["stage"] for row in rows] == [0, 0, 1, 1]
    assert [one.sum() for one in visits] == [BATCH, 2 * BATCH, 2 * BATCH, 2 * BATCH]
    assert [row["denoising_error"] > 0 for row in rows] == [False, False, True, True]
    assert [row["energy_samples"] != 0 for row in rows] == [True, True, False, False]
    assert int(state.memory.step) == 4
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_staged_methods_give_the_losses_and_gradients_of_the_one_whose_turn_it_is():
    memory = switched(1).init(jax.random.key(7))
    memory = memory._replace(first=with_labels(memory.first))
    for step, (method, own) in enumerate([(contrastive_divergence(), memory.first), (denoised(), ())]):
        (value, _), gradient = evaluated(switched(1), memory._replace(step=jnp.asarray(step, jnp.int32)))
        (expected, _), by_hand = evaluated(method, own)
        assert_close(value, expected)
        assert_close(gradient, by_hand)


def test_only_the_method_whose_turn_it_is_is_computed():
    ran = []

    def noted(name):
        def loss(key, model, batch, memory):
            del key, batch
            jax.debug.callback(lambda: ran.append(name))
            return jnp.square(model.params["w"]).mean(), (memory, {})

        return Method(no_memory, loss, uniform(SHAPE), Limits())

    method = staged(noted("first"), 2, noted("then"))
    mesh, step, state = over_devices(method, optax.sgd(0.1), method.init(jax.random.key(0)), 1)
    for seed in range(3):
        state, _ = step(state, parallel.place_batch(mesh, batch_for(seed)))
        jax.effects_barrier()
    assert ran == ["first", "first", "then"]


def test_three_stages_one_within_another_follow_one_another():
    method = staged(denoised(), 1, staged(contrastive_divergence(), 1, denoised(), name="later"))
    memory = method.init(jax.random.key(7))
    mesh, step, state = over_devices(method, optax.sgd(0.1), memory, 2)
    seen = []
    for seed in range(3):
        state, metrics = step(state, parallel.place_batch(mesh, batch_for(seed)))
        seen.append((float(metrics["stage"]), float(metrics["later"]), float(metrics["energy_samples"]) != 0))
    assert seen == [(0, 0, False), (1, 0, True), (1, 1, False)]
    with pytest.raises(BadInput, match="already has a metric 'stage'"):
        evaluated(staged(denoised(), 1, switched(1)), staged(denoised(), 1, switched(1)).init(jax.random.key(0)))


HALVING = Kernel(
    init=lambda x, energy_fn: LangevinState(x),
    step=lambda key, state, energy_fn: (LangevinState(0.5 * state.x), Info(*[energy_fn(state.x)] * 3)),
)


def joined(after, **options):
    """Denoising, which contrastive divergence joins; new chains are noise halved three times."""
    chains = contrastive_divergence(start_stages=[(HALVING, 3)], **options)
    return weighted_sum([(1.0, denoised()), (WEIGHT, staged(idle(uniform(SHAPE)), after, chains))])


@pytest.mark.parametrize("devices", [1, 2])
def test_a_method_that_joins_later_costs_nothing_before_and_begins_with_a_buffer_of_new_chains(devices):
    method = joined(2, capacity=3 * BATCH)
    memory = method.init(jax.random.key(7))
    noise = np.asarray(memory[1].then.images)
    mesh, step, state = over_devices(method, optax.sgd(0.1), memory, devices)
    rows = []
    for seed in range(4):
        state, metrics = step(state, parallel.place_batch(mesh, batch_for(seed)))
        rows.append((jax.device_get(metrics), jax.device_get(state.memory[1].then)))
    for metrics, buffer in rows[:2]:
        np.testing.assert_array_equal(buffer.images, noise)
        assert metrics["energy_samples"] == metrics["stage"] == 0
        assert metrics["denoising_error"] > 0
    for index, (metrics, buffer) in enumerate(rows[2:], 1):
        assert buffer.images.max() <= 1 / 8, "U[0, 1], halved three times"
        assert abs(buffer.images[:, : np.prod(SHAPE)].mean() - 1 / 16) < 0.01
        assert buffer.visits.sum() == 3 * BATCH + index * BATCH
        assert set(np.unique(buffer.labels)) == {0, 1}
        assert metrics["stage"] == 1
        assert metrics["denoising_error"] > 0
        assert metrics["energy_gap"] != 0


def test_a_step_restarts_the_stated_share_of_chains_with_new_ones_under_fresh_labels():
    method = contrastive_divergence(start_stages=[(HALVING, 3)], restart_prob=0.3)
    ones = method.init(jax.random.key(7))._replace(images=jnp.ones((BATCH, np.prod(SHAPE))))
    ones = ones._replace(visits=jnp.full(BATCH, 9, jnp.int32), labels=jnp.zeros(BATCH, jnp.int32))
    batch = jax.tree.map(jnp.asarray, batch_for())._replace(labels=jnp.ones(BATCH, jnp.int32))
    _, (buffer, _) = method.loss(jax.random.key(5), Model(apply, params_for()), batch, ones)
    new = np.asarray(buffer.images).max(1) < 0.5
    assert new.sum() == math.ceil(0.3 * BATCH)
    np.testing.assert_array_equal(buffer.visits, np.where(new, 1, 10))
    np.testing.assert_array_equal(buffer.labels, new)


def test_noise_on_the_data_has_the_stated_size_and_no_other_effect():
    seen = []

    def noted(params, images, labels=None, dropout_key=None):
        seen.append(images)
        return apply(params, images, labels)

    method = contrastive_divergence(data_noise=0.2)
    batch = jax.tree.map(jnp.asarray, batch_for())
    method.loss(jax.random.key(5), Model(noted, params_for()), batch, started(method))
    added = np.asarray(seen[-1][:BATCH] - batch.images)
    assert abs(added.std() - 0.2) < 5 * 0.2 / np.sqrt(2 * added.size)


def test_what_a_stage_does_not_report_the_guard_does_not_judge_in_it():
    limits = switched(2).limits
    absent = metrics_for(chain_grad_norm=0.0, energy_data=0.0, energy_samples=0.0, energy_gap=0.0)
    assert judged([absent | {"stage": np.ones(())}] * 9, limits) == [None] * 9
    assert "chain_grad_norm is 0" in judged([absent | {"stage": np.zeros(())}] * 3, limits)[-1]


def test_a_sum_has_the_ranges_of_all_terms_and_the_chains_of_the_first_that_has_some():
    strict = denoised()._replace(limits=Limits((Range("denoising_error", 0.0, 2.0),), 9))
    method = weighted_sum([(1.0, strict), (1.0, contrastive_divergence())])
    assert len(method.limits.ranges) == 1 + len(contrastive_divergence().limits.ranges)
    assert method.limits.patience == 9
    memory = method.init(jax.random.key(0))
    assert method.chains(memory) is memory[1]
    assert weighted_sum([(1.0, denoised())]).chains(((),)) is None
    memory = switched(1).init(jax.random.key(0))
    assert switched(1).chains(memory) is memory.first


def own_method(base, *, sharpness=2.0, num_classes):
    """A method of a user's own, for `registry.named`."""
    return Method(no_memory, lambda *_: (sharpness, num_classes), base, Limits())  # pyright: ignore


def hungry_method(*, breadth):
    return breadth


def test_the_config_names_a_method_of_the_package_or_of_the_users_own_and_gives_it_what_it_asks_for():
    config = changed(digits.get_config(), model__num_classes=10)

    def named(name, **changes):
        return assemble.make_method(changed(config, method__name=name, **changes))

    assert assemble.make_method(config).chains(assemble.make_method(config).init(jax.random.key(0))) is not None
    method = named("denoising", method__denoising__sigma=0.2)
    assert method.init(jax.random.key(0)) == ()
    assert method.limits == Limits((), config.guard.patience)
    assert named("test_methods:own_method").loss() == (2.0, 10)  # pyright: ignore
    assert named("test_methods:own_method", method__own__sharpness=5.0).loss()[0] == 5.0  # pyright: ignore
    assert len(named("contrastive", loss__label_weight=0.5).init(jax.random.key(0))) == 2
    with pytest.raises(
        BadInput, match=r"method\.name 'test_methods:hungry_method' asks for breadth, which is none of "
    ):
        named("test_methods:hungry_method")
    with pytest.raises(BadInput, match=r"method\.name 'denoisin' is unknown.*did you mean denoising"):
        named("denoisin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.name": "label"}, "loss.label_weight 1.0 adds the method label, which the config names already"),
        ({"method.then.after": 5}, "method.then.name contrastive cannot join method.name contrastive"),
        (
            {"method.name": "equilibrium", "method.then.after": 5, "method.then.name": "energy_matching"},
            "method.then.name energy_matching cannot join method.name equilibrium",
        ),
    ],
)
def test_two_methods_that_measure_the_same_are_refused(changes, message):
    config = schema.with_values(digits.get_config(), {"model.num_classes": 10, "loss.label_weight": 1.0} | changes)
    with pytest.raises(BadInput, match=message):
        checks.check(config, 1)


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
