"""Which samples of a class are kept: those whose class the model itself tells best."""

import numpy as np

from ebm_jax.types import Config


def num_drawn(config: Config) -> int:
    """The chains that are run for `sample.num_images` samples, of which `sample.keep` are kept."""
    return int(np.ceil(round(config.sample.num_images / config.sample.keep, 6)))


def margins(energies: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the best wrong class is worse than each sample's own, [n]; below 0: the model sees another class.

    Args:
      energies: [n, k], what classes are compared by, least for the likeliest.
      labels: int [n], each sample's own class.
    """
    rows = np.arange(len(labels))
    own = energies[rows, labels]
    others = energies.copy()
    others[rows, labels] = np.inf
    return others.min(1) - own


def surest(drawn: np.ndarray, margins: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The rows of the samples to keep, int [m], one for each label asked for, in the order of the labels.

    In each class they are the ones of the largest margins, in the order in which they were drawn.

    Args:
      drawn: int [n], the class of each sample; of each class at least as many as were asked for.
      margins: [n].
      asked: int [m], m <= n.
    """
    rows = np.empty(len(asked), int)
    for label in np.unique(asked):
        places, found = np.flatnonzero(asked == label), np.flatnonzero(drawn == label)
        best = np.argsort(-margins[found], kind="stable")[: len(places)]
        rows[places] = np.sort(found[best])
    return rows
