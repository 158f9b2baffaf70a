"""What a class-conditional model of small gray images knows: classes, lower halves, and what its samples look like.

    python run.py --config=configs/fashion_mnist_conditional.py
    python -m benchmarks.conditional runs/fashion_mnist_conditional [--picture-folder docs]

Prints, on the test set: the accuracy of classification by energy; the mean squared error of lower halves filled in,
beside the mean of the training images of all and of the image's class, and the lower half of the training image
whose upper half is nearest; the share of class-conditional samples that a classifier trained on the training images
gives their class, beside its accuracy on the test images. The classifier is scikit-learn's logistic regression on the
pixels: it never saw the model.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

from ebm_jax import applications, build
from ebm_jax.io import data, report
from ebm_jax.models import energy
from ebm_jax.types import Config, Params

INPAINTED, SAMPLES, REFERENCE = 500, 500, 10_000  # images


def images_and_labels(config: Config, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images float32 [n, h, w, c] in [0, 1] of a split, and their labels."""
    other = config.copy_and_resolve_references().unlock()
    other.data.split = split
    dataset = data.load(build.make_source(other), 2)
    return dataset.images.astype(np.float32) / 255.0, dataset.labels


def accuracy(config: Config, params: Params, images: np.ndarray, labels: np.ndarray) -> float:
    """Of the class of lowest energy."""
    apply = energy.of_members(build.make_apply(config))
    energies_of = energy.class_energies(apply, params, config.model.num_classes)
    step = jax.jit(lambda images: applications.classify(energies_of, images)[0])
    predicted = [np.asarray(step(jnp.asarray(part))) for part in np.array_split(images, -(-len(images) // 500))]
    return float((np.concatenate(predicted) == labels).mean())


def baselines(
    images: np.ndarray, labels: np.ndarray, train: np.ndarray, train_labels: np.ndarray, known: np.ndarray
) -> dict[str, np.ndarray]:
    """Images [n, h, w, c] that each simple way fills in."""
    seen = np.where(known, images, 0.0)
    rows, _ = applications.nearest_neighbours(seen, np.where(known, train, 0.0), 1)
    by_class = np.stack([train[train_labels == label].mean(0) for label in range(train_labels.max() + 1)])
    filled = {
        "mean image": train.mean(0)[None],
        "mean of the class": by_class[labels],
        "nearest upper half": train[rows[:, 0]],
    }
    return {name: np.where(known, images, values) for name, values in filled.items()}


def main() -> None:
    """Print the numbers, and write the pictures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--picture-folder", default="")
    args = parser.parse_args()
    config, params = build.load(args.run)
    test, labels = images_and_labels(config, "test")
    train, train_labels = images_and_labels(config, "train")
    print(f"classification by energy: {accuracy(config, params, test, labels):.4f} of {len(test)}", flush=True)

    apply, stages = energy.of_members(build.make_apply(config)), build.make_stages(config)
    chosen = np.random.default_rng(0).permutation(len(test))[:INPAINTED]
    known = np.broadcast_to(np.arange(test.shape[1])[:, None, None] < test.shape[1] // 2, test.shape[1:])
    inpaint = jax.jit(
        lambda key, images, labels: applications.inpaint(
            key, images, jnp.asarray(known), energy.bind(apply, params, labels), stages
        )
    )
    filled = np.asarray(inpaint(jax.random.key(0), jnp.asarray(test[chosen]), jnp.asarray(labels[chosen])))
    ways = {"energy": filled} | baselines(test[chosen], labels[chosen], train, train_labels, known)
    for name, values in ways.items():
        print(
            f"lower halves, mean squared error, {name}: {np.square(values - test[chosen])[:, ~known].mean():.4f}",
            flush=True,
        )

    some = np.random.default_rng(1).permutation(len(train))[:REFERENCE]
    judge = LogisticRegression(max_iter=200).fit(train[some].reshape(REFERENCE, -1), train_labels[some])
    asked = jnp.arange(SAMPLES) % config.model.num_classes
    samples = np.asarray(jax.jit(build.make_sample_fn(config))(params, jax.random.key(1), labels=asked))
    agreed = (judge.predict(samples.reshape(SAMPLES, -1)) == np.asarray(asked)).mean()
    print(f"samples of the class asked for, by the classifier: {agreed:.4f} of {SAMPLES}")
    print(f"test images of their class, by the classifier: {judge.score(test.reshape(len(test), -1), labels):.4f}")
    if args.picture_folder:
        folder = Path(args.picture_folder)
        shown = {"original": test[chosen], "known": np.where(known, test[chosen], 0.5)} | ways
        report.write_rows(folder / "inpainting.png", {name: values[:16] for name, values in shown.items()})
        report.write_grid(folder / "conditional.png", samples[:100])


if __name__ == "__main__":
    main()
