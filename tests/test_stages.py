"""What a whole chain does: as many steps as the config says, the last of them without noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

from configs import density2d
from ebm_jax import chains
from ebm_jax.sampling.kernel import trace_stages

STEPS, CHAINS = 5, 16
QUICK = {"xla_backend_optimization_level": 0}  # for programs run once: half the time to compile them
KERNELS = {
    "langevin": {"chain__kernel": "langevin", "chain__langevin__tied": False},
    "tied langevin": {"chain__kernel": "langevin", "chain__langevin__tied": True},
    "mala": {"chain__kernel": "mala"},
    "hmc": {"chain__kernel": "hmc", "chain__hmc__num_leaps": 2, "chain__step_size": 0.01},
}


def slope(x):
    """U of gradient one everywhere: every noise-free step moves all chains down by the same length."""
    return x.sum(1)


CASES = [("chain", kernel, quiet, 0.0) for kernel in KERNELS for quiet in (0, 1, STEPS)]
CASES += [("sample", kernel, quiet, 0.0) for kernel in ("langevin", "mala") for quiet in (0, 1, STEPS)]
CASES += [(group, kernel, 2, 4.0) for group in ("chain", "sample") for kernel in ("tied langevin", "mala")]


def moves_of(config, group):
    """How each of the chain's steps moved the chains: [steps, chains · coordinates]."""
    start, stages = jnp.full((CHAINS, 2), 0.5), chains.make_stages(config, group)
    trace = jax.jit(lambda key: trace_stages(stages, key, start, slope, 1), compiler_options=QUICK)
    frames = trace(jax.random.key(0))
    return np.diff(np.concatenate([start[None], frames]), axis=0).reshape(len(frames), -1)


@pytest.mark.parametrize(("group", "kernel", "quiet_steps", "anneal_from"), CASES)
def test_of_the_steps_of_a_chain_exactly_the_last_quiet_ones_are_free_of_noise(group, kernel, quiet_steps, anneal_from):
    values = {"num_steps": STEPS, "quiet_steps": quiet_steps, "anneal_from": anneal_from}
    of_others = {"num_steps": STEPS + 2, "quiet_steps": 3, "anneal_from": 0.0}
    groups = {"chain": of_others, "sample": of_others} | {group: values}
    changes = {f"{name}__{key}": value for name, own in groups.items() for key, value in own.items()}
    moves = moves_of(changed(density2d.get_config(), **KERNELS[kernel], **changes), group)
    rounding = np.finfo(np.float32).eps  # of places below 1
    noisy = np.ptp(moves, axis=1) > 4 * rounding
    assert noisy.tolist() == [True] * (STEPS - quiet_steps) + [False] * quiet_steps
    assert (moves[~noisy] < -10 * rounding).all(), "they descend"


def test_a_quiet_step_of_hmc_is_as_long_as_one_gradient_of_a_leap():
    changes = {"chain__num_steps": 3, "chain__quiet_steps": 2, "chain__grad_clip": np.inf}
    moves = moves_of(changed(density2d.get_config(), **KERNELS["hmc"] | changes), "chain")
    leap = 0.01  # a leap from rest ends at x - ε²/2 ∇U
    np.testing.assert_allclose(moves[1:], -(leap**2) / 2, rtol=2e-3)  # float32 places below 1, and moves of 5e-5
