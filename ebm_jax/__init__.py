"""Energy-based models in JAX: train one with run.py, then use it from research code through these functions.

`ebm_jax.models.energy` has the algebra of energies, `ebm_jax.applications` the uses of a trained energy. A function
refuses what it cannot use with one line of `BadInput`, a ValueError.
"""

from ebm_jax.fitting import fit
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
from ebm_jax.types import BadInput

__all__ = [
    "BadInput",
    "TrainedRun",
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
