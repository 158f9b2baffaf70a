"""A joint model of images and classes: Grathwohl et al. 2020, "Your classifier is secretly an energy based model"."""

import jax.numpy as jnp

from ebm_jax.methods.method import Asked, Comparison, Keys, Memory, Method, Model, answered
from ebm_jax.types import Batch, Energies, Metrics, PRNGKey, Scalar, Unlabelled


def joint(marginal: Method, unlabelled: Unlabelled, *, class_weight: float) -> Method:
    """-log q(x) by chains, and -log q(y | x) by cross-entropy, of one network with a logit -U(x, y) for each class.

    Since U(x) = -log Σ_y exp(-U(x, y)), the cross-entropy is the difference of two energies, -log q(y | x) = U(x, y) -
    U(x). With `class_weight` 1 the loss is -log q(x, y), as in the paper; chains follow U(x), and their
    labels stand for no class.

    Metrics: the marginal's; `class_loss`, the cross-entropy in nats; and `class_probability`, the mean of q(y | x).

    Args:
      marginal: the method that learns U(x), a comparison of which the first pair is the data.
      unlabelled: labels -> as many that stand for no class.
      class_weight: > 0, of the cross-entropy.
    """
    learn = marginal.comparison
    assert learn is not None, "its chains compare energies"

    def ask(keys: Keys, model: Model, batch: Batch, memory: Memory) -> Asked:
        asked = learn.ask(keys, model, batch._replace(labels=unlabelled(batch.labels)), memory)
        images, _ = asked.pairs[0]

        def loss(*energies: Energies) -> tuple[Scalar, Metrics]:
            value, metrics = asked.loss(*energies[:-1])
            surprise = energies[-1] - energies[0]
            found = {"class_loss": surprise.mean(), "class_probability": jnp.exp(-surprise).mean()}
            return value + class_weight * surprise.mean(), metrics | found

        return asked._replace(pairs=(*asked.pairs, (images, batch.labels)), loss=loss)

    def begin(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> Memory:
        return marginal.begin(key, model, batch._replace(labels=unlabelled(batch.labels)), memory)

    comparison = Comparison(ask, learn.streams)
    return marginal._replace(loss=answered(comparison), comparison=comparison, begin=begin)
