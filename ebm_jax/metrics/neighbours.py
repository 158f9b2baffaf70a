"""Whether samples are copies: distances to the nearest training images, beside distances to unseen images."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ebm_jax.types import BadInput


def nearest_neighbours(
    images: np.ndarray, reference: np.ndarray, k: int
) -> tuple[Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
    """The `k` reference images nearest to each image, to see that samples are no copies (paper, nearest neighbours).

    scikit-learn searches in blocks on the host; beside the flattened images it takes a few MB, however many there are.

    Args:
      images: [b, *event]; reference: [n, *event], such as the training set, n >= k >= 1, on the same scale.

    Returns:
      rows of `reference` [b, k], nearest first, and their L2 distances over all pixels [b, k].

    Raises:
      BadInput: the images differ in shape; k is below 1 or above n.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise BadInput(f"images {images.shape[1:]} and reference {reference.shape[1:]} differ in shape; resize one")
    if not 1 <= k <= len(reference):
        raise BadInput(f"{k} neighbours of {len(reference)} reference images; ask for 1 to {len(reference)}")
    from sklearn.neighbors import NearestNeighbors  # slow to import, and of use to few runs

    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(_flat(reference))
    distances, rows = search.kneighbors(_flat(images))
    return rows, distances


class Memorisation(NamedTuple):
    """How near samples, and images that no model saw, are to the training images."""

    to_train: Float[np.ndarray, " samples"]
    """L2 distance of each sample to the nearest training image."""
    to_test: Float[np.ndarray, " samples"]
    """L2 distance of each sample to the nearest test image."""
    train_rows: Int[np.ndarray, " samples"]
    test_rows: Int[np.ndarray, " samples"]
    yardstick: Float[np.ndarray, " tests"]
    """L2 distance of each test image to the nearest training image."""
    share: float
    """Share of the samples that are nearer to the training set than to the test set."""
    expected: float
    """The share for a model that learnt only the law: n_train / (n_train + n_test)."""

    @property
    def standard_error(self) -> float:
        """The standard error of the share, if it is the expected one and samples are independent."""
        return math.sqrt(self.expected * (1 - self.expected) / len(self.to_train))

    def copies(self, share: float) -> float:
        """The share of samples nearer to a training image than all but this share of the test images."""
        return float((self.to_train < np.quantile(self.yardstick, share)).mean())


def memorisation(samples: np.ndarray, train: np.ndarray, test: np.ndarray) -> Memorisation:
    """Samples [n, *event] against the model's training images [m, *event] and unseen test images of the same law.

    To samples that know the law and not the training set, training and test images are alike: the nearest of all is a
    training image with probability m / (m + number of test images). A larger share is a sign of memory only if samples
    differ from one another, and are as near to images as test images are. Samples that are far from all images, or all
    alike, share one neighbour, and chance decides which set it is in. A tie counts as nearer to the test set. Compare
    Meehan, Chaudhuri & Dasgupta 2020, "A non-parametric test to detect data-copying in generative models".

    Raises:
      BadInput: the images differ in shape, or there are none.
    """
    for name, images in {"samples": samples, "training images": train, "test images": test}.items():
        if len(images) == 0:
            raise BadInput(f"0 {name} have no neighbours; give at least 1")
    train_rows, to_train = nearest_neighbours(samples, train, 1)
    test_rows, to_test = nearest_neighbours(samples, test, 1)
    _, yardstick = nearest_neighbours(test, train, 1)
    return Memorisation(
        to_train[:, 0],
        to_test[:, 0],
        train_rows[:, 0],
        test_rows[:, 0],
        yardstick[:, 0],
        float((to_train < to_test).mean()),
        len(train) / (len(train) + len(test)),
    )


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(images), -1)
