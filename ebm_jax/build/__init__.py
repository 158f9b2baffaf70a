"""From a configuration to the parts of a run: the only reader of the config below the verbs."""

from ebm_jax.build.checks import check, dry_run
from ebm_jax.build.choices import choice, example_labels, label_shape
from ebm_jax.build.datasets import make_density, make_source, open_batches
from ebm_jax.build.parts import abstract_state, init_params, make_apply, make_stages, make_state, make_step, place_batch
from ebm_jax.build.runs import load, make_density_report, make_energy_fn, make_sample_fn, make_sampler, restore

__all__ = [
    "abstract_state",
    "check",
    "choice",
    "dry_run",
    "example_labels",
    "init_params",
    "label_shape",
    "load",
    "make_apply",
    "make_density",
    "make_density_report",
    "make_energy_fn",
    "make_sample_fn",
    "make_sampler",
    "make_source",
    "make_stages",
    "make_state",
    "make_step",
    "open_batches",
    "place_batch",
    "restore",
]
