"""Tests of a class-conditional model of small gray images: classes, lower halves, and the look of its samples.

    python run.py --config=configs/fashion_mnist_conditional.py
    python -m benchmarks.conditional runs/fashion_mnist_conditional [--picture-folder FOLDER]

Prints three numbers of the test set, with their baselines:

- the accuracy of classification by energy;
- the mean squared error of lower halves filled in, by one chain each and by the mean of several. Baselines are the mean
  training image, the mean of the image's class, and the lower half of the training image with the nearest upper half;
- the share of class-conditional samples that a classifier gives their class, beside its accuracy on test images. The
  classifier, scikit-learn's logistic regression on pixels, was trained on the training images and never saw the model.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

from ebm_jax import TrainedRun, applications, assemble, chains, open_run, samplers
from ebm_jax.data import memory, sources
from ebm_jax.metrics import neighbours
from ebm_jax.models import energy
from ebm_jax.report import pictures
from ebm_jax.types import Config, Params, PRNGKey

INPAINTED, SAMPLES, REFERENCE = 500, 500, 10_000  # images
CHAINS = 8  # their mean is a guess at the hidden half; a sample has twice the squared error of a good guess


def images_and_labels(config: Config, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images float32 [n, h, w, c] in [0, 1] of a split, and their labels."""
    other = config.copy_and_resolve_references().unlock()
    other.data.split = split
    dataset = memory.load(sources.make_source(other), 2)
    return dataset.images.astype(np.float32) / 255.0, dataset.labels


def accuracy(config: Config, params: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images with the lowest energy under their own label."""
    apply = energy.of_members(assemble.make_apply(config))
    energies_of = energy.class_energies(apply, params, config.model.num_classes)
    step = jax.jit(lambda images: applications.classify(energies_of, images)[0])
    predicted = [np.asarray(step(jnp.asarray(part))) for part in np.array_split(images, -(-len(images) // 500))]
    return float((np.concatenate(predicted) == labels).mean())


def baselines(
    images: np.ndarray, labels: np.ndarray, train: np.ndarray, train_labels: np.ndarray, known: np.ndarray
) -> dict[str, np.ndarray]:
    """Images [n, h, w, c] that each simple way fills in."""
    seen = np.where(known, images, 0.0)
    rows, _ = neighbours.nearest_neighbours(seen, np.where(known, train, 0.0), 1)
    by_class = np.stack([train[train_labels == label].mean(0) for label in range(train_labels.max() + 1)])
    filled = {
        "mean image": train.mean(0)[None],
        "mean of the class": by_class[labels],
        "nearest upper half": train[rows[:, 0]],
    }
    return {name: np.where(known, images, values) for name, values in filled.items()}


def inpainting(run: TrainedRun, images: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The images [CHAINS, n, h, w, c]; each chain draws the unknown pixels anew under the energy of the class."""
    stages = chains.make_path(run.config, 0.0) or chains.make_stages(run.config)

    @jax.jit
    def fill(key: PRNGKey, images: jax.Array, labels: jax.Array) -> jax.Array:
        return applications.inpaint(key, images, jnp.asarray(known), run.chain_energy_fn(labels), stages)

    keys = jax.random.split(jax.random.key(0), CHAINS)
    return np.stack([np.asarray(fill(key, jnp.asarray(images), jnp.asarray(labels))) for key in keys])


def measure(run: TrainedRun) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """The numbers by name; images as they were, as known, and as filled in each way; samples of each class."""
    config, params = run.config, run.params
    test, labels = images_and_labels(config, "test")
    train, train_labels = images_and_labels(config, "train")
    numbers = {f"classification by energy, accuracy on {len(test)} test images": accuracy(config, params, test, labels)}

    chosen = np.random.default_rng(0).permutation(len(test))[:INPAINTED]
    images = test[chosen]
    known = np.broadcast_to(np.arange(test.shape[1])[:, None, None] < test.shape[1] // 2, test.shape[1:])
    filled = inpainting(run, images, labels[chosen], known)
    ways = {"energy": filled[0], f"energy, mean of {CHAINS} chains": filled.mean(0)}
    ways |= baselines(images, labels[chosen], train, train_labels, known)
    for name, values in ways.items():
        error = np.square(values - images)[:, ~known].mean()
        numbers[f"lower halves of {INPAINTED} test images, mean squared error, {name}"] = float(error)

    some = np.random.default_rng(1).permutation(len(train))[:REFERENCE]
    judge = LogisticRegression(C=0.01, max_iter=500).fit(train[some].reshape(REFERENCE, -1), train_labels[some])
    asked = jnp.arange(SAMPLES) % config.model.num_classes
    samples = np.asarray(jax.jit(samplers.make_sample_fn(config))(params, jax.random.key(1), labels=asked))
    agreed = judge.predict(samples.reshape(SAMPLES, -1)) == np.asarray(asked)
    numbers[f"of {SAMPLES} samples, of the class asked for by the classifier"] = float(agreed.mean())
    numbers["of the test images, of their class by the classifier"] = judge.score(test.reshape(len(test), -1), labels)
    return numbers, {"original": images, "known": np.where(known, images, 0.5)} | ways, samples


def main() -> None:
    """Print the numbers, and write the pictures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--picture-folder", default="")
    args = parser.parse_args()
    numbers, rows, samples = measure(open_run(args.run))
    for name, number in numbers.items():
        print(f"{name}: {number:.4f}")
    if args.picture_folder:
        folder = Path(args.picture_folder)
        pictures.write_rows(folder / "inpainting.png", {name: images[:16] for name, images in rows.items()})
        pictures.write_grid(folder / "conditional.png", samples[:100])


if __name__ == "__main__":
    main()
