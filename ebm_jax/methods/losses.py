"""Contrastive objectives of data's energies U(x+) and samples' energies U(x-), and the λ-term that bounds them.

Each objective is one device's share: its mean over devices is the objective of the whole batch, so the mean of the
devices' gradients is the gradient of the whole. Energies are [n]; there are as many samples as data.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ebm_jax.distributed import parallel
from ebm_jax.types import Energies, Scalar

Gather = Callable[[Energies], Energies]
Objective = Callable[[Energies, Energies], Scalar]


def contrastive_divergence(data: Energies, samples: Energies) -> Scalar:
    """mean U(x+) - mean U(x-); it has the gradient of the negative log-likelihood (release: cd)."""
    return data.mean() - samples.mean()


def softplus(data: Energies, samples: Energies) -> Scalar:
    """mean softplus(U(x+) - U(x-)), bounded below by 0 (release: softplus)."""
    return jax.nn.softplus(data - samples).mean()


def label_contrast(data: Energies, wrong: Energies, margin: float) -> Scalar:
    """margin · mean softplus((U(x+, y) - U(x+, y')) / margin), y the right labels, y' wrong ones, margin > 0.

    It stops pulling on an image as soon as the wrong label lies a few margins above the right one. For differences much
    smaller than the margin it is linear, and does not move the energies' constants, which differ from class to class.
    """
    return margin * jax.nn.softplus((data - wrong) / margin).mean()


def logsumexp(gather: Gather) -> Objective:
    """mean U(x+) - Σ w U(x-), w = softmax(-U(x-)) over the whole batch, held fixed (release: logsumexp).

    Args:
      gather: this device's energies -> all devices' energies; the identity on a single device.
    """

    def objective(data: Energies, samples: Energies) -> Scalar:
        everyone = gather(lax.stop_gradient(samples))
        log_mean = jax.nn.logsumexp(-everyone) - jnp.log(everyone.shape[0])
        weights = jnp.exp(-lax.stop_gradient(samples) - log_mean)  # mean 1 over the whole batch
        return data.mean() - (weights * samples).mean()

    return objective


def energy_l2_sum(data: Energies, samples: Energies) -> Scalar:
    """mean U(x+)² + mean U(x-)², the paper's term: with λ > 0 it bounds cd below by -1/(2λ)."""
    return jnp.square(data).mean() + jnp.square(samples).mean()


def energy_l2_difference(data: Energies, samples: Energies) -> Scalar:
    """mean U(x+)² - mean U(x-)²: cd gains it if U + λU² replaces U. It bounds nothing."""
    return jnp.square(data).mean() - jnp.square(samples).mean()


def regularised(objective: Objective, energy_l2: float, penalty: Objective) -> Objective:
    """objective + λ · penalty, with λ = `energy_l2` >= 0."""
    return lambda data, samples: objective(data, samples) + energy_l2 * penalty(data, samples)


OBJECTIVES = {"cd": contrastive_divergence, "softplus": softplus, "logsumexp": logsumexp(parallel.gather)}
PENALTIES = {"sum": energy_l2_sum, "difference": energy_l2_difference}
