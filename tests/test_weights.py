"""A file of weights is taken by its hash, in either format, and never unpickled."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ebm_jax.storage import weights
from ebm_jax.types import BadInput

STATE = Path(__file__).with_name("torch_state.pth")
DIGEST = hashlib.sha256(STATE.read_bytes()).hexdigest()


@pytest.mark.parametrize("expected", ["", DIGEST, DIGEST[:8], DIGEST[:8].upper()])
def test_hash_is_recorded_and_may_be_expected_by_its_beginning(expected):
    found = weights.read(STATE, expected)
    assert found.digest == DIGEST
    assert found.arrays["half"].tolist() == [0.5, -2.0]


def test_weights_of_the_wrong_hash_are_refused_in_one_line():
    with pytest.raises(BadInput, match=rf"^.*torch_state.pth has the SHA-256 {DIGEST}, not 6726825d; .*$"):
        weights.read(STATE, "6726825d")


def test_an_npz_of_the_same_names_is_read_and_one_of_objects_is_not(tmp_path):
    np.savez(tmp_path / "state.npz", **{"fc.weight": np.eye(2)})
    assert weights.read(tmp_path / "state.npz", "").arrays["fc.weight"].tolist() == [[1, 0], [0, 1]]
    np.savez(tmp_path / "objects.npz", weight=np.array([None]))
    with pytest.raises(BadInput, match=r"^.*objects.npz is no .npz file of plain numbers.*$"):
        weights.read(tmp_path / "objects.npz", "")
    with pytest.raises(BadInput, match=r"^.*absent.npz cannot be read.*$"):
        weights.read(tmp_path / "absent.npz", "")
