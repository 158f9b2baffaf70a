"""A conditional model of Fashion-MNIST, trained here, classifies, fills in halves and samples the class asked for."""

import subprocess
import sys

import pytest
from conftest import ROOT, user_environment

from benchmarks import conditional
from ebm_jax import open_run


@pytest.mark.slow
@pytest.mark.optimised
def test_a_conditional_model_knows_its_classes(tmp_path, shared_data):
    command = [
        sys.executable,
        "run.py",
        "--config=configs/fashion_mnist_conditional.py",
        f"--workdir={tmp_path / 'run'}",
    ]
    command += [f"--config.data.manual_dir={shared_data / 'fashion_mnist'}", f"--config.data.dir={tmp_path / 'tfds'}"]
    subprocess.run(command, cwd=ROOT, env=user_environment(), check=True)
    check_bounds(conditional.measure(open_run(tmp_path / "run"))[0])


def check_bounds(numbers):
    """The bounds leave a margin to docs/results.md, and a model that knows nothing would not reach them."""

    def number(words):
        (found,) = [value for name, value in numbers.items() if name.endswith(words)]
        return found

    assert number("accuracy on 10000 test images") > 0.55, "0.10 by chance"
    assert number("of the class asked for by the classifier") > 0.7, "0.10 by chance"
    assert number("mean squared error, energy, mean of 8 chains") < number("mean squared error, mean image")
