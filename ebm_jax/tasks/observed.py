"""Images drawn from an observation of them, for three tasks: under prior and likelihood, or along a descent's path."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ebm_jax import applications, chains
from ebm_jax.applications import Path
from ebm_jax.models import observations
from ebm_jax.models.observations import Forward
from ebm_jax.report import style
from ebm_jax.report.pictures import Row
from ebm_jax.tasks.common import (
    Result,
    drawn,
    mean_of,
    mean_squared_error,
    rows_of,
    with_error,
)
from ebm_jax.trained import TrainedRun
from ebm_jax.types import Config, EnergyFn, Images, Labels, PRNGKey

ALL = "mean squared errors of all these images"


class Way(NamedTuple):
    """How an observation leads chains: one way for log-densities, one for energies that order images by their noise."""

    likelihood: Callable[..., EnergyFn]
    """`observed=` -> minus the log-likelihood of images given this observation."""
    along: Callable[[PRNGKey, Images, Any, EnergyFn, Path], Images]
    """(key, start, observed, energy_fn, path) -> images."""


def likelihood_weight(config: Config) -> float:
    """The likelihood's weight at which one gradient of the chain removes the share `sample.strength` of the misfit."""
    return config.sample.strength / chains.equivalent_step_size(config)


def linear(config: Config, forward: Forward, squared_norm: float) -> Way:
    """The way of an observation A x without noise, with ‖A‖² = `squared_norm`."""

    def along(key: PRNGKey, start: Images, observed: Any, energy_fn: EnergyFn, path: Path) -> Images:
        return applications.follow(key, start, observed, forward, squared_norm, energy_fn, path)

    weight = likelihood_weight(config) / squared_norm
    return Way(partial(observations.gaussian_likelihood, forward, weight=weight), along)


def restored(
    run: TrainedRun,
    key: PRNGKey,
    images: np.ndarray,
    labels: np.ndarray,
    observed: np.ndarray,
    start: np.ndarray,
    way: Way,
    what: str,
    beside: tuple[str, np.ndarray] | None = None,
) -> Result:
    """Chains from `start`, led by the observation, beside the true images.

    Args:
      images: the true ones, float32 [n, h, w, c] in [0, 1]; `start` has the same shape.
      what: the damage, in words.
      beside: a simple method's name and what it gives, for comparison.
    """
    path = chains.make_path(run.config, run.config.sample.start_share)
    stages = chains.make_stages(run.config)

    def make(key: PRNGKey, start: Images, observed: jax.Array, labels: Labels) -> Images:
        energy_fn = run.chain_energy_fn(labels)
        if path is not None:
            return way.along(key, start, observed, energy_fn, path)
        return applications.restore(key, start, energy_fn, way.likelihood(observed=observed), stages)

    def error(guess: np.ndarray) -> float:
        return mean_squared_error(guess, images)

    several = drawn(run, make, key, start, observed, labels)
    found, mean = several[0], mean_of(several, error)
    line = f"restored {len(images)} images ({what}); mean squared error {error(start):.4f} before and "
    line += f"{error(found):.4f} after{mean.words}"
    if beside is not None:
        line += f"; {beside[0]} {error(beside[1]):.4f}"
    arrays = {"images": images, "labels": labels, "observed": observed, "restored": found, **mean.arrays}
    simple = {} if beside is None else {with_error(beside[0], error(beside[1])): beside[1]}
    rows = {
        "original": Row(images, run.names_of(labels)),
        f"observed ({what}); {with_error('the start', error(start))}": observed,
        **simple,
        with_error("restored", error(found)): found,
        **mean.rows,
    }
    title = run.title(f"{len(images)} images of {run.config.sample.split}, restored", *_origin(run, path), ALL)
    return Result(arrays, rows_of(rows, title), line)


def _origin(run: TrainedRun, path: Path | None) -> tuple[str, str]:
    """The steps of the chains, and what they start from, in words."""
    mixed = "" if path is None else " and noise"
    return style.steps(run.config), f"start: the observation{mixed}"
