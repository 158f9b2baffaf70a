"""Are the run's samples copies of its training images?"""

from pathlib import Path

import numpy as np

from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.common import Evidence, Outcome, Value
from ebm_jax.metrics import neighbours
from ebm_jax.report import pictures
from ebm_jax.report.pictures import Row
from ebm_jax.trained import TrainedRun

PAIRS = 16  # in the picture
CLOSE = 0.01  # share of test images that lie closer to a training image than the threshold


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Whether samples are copies: distance to training and to unseen images."""
    config, samples = run.config, evidence.samples
    seen, unseen = (
        evidence.data[key].images.astype(np.float32) / 255.0 for key in ("eval.reference_split", "eval.split")
    )
    found = neighbours.memorisation(samples.images, seen, unseen)
    nearest = np.argsort(found.to_train, kind="stable")[:PAIRS]

    def draw(path: Path) -> None:
        rows = {
            "samples": Row(samples.images[nearest], run.names_of(samples.labels[nearest])),
            "the nearest training image": Row(seen[found.train_rows[nearest]], _distances(found.to_train[nearest])),
            "the nearest test image": Row(unseen[found.test_rows[nearest]], _distances(found.to_test[nearest])),
        }
        title = run.title(f"the {len(nearest)} samples nearest to a training image", samples.origin)
        pictures.write_rows(path, rows, title)

    return Outcome(
        {
            "share of samples nearer to train than to test": Value(found.share, found.standard_error),
            "that share if nothing is remembered": Value(found.expected),
            "share of samples closer to train than 99 % of test images": Value(found.copies(CLOSE)),
            "distance of samples to train, median": Value(float(np.median(found.to_train))),
            "distance of samples to test, median": Value(float(np.median(found.to_test))),
            "distance of test to train, median": Value(float(np.median(found.yardstick))),
        },
        {
            "memorisation": f"L2 over all pixels in [0, 1]; {len(samples.images)} samples ({samples.origin}), "
            f"{len(seen)} images of {config.eval.reference_split}, {len(unseen)} of {config.eval.split}; the "
            "error of the share is that of independent samples, and leaves out the chance in which images are in "
            "which set; a larger share than expected is memory only where the samples are about as near to train as "
            "test is",
        },
        {"memorisation": draw},
        (verdicts.copies(found.copies(CLOSE), CLOSE, len(samples.images)),),
    )


def _distances(far: np.ndarray) -> list[str]:
    return [f"L2 {distance:.2f}" for distance in far]
