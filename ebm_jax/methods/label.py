"""A contrast of data under right and wrong labels, which makes the energies of different classes comparable."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ebm_jax.methods import losses
from ebm_jax.methods.method import Asked, Comparison, Keys, Limits, Memory, Method, Model, answered, no_memory
from ebm_jax.sampling.base import Base
from ebm_jax.types import Batch, Energies, Labels, Metrics, PRNGKey, Scalar

WrongLabels = Callable[[PRNGKey, Labels, int], Labels]


def label_contrast(base: Base, *, wrong_labels: WrongLabels, num_classes: int, label_margin: float) -> Method:
    """`losses.label_contrast` of each image under its own and a random wrong class; the paper has no such term.

    Contrastive divergence never compares the classes of one image. So without this term a conditional model's energies
    hardly classify (docs/results.md). Alone it learns no law of the images.

    Args:
      wrong_labels: where the wrong labels come from, `of_any_class` or `of_the_batch`.
      label_margin: > 0, in units of energy.
    """

    def ask(keys: Keys, model: Model, batch: Batch, memory: Memory) -> Asked:
        del model
        wrong = wrong_labels(keys.wrong, batch.labels, num_classes)

        def loss(right: Energies, wrong: Energies) -> tuple[Scalar, Metrics]:
            return losses.label_contrast(right, wrong, label_margin), {"energy_wrong_label": wrong.mean()}

        return Asked(((batch.images, batch.labels), (batch.images, wrong)), loss, memory, {})

    comparison = Comparison(ask, ("wrong",))
    return Method(no_memory, answered(comparison), base, Limits(), comparison=comparison)


def of_any_class(key: PRNGKey, labels: Int[Array, " b"], num_classes: int) -> Int[Array, " b"]:
    """Another label for each, uniform among the other num_classes - 1."""
    return (labels + jax.random.randint(key, labels.shape, 1, num_classes, jnp.int32)) % num_classes


def of_the_batch(key: PRNGKey, labels: Int[Array, " b"], num_classes: int) -> Int[Array, " b"]:
    """Give each image another image's label: classes outside the batch are left alone.

    The two labels may be equal. Such a pair contrasts nothing: its two energies are equal, and so are their gradients.
    """
    del num_classes
    return jnp.roll(labels, jax.random.randint(key, (), 1, max(labels.shape[0], 2), jnp.int32))


WRONG_LABELS = {"any": of_any_class, "batch": of_the_batch}
