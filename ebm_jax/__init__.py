"""Energy-based models in JAX: train one with run.py, then use it from research code through these functions.

`ebm_jax.models.energy` has the whole algebra of energies, `ebm_jax.applications` the uses of a trained energy,
`ebm_jax.methods` the ways to learn one, `ebm_jax.networks` the networks, `ebm_jax.diagnostics` measures of chains. A
function refuses what it cannot use with one line of `BadInput`, a ValueError.

A name is imported when it is first used: JAX takes seconds, for which a wrong word on a command line need not wait.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ebm_jax.version import VERSION

if TYPE_CHECKING:
    from ebm_jax.fitting import fit
    from ebm_jax.given import BadInput
    from ebm_jax.models.energy import conjunction, disjunction, negation, stack, tempered, weighted
    from ebm_jax.noise import hashed
    from ebm_jax.opening import load, open_run, save
    from ebm_jax.samplers import (
        init_params,
        init_sampling_buffer,
        make_buffered_sample_fn,
        make_energy_fn,
        make_sample_fn,
        make_stages,
    )
    from ebm_jax.sampling import descent, heun, hmc, langevin, mala
    from ebm_jax.sampling.kernel import run, run_stages, unbounded, unit_box
    from ebm_jax.trained import TrainedRun

__version__ = VERSION
__all__ = [
    "BadInput",
    "TrainedRun",
    "__version__",
    "conjunction",
    "descent",
    "disjunction",
    "fit",
    "hashed",
    "heun",
    "hmc",
    "init_params",
    "init_sampling_buffer",
    "langevin",
    "load",
    "make_buffered_sample_fn",
    "make_energy_fn",
    "make_sample_fn",
    "make_stages",
    "mala",
    "negation",
    "open_run",
    "run",
    "run_stages",
    "save",
    "stack",
    "tempered",
    "unbounded",
    "unit_box",
    "weighted",
]

_HOMES = {  # the module that defines each name
    "BadInput": "given",
    "TrainedRun": "trained",
    "conjunction": "models.energy",
    "descent": "sampling",
    "disjunction": "models.energy",
    "fit": "fitting",
    "hashed": "noise",
    "heun": "sampling",
    "hmc": "sampling",
    "init_params": "samplers",
    "init_sampling_buffer": "samplers",
    "langevin": "sampling",
    "load": "opening",
    "make_buffered_sample_fn": "samplers",
    "make_energy_fn": "samplers",
    "make_sample_fn": "samplers",
    "make_stages": "samplers",
    "mala": "sampling",
    "negation": "models.energy",
    "open_run": "opening",
    "run": "sampling.kernel",
    "run_stages": "sampling.kernel",
    "save": "opening",
    "stack": "models.energy",
    "tempered": "models.energy",
    "unbounded": "sampling.kernel",
    "unit_box": "sampling.kernel",
    "weighted": "models.energy",
}
_MODULES = {  # what to reach from here without another import; every other module of the package has its own name
    "applications": "applications",
    "diagnostics": "metrics.diagnostics",
    "methods": "methods",
    "networks": "models.networks",
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, or a module."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"ebm_jax.{_HOMES[name]}"), name)
        return globals().setdefault(name, value)
    module = _MODULES.get(name, name)
    if not name.startswith("_") and importlib.util.find_spec(f"ebm_jax.{module}"):
        return importlib.import_module(f"ebm_jax.{module}")
    raise AttributeError(f"module 'ebm_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
