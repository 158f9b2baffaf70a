"""Improved contrastive divergence: Du, Li, Tenenbaum & Mordatch 2021, arXiv 2012.01316."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_jax.methods.method import Asked, Comparison, Keys, Memory, Method, Model, answered
from ebm_jax.sampling import replay
from ebm_jax.sampling.kernel import energy_and_grad
from ebm_jax.types import Batch, Images, Labels, Metrics, Scalar

TINY = 1e-12  # so that a chain that meets a stored image has a finite logarithm


def improved(
    marginal: Method,
    *,
    kl_weight: float,
    entropy_weight: float,
    neighbours: int,
    step_size: float,
    grad_clip: float,
) -> Method:
    """Contrastive divergence with the term it neglects: how the parameters move the samples themselves.

        loss = contrastive + kl_weight · mean U_sg(x') - entropy_weight · mean log min_j |x' - b_j|
        x' = project(x - s ∇U(x))

    x are the chains' ends, and gradients flow into the parameters through their last step alone: the
    first term is the energy of the moved chains under weights that are held fixed (sg), the second their entropy,
    estimated by the nearest of some stored chains b. The release differentiates the chain's own last step
    (improved_contrastive_divergence train.py); here it is one more, without noise.

    Metrics: the marginal's; `kl_energy`, mean U_sg(x'), and `log_distance`, mean log min_j |x' - b_j|.

    Args:
      marginal: contrastive divergence with a replay buffer.
      kl_weight, entropy_weight: >= 0; 1 and 0.3 in the release.
      neighbours: stored chains that distances are taken to, 1 or more, at most the device's share of the buffer.
      step_size, grad_clip: of the chain.
    """
    learn = marginal.comparison
    assert learn is not None, "its chains compare energies"

    def ask(keys: Keys, model: Model, batch: Batch, memory: Memory) -> Asked:
        asked = learn.ask(keys, model, batch, memory)
        _, (x, labels) = asked.pairs
        slots = replay.distinct_slots(keys.wrong, memory.images.shape[0], min(neighbours, memory.images.shape[0]))
        stored = replay.as_images(memory.images[slots], x.shape[1:])

        def beside(model: Model) -> tuple[Scalar, Metrics]:
            end = last_step(model, x, labels)
            energy = model.frozen().energy(labels)(end).mean()
            distance = log_distance(end, stored).mean()
            return kl_weight * energy - entropy_weight * distance, {"kl_energy": energy, "log_distance": distance}

        return asked._replace(beside=beside)

    def last_step(model: Model, x: Images, labels: Labels) -> Images:
        _, grad = energy_and_grad(model.energy(labels), x)
        return marginal.base.project(x - step_size * jnp.clip(grad, -grad_clip, grad_clip))

    comparison = Comparison(ask, (*learn.streams, "wrong"))
    return marginal._replace(loss=answered(comparison), comparison=comparison)


def log_distance(x: Images, others: Float[Array, "n *event"]) -> Float[Array, " b"]:
    """log of the L2 distance of each image of x [b, *event] to the nearest of others [n, *event], [b]."""
    rows, columns = (jnp.reshape(one, (len(one), -1)) for one in (x, others))
    squares = jnp.square(rows[:, None] - columns[None]).sum(-1)
    return 0.5 * jnp.log(squares.min(1) + TINY)
