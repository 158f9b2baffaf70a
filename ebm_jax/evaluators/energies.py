"""Images of a run's splits as the network saw them in training, and the energies of many images."""

import jax.numpy as jnp
import numpy as np

from ebm_jax.data.memory import Dataset
from ebm_jax.evaluators.common import chosen_rows
from ebm_jax.labels import label_shape
from ebm_jax.random import dequantise
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import PRNGKey


def at_most(dataset: Dataset, number: int, seed: int) -> Dataset:
    """`number` random images of a set, or all if fewer, in their order."""
    rows = chosen_rows(len(dataset.images), number, seed)
    return dataset._replace(images=dataset.images[rows], labels=dataset.labels[rows])


def dequantised(key: PRNGKey, images: np.ndarray) -> np.ndarray:
    """uint8 images as training sees them, v/256 + U(0, 1/256): float32."""
    return np.asarray(dequantise(key, jnp.asarray(images)))


def energies_of(run: TrainedRun, images: np.ndarray, labels: np.ndarray, note: Note) -> np.ndarray:
    """U(x, y), float64 [n]; an unconditional model ignores the labels."""
    unconditional = run.config.model.num_classes == 1 and label_shape(run.config) is None
    labels = np.zeros(len(images), np.int32) if unconditional else labels
    size = run.config.eval.batch_size
    found = run.map(lambda energy_of, x, y: energy_of(x, y), images, labels, batch_size=size, note=note)
    return np.asarray(found, np.float64)
