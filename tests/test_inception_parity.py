"""The FID's Inception against PyTorch's, on random weights that go through both formats of torch.save.

Needs its own environment with torch and torchvision: set EBM_JAX_TORCH_PYTHON to its interpreter, and give -m slow.
"""

import os
import subprocess

import jax
import numpy as np
import pytest
from conftest import ROOT

from ebm_jax.metrics import inception
from ebm_jax.storage import weights

PYTHON = "EBM_JAX_TORCH_PYTHON"
FEATURES = 1e-4  # absolute; features are about 0.4. The bound; float32 leaves 2e-6


@pytest.mark.slow
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no interpreter that has torch and torchvision")
@pytest.mark.parametrize("shape", [(4, 32, 32, 3), (2, 28, 28, 1), (2, 331, 310, 3)], ids=str)
def test_features_and_classes_are_those_of_torchvisions_blocks_with_the_fids_pooling(shape, tmp_path):
    images = np.random.default_rng(0).random(shape, np.float32)
    np.save(tmp_path / "images.npy", images)
    names = ("images.npy", "weights.pth", "legacy.pth", "out.npz")
    script = ROOT / "benchmarks" / "inception_torch.py"
    subprocess.run([os.environ[PYTHON], str(script), *(str(tmp_path / name) for name in names)], check=True)
    state, legacy = (weights.read(tmp_path / name, "").arrays for name in names[1:3])
    assert set(state) == set(legacy)
    assert all(np.array_equal(state[name], legacy[name]) for name in state)
    variables = {"params": inception.params_of(state)}
    features, probabilities = jax.jit(inception.Inception().apply)(variables, images)
    expected = np.load(tmp_path / "out.npz")
    print("features", np.abs(features - expected["features"]).max(), "of", expected["features"].std())
    print("classes", np.abs(probabilities - expected["probabilities"]).max(), "of", expected["probabilities"].max())
    np.testing.assert_allclose(features, expected["features"], rtol=0, atol=FEATURES)
    np.testing.assert_allclose(probabilities, expected["probabilities"], rtol=1e-3)
    assert expected["features"].std() > 0.1, "the case would say nothing"
