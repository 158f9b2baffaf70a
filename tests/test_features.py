"""One pass over images gives the sums that all features at once would, in bounded memory, on any number of devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.metrics import features, moments, score
from ebm_jax.metrics.frechet import frechet_distance, gaussian
from ebm_jax.types import BadInput

IMAGES = memory.digits("test").images  # 359 images: no batch or block divides that


def apply(params, images):
    flat = images.reshape(images.shape[0], -1) @ params
    return flat, jax.nn.softmax(flat[:, :4])


PARAMS = jnp.asarray(np.random.default_rng(0).normal(size=(64, 6)), jnp.float32)


def make(devices=8, batch_size=50):
    return features.make_feature_fn(apply, PARAMS, parallel.device_mesh(jax.devices()[:devices]), batch_size)


@pytest.mark.parametrize(("devices", "batch_size"), [(8, 50), (1, 359), (3, 7)])
def test_features_are_those_of_all_images_at_once_on_any_devices_in_any_batches(devices, batch_size):
    found, probabilities = make(devices, batch_size)(IMAGES)
    expected, expected_probabilities = apply(PARAMS, jnp.asarray(IMAGES / 255, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, expected_probabilities, rtol=1e-4, atol=1e-6)


def test_summary_is_of_groups_of_consecutive_images_and_keeps_evenly_spaced_ones(monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 25)
    summary = features.summarise(make(), IMAGES, num_groups=3, keep=10)
    every, probabilities = make()(IMAGES)
    assert summary.count == 359
    for rows, group, classes in zip(np.array_split(np.arange(359), 3), summary.moments, summary.classes, strict=True):
        np.testing.assert_allclose(group.mean, moments.of(every[rows]).mean, rtol=1e-9)
        np.testing.assert_allclose(group.scatter, moments.of(every[rows]).scatter, rtol=1e-9, atol=1e-9)
        assert score.inception_score(classes) == pytest.approx(score.inception_score(score.of(probabilities[rows])))
    np.testing.assert_array_equal(summary.kept, every[np.linspace(0, 358, 10).round().astype(int)])


def test_a_shift_by_one_pixel_in_the_preprocessing_is_caught():
    def law(images):
        return gaussian(features.summarise(make(), images, num_groups=1, keep=0).moments[0])

    same = frechet_distance(law(IMAGES), law(IMAGES.copy()))
    shifted = frechet_distance(law(IMAGES), law(np.roll(IMAGES, 1, 2)))
    halves = frechet_distance(law(IMAGES[::2]), law(IMAGES[1::2]))
    assert same < 1e-6
    assert shifted > 3 * halves > 0


def test_fewer_images_than_groups_are_refused_in_one_line():
    with pytest.raises(BadInput, match=r"^2 images make no 3 groups.*$"):
        features.summarise(make(), IMAGES[:2], num_groups=3, keep=0)


MEASURE = """
import resource, sys
import numpy as np
from ebm_jax.metrics import features, frechet

rng = np.random.default_rng(0)
def feature_fn(images):
    return rng.normal(size=(len(images), 2048)).astype(np.float32), np.full((len(images), 1008), 1 / 1008, np.float32)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

images = np.broadcast_to(np.uint8(0), (int(sys.argv[1]), 1, 1, 1))
features.summarise(feature_fn, images[:2048], num_groups=1, keep=100)
before = peak()
summary = features.summarise(feature_fn, images, num_groups=1, keep=100)
assert summary.count == len(images)
print(before, peak())
"""


@pytest.mark.slow
def test_memory_stays_flat_over_50_000_samples_of_2048_features():
    command = [sys.executable, "-c", MEASURE, "50000"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    print(f"peak memory {before:.0f} MiB after 2,048 samples, {after:.0f} MiB after 50,000")
    assert after - before < 60, "MiB; 50,000 samples of float32 features are 391"
