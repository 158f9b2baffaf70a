"""Task `colourise`: draw in colour images that were seen in gray."""

import jax.numpy as jnp
import numpy as np

from ebm_jax.models import observations
from ebm_jax.tasks.common import Result, check_images, check_one_label_each, images_to_start_from
from ebm_jax.tasks.observed import linear, restored
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey


def check(config: Config) -> None:
    """Refuse images without colours.

    Raises:
      BadInput: with the data's name, if they have one channel or are no images.
    """
    check_images(config, "colourise")
    check_one_label_each(config)
    if config.data.shape[2] == 1:
        raise BadInput(f"sample.task colourise needs images of 3 channels; {config.data.name} has 1")


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Colour images from the means of their channels; the errors before and after."""
    images, labels = images_to_start_from(run)
    channels = images.shape[3]
    observed = np.asarray(observations.gray(jnp.asarray(images)))
    way = linear(run.config, observations.gray, 1.0 / channels)
    return restored(run, key, images, labels, observed, observed.repeat(channels, 3), way, "gray")
