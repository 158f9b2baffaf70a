"""`sample.keep`: of the samples drawn in each class, those whose class the model itself tells best."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import changed

import ebm_jax
from configs import digits, digits_contrastive
from ebm_jax import assemble, choice
from ebm_jax.distributed import parallel
from ebm_jax.schema import with_values
from ebm_jax.trained import TrainedRun

TINY = {
    "model__width": 8,
    "model__num_classes": 3,
    "model__dtype": "float32",
    "sample__descent_steps": 3,
    "sample__num_steps": 2,
    "sample__quiet_steps": 1,
    "sample__class_draws": 1,
}


def test_a_margin_is_the_lead_of_the_own_class_over_the_best_other():
    energies = np.array([[1.0, 4.0, 2.5], [1.0, 4.0, 2.5], [0.0, 0.0, 7.0]])
    np.testing.assert_array_equal(choice.margins(energies, np.array([0, 1, 0])), [1.5, -3.0, 0.0])
    np.testing.assert_array_equal(energies[1], [1.0, 4.0, 2.5])  # the caller's own


def test_each_label_asked_for_gets_one_of_the_best_of_its_class_in_the_order_drawn():
    drawn = np.array([0, 1, 0, 1, 0, 1, 0])
    margins = np.array([5.0, 1.0, 7.0, 3.0, 6.0, 2.0, 9.0])
    np.testing.assert_array_equal(choice.surest(drawn, margins, np.array([1, 0, 0, 1])), [3, 2, 6, 5])


@pytest.mark.parametrize(("images", "keep", "drawn"), [(64, 1.0, 64), (64, 0.5, 128), (9, 0.9, 10), (7, 0.75, 10)])
def test_so_many_are_drawn_that_the_share_is_what_was_asked_for(images, keep, drawn):
    config = changed(digits.get_config(), sample__num_images=images, sample__keep=keep)
    assert choice.num_drawn(config) == drawn


def a_run(**keys):
    """A run of a small network whose weights are no training's, with classes that differ."""
    config = changed(digits.get_config(), **TINY, **keys)
    params = ebm_jax.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)
    return TrainedRun(config, params, parallel.first_device_mesh(), 1, Path("runs/nowhere"), {})


@pytest.mark.whole
def test_a_run_keeps_of_its_own_samples_those_that_it_tells_best():
    """Against all samples of the same key, told apart and chosen by hand."""
    run = a_run(sample__num_images=12, sample__batch_size=6, sample__keep=0.5)
    everything = run._replace(config=changed(run.config, sample__num_images=24, sample__keep=1.0))
    key = jax.random.key(3)
    found, pool = run.samples(key), everything.samples(jax.random.clone(key))
    np.testing.assert_array_equal(found.labels, np.arange(12) % 3)

    apply = partial(assemble.make_apply(run.config), run.params)
    energies_of = jax.jit(assemble.make_class_energies(run.config, apply))
    key = jax.random.fold_in(jax.random.clone(key), 24)
    told = [energies_of(jax.random.fold_in(key, at), pool.images[at : at + 6]) for at in range(0, 24, 6)]
    told = np.concatenate(told)
    leads = [min(np.delete(row, label)) - row[label] for row, label in zip(told, pool.labels, strict=True)]
    for label in range(3):
        of_class = [row for row in range(24) if pool.labels[row] == label]
        best = sorted(of_class, key=lambda row: leads[row])[4:]
        kept = found.images[found.labels == label]
        np.testing.assert_array_equal(kept, pool.images[sorted(best)])
        np.testing.assert_array_equal(found.energies[found.labels == label], pool.energies[sorted(best)])


@pytest.mark.parametrize(
    ("config", "keys", "said"),
    [
        (digits, {"model__num_classes": 1}, "sample.keep 0.5 needs classes: model.num_classes is 1"),
        (digits, {"sample__buffer_capacity": 100}, "sample.buffer_capacity 100 asks for those of a buffer"),
        (digits, {}, "sample.keep 0.5 chooses among finished samples, which this function cannot"),
    ],
)
def test_what_cannot_choose_says_so(config, keys, said):
    with pytest.raises(ebm_jax.BadInput, match=said):
        ebm_jax.make_sample_fn(changed(config.get_config(), sample__keep=0.5, **keys))


def test_a_model_that_never_compared_its_classes_is_refused_before_a_chain_runs():
    config = with_values(digits_contrastive.get_config(), {"model.num_classes": 10, "sample.keep": 0.5})
    run = TrainedRun(config, {}, parallel.first_device_mesh(), 1, Path("runs/nowhere"), {})
    run = run._replace(params=jax.eval_shape(lambda: ebm_jax.init_params(config, jax.random.key(0))))
    with pytest.raises(ebm_jax.BadInput, match="never compared them; use 1"):
        run.samples(jax.random.key(0))


@pytest.mark.whole
def test_kept_digits_are_the_digits_asked_for():
    """A support vector classifier of the training digits sees more of the class asked for, and hardly an error."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    given = load_digits()
    judge = SVC(gamma=0.001).fit(given.data[:1438], given.target[:1438])
    run = ebm_jax.open_run("digits")
    config = changed(run.config, sample__num_images=200, sample__batch_size=100)
    right = {}
    for keep in (1.0, 0.6):
        found = run._replace(config=changed(config, sample__keep=keep)).samples(jax.random.key(0))
        right[keep] = (judge.predict(found.images.reshape(200, 64) * 16.0) == found.labels).mean()
    assert right[0.6] > max(right[1.0], 0.98), right
