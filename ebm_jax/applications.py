"""What one trained energy does for a user; no loops of its own."""

import jax

from ebm_jax.sampling.kernel import Kernel, run
from ebm_jax.types import EnergyFn, Images, PRNGKey


def generate(
    key: PRNGKey, x: Images, energy_fn: EnergyFn, kernel: Kernel, quiet_kernel: Kernel, num_steps: int, quiet_steps: int
) -> Images:
    """Chains from `x`: `num_steps` steps of `kernel`, the last `quiet_steps` of them by `quiet_kernel`.

    With a noise-free `quiet_kernel` the images end on the energy's floor rather than a noise's width above it.
    """
    key_chain, key_quiet = jax.random.split(key)
    x, _ = run(kernel, key_chain, x, energy_fn, num_steps - quiet_steps)
    return run(quiet_kernel, key_quiet, x, energy_fn, quiet_steps)[0]
