"""Task `inpaint`: fill in the unknown part of images."""

import jax.numpy as jnp
import numpy as np

from ebm_jax import applications, chains
from ebm_jax.kinds import shown
from ebm_jax.paths import expanded
from ebm_jax.report import style
from ebm_jax.report.pictures import Row
from ebm_jax.tasks.common import (
    Result,
    check_images,
    check_one_label_each,
    drawn,
    images_to_start_from,
    mean_of,
    rows_of,
    with_error,
)
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, Images, Labels, PRNGKey

MEAN_OF = 10_000  # images; the error of their mean adds a ten-thousandth of the pixels' variance to a squared error


def check(config: Config) -> None:
    """Refuse a mask that cannot be used.

    Raises:
      BadInput: as `known_pixels`; or the run's data are no images.
    """
    check_images(config, "inpaint")
    check_one_label_each(config)
    known_pixels(config)


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Fill in hidden pixels of images; the error beside that of the training set's mean."""
    images, labels = images_to_start_from(run)
    known = known_pixels(run.config)
    stages = chains.make_path(run.config, 0.0) or chains.make_stages(run.config)

    def make(key: PRNGKey, images: Images, labels: Labels) -> Images:
        return applications.inpaint(key, images, jnp.asarray(known), run.chain_energy_fn(labels), stages)

    unknown = np.broadcast_to(~known, images.shape)

    def error(guess: np.ndarray) -> float:
        return float(np.square(guess - images)[unknown].mean())

    several = drawn(run, make, key, images, labels)
    filled, mean = several[0], mean_of(several, error)
    line = f"filled in {unknown[0].mean():.0%} of {len(images)} images; mean squared error there {error(filled):.4f}"
    of_mean_image = error(mean_image(run))
    line += f"{mean.words}, of the training set's mean image {of_mean_image:.4f}"
    what = (
        f"{len(images)} images of {run.config.sample.split}, filled in where they are hidden ({unknown[0].mean():.0%})"
    )
    facts = "start: noise where hidden", "mean squared errors of all hidden pixels"
    title = run.title(what, style.steps(run.config), *facts)
    rows = {
        "original": Row(images, run.names_of(labels)),
        "known; hatched: hidden": Row(images, hidden=~np.asarray(known.all(2))),
        f"{with_error('filled in', error(filled))}; of the training set's mean image {of_mean_image:.4f}": filled,
        **mean.rows,
    }
    arrays = {"images": images, "labels": labels, "known": known, "filled": filled, **mean.arrays}
    return Result(arrays, rows_of(rows, title), line)


def mean_image(run: TrainedRun) -> np.ndarray:
    """The mean float32 [h, w, c] in [0, 1] of the run's training images, or of 10,000 random ones if there are more."""
    config = run.config

    def some(length: int) -> np.ndarray:
        return np.sort(np.random.default_rng(config.sample.seed).permutation(length)[:MEAN_OF])

    return (run.data(config.data.split, some).images.mean(0) / 255.0).astype(np.float32)


def known_pixels(config: Config) -> np.ndarray:
    """The mask [h, w, c] of `sample.inpaint.mask`, True where a pixel is known.

    Raises:
      BadInput: no mask has this name, the file cannot be read, is not boolean, has another shape, or hides nothing.
    """
    name, (h, w, c) = config.sample.inpaint.mask, config.data.shape
    y, x = np.mgrid[:h, :w]
    known = {
        "lower": y < h // 2,
        "upper": y >= h // 2,
        "left": x >= w // 2,
        "right": x < w // 2,
        "centre": (abs(2 * y + 1 - h) > h // 2) | (abs(2 * x + 1 - w) > w // 2),
        "random": np.random.default_rng(config.sample.seed).random((h, w)) < 0.5,
    }
    if name in known:
        return known[name][:, :, None].repeat(c, 2)
    if not name.endswith(".npy"):
        raise BadInput(
            f"sample.inpaint.mask {shown(name)} is unknown; use one of {', '.join(known)}, or a .npy file, True: known"
        )
    path = expanded(name, "sample.inpaint.mask")
    try:
        mask = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy, zipfile and the system each raise their own
        raise BadInput(
            f"sample.inpaint.mask {name} cannot be read ({error}); save a boolean array by numpy.save"
        ) from error
    if not isinstance(mask, np.ndarray):
        raise BadInput(f"sample.inpaint.mask {name} is no single array; save a boolean one by numpy.save")
    if mask.dtype != bool or mask.shape not in ((h, w), (h, w, 1), (h, w, c)):
        raise BadInput(
            f"sample.inpaint.mask {name} is {mask.dtype} {mask.shape}; it must be bool {(h, w)} or {(h, w, c)}"
        )
    if mask.all():
        raise BadInput(f"sample.inpaint.mask {name} leaves nothing to fill in; save False where a pixel is unknown")
    return mask.reshape(h, w, -1).repeat(c // mask.reshape(h, w, -1).shape[2], 2)
