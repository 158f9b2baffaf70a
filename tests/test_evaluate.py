"""Evaluating a run: what an evaluator is given is the run's own data and samples, and says where they are from."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_train import command

import run
from ebm_jax import build, parallel
from ebm_jax.evaluators.common import Subject, sha256
from ebm_jax.io import data
from ebm_jax.io.workdir import read_config
from ebm_jax.types import BadInput


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert run.main(command(folder, model__num_classes=10, buffer__dtype="uint8", optim__ema_decay=0.0)) == 0
    return folder


def subject(workdir, **changes):
    config, mesh = read_config(workdir).copy_and_resolve_references().unlock(), parallel.device_mesh()
    config.eval.num_samples, config.eval.batch_size = 20, 16
    for key, value in changes.items():
        group, name = key.split("__")
        setattr(config[group], name, value)
    build.check_evaluation(config)
    found = build.restore_ensemble(workdir, config, mesh)
    return Subject(config, found.params, mesh, found.step, workdir)


def test_the_data_are_the_runs_own_with_their_labels_whatever_the_model_is_conditioned_on(workdir):
    for num_classes in (10, 1):
        of_run = subject(workdir)
        of_run.config.model.num_classes = num_classes
        for split in ("train", "test"):
            found, expected = of_run.data(split), data.digits(split)
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.labels, expected.labels)
            assert of_run.data(split) is found
            assert sha256(expected.images) in of_run.described(split)


def test_the_hash_of_a_set_changes_with_one_pixel_and_with_the_shape():
    images = data.digits("test").images
    changed = images.copy()
    changed[7, 3, 3, 0] ^= 1
    hashes = {sha256(images), sha256(changed), sha256(images.reshape(-1)), sha256(images[::-1])}
    assert len(hashes) == 4
    assert sha256(images[::-1][::-1]) == sha256(images)


def test_fresh_samples_are_chains_of_the_sampling_steps_whatever_the_size_of_a_batch(workdir):
    of_run = subject(workdir)
    images, labels, origin = of_run.samples
    assert origin == "fresh chains of 3 steps of langevin from uniform noise, the last 1 without noise"
    assert images.shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20, "every batch has a key of its own"
    noise = np.random.default_rng(0).uniform(size=images.shape).astype(np.float32)
    energy_fn = of_run.energy_fn(jnp.asarray(labels))
    assert energy_fn(jnp.asarray(images)).mean() < energy_fn(jnp.asarray(noise)).mean()
    np.testing.assert_array_equal(subject(workdir).samples.images, images)
    assert (subject(workdir, eval__seed=1).samples.images != images).any()


def test_samples_of_the_buffer_are_its_decoded_chains_with_their_labels_and_say_so(workdir):
    images, labels, origin = subject(workdir, eval__samples="buffer").samples
    assert origin.startswith("THE TRAINING BUFFER, not fresh chains: 20 of its 64 chains")
    config, mesh = read_config(workdir), parallel.device_mesh()
    buffer = build.restore(workdir, build.abstract_state(config, mesh)).state.buffer
    chains = np.asarray(buffer.images)[:, :64].reshape(64, 8, 8, 1)
    rows = [np.flatnonzero((chains == np.rint(255 * image)).all((1, 2, 3))) for image in images]
    assert np.abs(255 * images - np.rint(255 * images)).max() < 1e-4
    assert all(len(found) == 1 for found in rows)
    assert len({int(found[0]) for found in rows}) == 20
    np.testing.assert_array_equal(labels, np.asarray(buffer.labels)[np.concatenate(rows)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval__samples": "buffer", "eval__num_samples": 65},
            "more than the 64 chains of the training buffer; use at",
        ),
        ({"sample__ensemble": "turns"}, "sample.ensemble turns is for --mode=sample"),
        ({"sample__buffer_capacity": 64}, "sample.buffer_capacity 64 is for --mode=sample"),
        ({"sample__labels": "10"}, "label 10 is out of range"),
        ({"data__source": "density"}, "is a 2-D density"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_with_the_cure(workdir, changes, message):
    with pytest.raises(BadInput, match=message):
        subject(workdir, **changes)
