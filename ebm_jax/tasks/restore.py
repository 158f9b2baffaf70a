"""Task `restore`: damage images by `sample.restore.corruption`, and restore them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import applications
from ebm_jax.applications import Path
from ebm_jax.models import observations
from ebm_jax.tasks.common import Result, check_images, check_one_label_each, images_to_start_from
from ebm_jax.tasks.observed import Way, likelihood_weight, linear, restored
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, EnergyFn, Images, PRNGKey

DAMAGE = 2  # folded into the key for the damage
WIDTH = 0.1  # of the salt-and-pepper likelihood, which takes differences far above it for damage
FAR = 0.15  # of pixel values: a black or white pixel this far from the median of its neighbours may be damage


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
    """Damage images by wrong pixels, noise or blur, and restore them; the errors of both."""
    sample = run.config.sample
    images, labels = images_to_start_from(run)
    observed, way = damaged(run.config, jax.random.fold_in(key, DAMAGE), jnp.asarray(images))
    seen, beside = np.asarray(observed), None
    if sample.restore.corruption == "salt_and_pepper":
        beside = "a median filter of 3x3 pixels", np.asarray(observations.medians(observed))
    return restored(run, key, images, labels, seen, seen, way, sample.restore.corruption.replace("_", " "), beside)


def damaged(config: Config, key: PRNGKey, images: Images) -> tuple[Images, Way]:
    """The damaged images, of the same shape, and how they lead chains back."""
    amount, weight = config.sample.restore.amount, likelihood_weight(config)
    if config.sample.restore.corruption == "salt_and_pepper":
        observed = observations.salt_and_pepper(key, images, amount)
        return observed, Way(partial(observations.impulse_likelihood, weight=weight, width=WIDTH), _in_doubt_along)
    if config.sample.restore.corruption == "noise":
        observed = jnp.clip(observations.gaussian_noise(key, images, amount), 0.0, 1.0)
        return observed, linear(config, observations.identity, 1.0)._replace(along=partial(_from_noisy, amount))
    forward = observations.blur(amount)
    return forward(images), linear(config, forward, 1.0)


def _in_doubt_along(key: PRNGKey, start: Images, observed: Images, energy_fn: EnergyFn, path: Path) -> Images:
    """Fill in the pixels that may be damage, from the median of their neighbours; all others stay."""
    del start
    median = observations.medians(observed)
    in_doubt = ((observed == 0.0) | (observed == 1.0)).all(3, keepdims=True)
    in_doubt &= (jnp.abs(median - observed) > FAR).any(3, keepdims=True)
    in_doubt = jnp.broadcast_to(in_doubt, observed.shape)
    return applications.inpaint(key, jnp.where(in_doubt, median, observed), ~in_doubt, energy_fn, path)


def _from_noisy(std: float, key: PRNGKey, start: Images, observed: Images, energy_fn: EnergyFn, path: Path) -> Images:
    """Descend from where noise of this standard deviation lies on the path: it is the noise there."""
    del start
    base = path.base
    share = base.scale / (base.scale + std)
    return applications.generate(key, base.centre + share * (observed - base.centre), energy_fn, path.stages_of(None))
