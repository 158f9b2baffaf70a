"""The examples in docstrings run and print what they say; those whom people reach for first have one."""

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import ebm_jax
from ebm_jax import sampling

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(ebm_jax.__path__, "ebm_jax.") if "energies" not in module.name
)


def examples_of(name):
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder().find(module, name) if test.examples]


def with_examples(names):
    """The modules that have examples, told by their text, so that none is imported for nothing."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and ">>> " in Path(spec.origin).read_text():
            yield name


def check(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in examples_of(name):
        assert runner.run(example).failed == 0, example.name


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(with_examples(MODULES)))
def test_the_examples_of_the_module_print_what_they_say(name):
    check(name)


def test_samplers_and_algebra_and_the_door_have_examples():
    have = {test.name for name in with_examples(MODULES) for test in examples_of(name)}
    assert {f"{made.__module__}.{made.__name__}" for made in sampling.KERNELS.values()} <= have
    algebra = ("conjunction", "disjunction", "weighted", "negation", "tempered", "bridge", "clamped")
    assert {f"ebm_jax.models.energy.{name}" for name in algebra} <= have
    assert {"ebm_jax.opening.load", "ebm_jax.opening.open_run", "ebm_jax.opening.save", "ebm_jax.fitting.fit"} <= have
    assert {"ebm_jax.samplers.make_sample_fn", "ebm_jax.samplers.make_energy_fn"} <= have
    uses = ("generate", "inpaint", "restore", "transition", "compose", "classify", "film")
    assert {f"ebm_jax.applications.{name}" for name in uses} <= have
    assert {"ebm_jax.sampling.kernel.run", "ebm_jax.sampling.kernel.run_stages", "ebm_jax.models.energy.stack"} <= have
    assert {f"ebm_jax.metrics.diagnostics.{name}" for name in ("mixing", "autocorrelation")} <= have
    assert {"ebm_jax.methods.denoising.denoising", "ebm_jax.models.networks.SmallNet"} <= have
