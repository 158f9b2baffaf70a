"""Task `restore`: damage images by `sample.restore.corruption`, and restore them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax.models import observations
from ebm_jax.tasks.common import Result, check_images, check_one_label_each, images_to_start_from
from ebm_jax.tasks.observed import likelihood_weight, restored
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, PRNGKey

DAMAGE = 2  # folded into the key for the damage
WIDTH = 0.1  # of the salt-and-pepper likelihood, which takes differences far above it for damage


def check(config: Config) -> None:
    """Refuse an amount of damage out of its range.

    Raises:
      BadInput: with the amount and its limits; or the run's data are no images.
    """
    check_images(config, "restore")
    check_one_label_each(config)
    sample, side = config.sample, max(config.data.shape[:2])
    limits = {
        "salt_and_pepper": (0.0, 1.0, "a share from 0 to 1"),
        "noise": (0.0, math.inf, ""),
        "blur": (1e-3, side, f"from 0.001 to {side} pixels"),
    }
    low, high, limit = limits[sample.restore.corruption]
    if not low <= sample.restore.amount <= high:
        raise BadInput(
            f"sample.restore.amount {sample.restore.amount} is out of range; for {sample.restore.corruption} it "
            f"must be {limit}"
        )


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Damage and restore images of `sample.split`; give the error before and after."""
    sample = run.config.sample
    images, labels = images_to_start_from(run)
    key_damage, weight = jax.random.fold_in(key, DAMAGE), likelihood_weight(run.config)
    if sample.restore.corruption == "salt_and_pepper":
        observed = observations.salt_and_pepper(key_damage, jnp.asarray(images), sample.restore.amount)
        likelihood = partial(observations.impulse_likelihood, weight=weight, width=WIDTH)
    elif sample.restore.corruption == "noise":
        observed = jnp.clip(
            observations.gaussian_noise(key_damage, jnp.asarray(images), sample.restore.amount), 0.0, 1.0
        )
        likelihood = partial(observations.gaussian_likelihood, observations.identity, weight=weight)
    else:
        forward = observations.blur(sample.restore.amount)
        observed = forward(jnp.asarray(images))
        likelihood = partial(observations.gaussian_likelihood, forward, weight=weight)
    seen = np.asarray(observed)
    return restored(run, key, images, labels, seen, seen, likelihood, sample.restore.corruption)
