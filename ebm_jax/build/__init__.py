"""From a configuration to the parts of a run: the only reader of the config below the verbs."""

from ebm_jax.build.checks import check, check_member, check_task, dry_run
from ebm_jax.build.choices import choice, example_labels, label_shape, other_runs, parse_labels, sample_labels
from ebm_jax.build.datasets import load_images, make_density, make_source, open_batches
from ebm_jax.build.limits import as_config, check_values
from ebm_jax.build.memory import check_memory, check_samples_fit
from ebm_jax.build.parts import (
    abstract_state,
    init_params,
    make_apply,
    make_kernel,
    make_stages,
    make_state,
    make_step,
    place_batch,
)
from ebm_jax.build.runs import (
    init_sampling_buffer,
    load,
    make_buffered_sample_fn,
    make_density_report,
    make_energy_fn,
    make_rounds,
    make_sample_fn,
    make_sampler,
    read_run,
    restore,
    restore_params,
    together,
)

__all__ = [
    "abstract_state",
    "as_config",
    "check",
    "check_member",
    "check_memory",
    "check_samples_fit",
    "check_task",
    "check_values",
    "choice",
    "dry_run",
    "example_labels",
    "init_params",
    "init_sampling_buffer",
    "label_shape",
    "load",
    "load_images",
    "make_apply",
    "make_buffered_sample_fn",
    "make_density",
    "make_density_report",
    "make_energy_fn",
    "make_kernel",
    "make_rounds",
    "make_sample_fn",
    "make_sampler",
    "make_source",
    "make_stages",
    "make_state",
    "make_step",
    "open_batches",
    "other_runs",
    "parse_labels",
    "place_batch",
    "read_run",
    "restore",
    "restore_params",
    "sample_labels",
    "together",
]
