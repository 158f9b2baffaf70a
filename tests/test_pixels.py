"""Images in [0, 1] as bytes, against the bytes that training made them of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from ebm_jax import random
from ebm_jax.data import memory
from ebm_jax.evaluators import classifier, features
from ebm_jax.pixels import quantised
from ebm_jax.report import pictures

LEVELS = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("data", [memory.digits("test").images, np.broadcast_to(LEVELS, (400, 256))])
def test_a_perfect_model_of_what_training_sees_has_the_data_s_own_bytes(data):
    """Float32 rounds (v + u)/256 up to (v + 1)/256 for u within 2^-17 of 1, so of many values a few may differ by 1."""
    samples = np.asarray(random.dequantise(jax.random.key(0), jnp.asarray(data)))
    wrong = quantised(samples) != data
    assert wrong.mean() <= 2**-16 + 5 * np.sqrt(2**-16 / wrong.size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_divided_by_255_come_back_and_values_beyond_the_box_are_its_ends(dtype):
    np.testing.assert_array_equal(quantised((LEVELS / 255).astype(dtype)), LEVELS)
    np.testing.assert_array_equal(quantised(np.array([-0.1, 0.0, 0.9999 / 256, 1.0, 1.1], dtype)), [0, 0, 0, 255, 255])


def test_pictures_and_metrics_use_this_function_and_nothing_else_rounds():
    assert features.quantised is classifier.quantised is pictures.quantised is quantised
    rounding = [
        path.relative_to(ROOT / "ebm_jax").as_posix()
        for path in sorted((ROOT / "ebm_jax").rglob("*.py"))
        if "astype(np.uint8)" in path.read_text()
    ]
    assert rounding == [
        "arrays.py",  # in the words of a message
        "data/decode.py",
        "data/levels.py",
        "data/memory.py",
        "data/toys.py",
        "metrics/outliers.py",
        "pixels.py",
    ]
