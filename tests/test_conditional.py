"""A conditional model of Fashion-MNIST, trained here, classifies, fills in halves and samples the class asked for."""

import subprocess
import sys

import pytest
from conftest import ROOT, user_environment

from benchmarks import conditional
from ebm_jax import open_run

BOUNDS = {  # a margin to docs/results.md; by chance 0.10
    "fashion_mnist_conditional": {"accuracy on 10000 test images": 0.55, "asked for by the classifier": 0.7},
    "fashion_mnist": {"asked for by the classifier": 0.7},  # a matching's energy hardly classifies
}
SEED = {"fashion_mnist_conditional": 0, "fashion_mnist": 1}  # the latter's recipe was chosen by runs of seed 0
WORSE = {"fashion_mnist_conditional": "mean image", "fashion_mnist": "nearest upper half"}  # guesses at a lower half


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("name", BOUNDS)
def test_a_conditional_model_knows_its_classes(tmp_path, shared_data, name):
    command = [sys.executable, "run.py", f"--config=configs/{name}.py", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.train.seed={SEED[name]}"]
    command += [f"--config.data.manual_dir={shared_data / 'fashion_mnist'}", f"--config.data.dir={tmp_path / 'tfds'}"]
    subprocess.run(command, cwd=ROOT, env=user_environment(), check=True)
    check_bounds(conditional.measure(open_run(tmp_path / "run"))[0], name)


def check_bounds(numbers, name):
    """A model that knows nothing would not reach the bounds."""

    def number(words):
        (found,) = [value for name, value in numbers.items() if name.endswith(words)]
        return found

    assert {words: number(words) for words, least in BOUNDS[name].items() if number(words) < least} == {}
    error = "mean squared error, "
    assert number(f"{error}energy, mean of 8 chains") < number(error + WORSE[name])
