"""Energy-based models in JAX: train one with run.py, then use it from research code through these functions.

`ebm_jax.models.energy` has the algebra of energies, `ebm_jax.applications` the uses of a trained energy. A function
refuses what it cannot use with one line of `BadInput`, a ValueError.

A name is imported when it is first used: JAX takes seconds, for which a wrong word on a command line need not wait.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from ebm_jax.version import VERSION

if TYPE_CHECKING:
    from ebm_jax.fitting import fit
    from ebm_jax.given import BadInput
    from ebm_jax.models.energy import stack
    from ebm_jax.samplers import (
        init_params,
        init_sampling_buffer,
        make_buffered_sample_fn,
        make_energy_fn,
        make_sample_fn,
        make_stages,
    )
    from ebm_jax.trained import TrainedRun, load, open_run

__version__ = VERSION
__all__ = [
    "BadInput",
    "TrainedRun",
    "__version__",
    "fit",
    "init_params",
    "init_sampling_buffer",
    "load",
    "make_buffered_sample_fn",
    "make_energy_fn",
    "make_sample_fn",
    "make_stages",
    "open_run",
    "stack",
]

_HOMES = {  # the module that defines each name
    "BadInput": "given",
    "TrainedRun": "trained",
    "fit": "fitting",
    "init_params": "samplers",
    "init_sampling_buffer": "samplers",
    "load": "trained",
    "make_buffered_sample_fn": "samplers",
    "make_energy_fn": "samplers",
    "make_sample_fn": "samplers",
    "make_stages": "samplers",
    "open_run": "trained",
    "stack": "models.energy",
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, or a module of the package."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"ebm_jax.{_HOMES[name]}"), name)
        return globals().setdefault(name, value)
    if not name.startswith("_") and importlib.util.find_spec(f"ebm_jax.{name}"):
        return importlib.import_module(f"ebm_jax.{name}")
    raise AttributeError(f"module 'ebm_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
