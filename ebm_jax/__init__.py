"""Energy-based models in JAX: train one with run.py, then use it from research code through these four functions."""

from ebm_jax.build import init_params, load, make_energy_fn, make_sample_fn

__all__ = ["init_params", "load", "make_energy_fn", "make_sample_fn"]
