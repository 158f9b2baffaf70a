"""Markov chains: the one loop, the kernels that run in it, and the replay buffer they restart from."""

from collections.abc import Callable

from ebm_jax.sampling.descent import descent
from ebm_jax.sampling.heun import heun
from ebm_jax.sampling.hmc import hmc
from ebm_jax.sampling.kernel import Kernel
from ebm_jax.sampling.langevin import langevin
from ebm_jax.sampling.mala import mala

KERNELS: dict[str, Callable[..., Kernel]] = {
    "langevin": langevin,
    "heun": heun,
    "mala": mala,
    "hmc": hmc,
    "descent": descent,
}
"""Factories; each factory's signature names what it needs (`chains.make_kernel`)."""
