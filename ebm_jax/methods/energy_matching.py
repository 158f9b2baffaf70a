"""Energy matching: Balcerak et al. 2025. A flow by optimal transport first, then a density where the flow ends."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from ebm_jax.methods import contrastive, pairing
from ebm_jax.methods.matching import matching
from ebm_jax.methods.method import Asked, Comparison, Keys, Limits, Memory, Method, Model, answered, no_memory
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import Stages, run_stages
from ebm_jax.types import Batch, Energies, Metrics, Scalar, Unlabelled

PAIRINGS: dict[str, Callable[[float], pairing.Pair | None]] = {
    "independent": lambda blur: None,
    "exact": lambda blur: pairing.exact,
    "sinkhorn": lambda blur: partial(pairing.sinkhorn, blur=blur),
}
"""From the blur to the pairing."""


def energy_matching(
    base: Base,
    limits: Limits,
    unlabelled: Unlabelled | None,
    *,
    pairing: str,
    blur: float,
    cutoff: float,
    class_dropout: float,
) -> Method:
    """Match the energy's gradient to the straight way from data to the noise that optimal transport pairs with it.

        x_t = t x + (1 - t) ε;   loss = w(t) · mean over pixels of (σ ∇U(x_t) - (ε - x) / σ)²

    This is the warm-up (algorithm 1). It makes U a potential of the flow from noise to data, of speed 1 all the way,
    and no log-density: -∇U is a mean velocity, not a score. Each device pairs its own share of the batch.

    Args:
      limits, unlabelled, class_dropout: of `matching`, whose metrics it has.
      pairing: a row of PAIRINGS; `independent` and `sinkhorn` are cheaper than the paper's `exact`.
      blur: of `pairing.sinkhorn`.
      cutoff: in [0, 1]; w is 1 below it and falls linearly to 0 at t = 1. The paper's images have 1: w = 1.
    """
    weight = None if cutoff == 1.0 else lambda t: jnp.minimum(1.0, (1.0 - t) / (1.0 - cutoff))
    pair = PAIRINGS[pairing](blur)
    return matching(
        base, limits, unlabelled, length=jnp.ones_like, class_dropout=class_dropout, pair=pair, weight=weight
    )


def fresh_contrast(
    base: Base, stages: Stages, start_stages: Stages, limits: Limits, *, data_share: float, trim: float, most: float
) -> Method:
    """Contrastive divergence of chains that start anew in every step: some at the data, the others at noise.

        loss = max(mean U(x+) - mean of the lowest U(x-), -most)

    This is what joins the warm-up (algorithm 2). The mean is over the share 1 - `trim` of the chains, and below -most
    the loss is flat, which is its brake. Chains go through `start_stages`, noise-free, and `stages`, and only end in
    the set of images. Metrics: those of contrastive divergence.

    Args:
      limits: from `contrastive.healthy`.
      data_share: in [0, 1], of the chains, rounded down; they start at the batch's own images.
      trim: in [0, 1), of the chains; those of the highest energies are left out.
      most: > 0, energy by which samples may come to lie above the data; inf: any.
    """

    def ask(keys: Keys, model: Model, batch: Batch, memory: Memory) -> Asked:
        n = len(batch.images)
        at_data, kept = int(data_share * n), n - int(trim * n)
        start = jnp.concatenate([batch.images[:at_data], base.sample(keys.draw, n - at_data)])
        energy_fn = model.energy(batch.labels)
        x, info = run_stages((*start_stages, *stages), keys.chain, base.project(start), energy_fn)
        x = base.finish(x)

        def loss(data: Energies, samples: Energies) -> tuple[Scalar, Metrics]:
            lowest = jnp.sort(samples)[:kept]
            metrics = {"energy_data": data.mean(), "energy_samples": samples.mean()}
            return jnp.maximum(data.mean() - lowest.mean(), -most), metrics

        pairs = ((batch.images, batch.labels), (x, batch.labels))
        metrics = {"chain_grad_norm": info.grad_norm.mean()} | contrastive.of_chains(start, x)
        return Asked(pairs, loss, memory, metrics)

    comparison = Comparison(ask, ("draw", "chain"))
    return Method(no_memory, answered(comparison), base, limits, derived=contrastive.gap, comparison=comparison)
