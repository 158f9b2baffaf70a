"""Task `super_resolve`: draw at full resolution images that were seen at a low one."""

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax.models import observations
from ebm_jax.tasks.common import Result, check_images, check_one_label_each, images_to_start_from
from ebm_jax.tasks.observed import linear, restored
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey


def check(config: Config) -> None:
    """Refuse a factor that does not divide the images.

    Raises:
      BadInput: with the factor and the images' size; or the run's data are no images.
    """
    check_images(config, "super_resolve")
    check_one_label_each(config)
    if any(size % config.sample.super_resolve.factor for size in config.data.shape[:2]):
        height, width, _ = config.data.shape
        raise BadInput(
            f"sample.super_resolve.factor {config.sample.super_resolve.factor} does not divide {height}x{width} "
            "pixels; use one that does"
        )


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Enlarge images from means of blocks; the error beside cubic interpolation."""
    images, labels = images_to_start_from(run)
    factor = run.config.sample.super_resolve.factor
    forward = observations.downsample(factor)
    observed = np.asarray(forward(jnp.asarray(images)))
    start = observed.repeat(factor, 1).repeat(factor, 2)
    cubic = np.clip(np.asarray(jax.image.resize(observed, images.shape, "cubic")), 0.0, 1.0)
    way, what = linear(run.config, forward, 1.0 / factor**2), f"{factor} times fewer pixels a side"
    return restored(run, key, images, labels, observed, start, way, what, ("cubic interpolation", cubic))
