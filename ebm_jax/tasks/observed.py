"""Images drawn under prior and likelihood from an observation of them, for three tasks."""

from collections.abc import Callable

import jax
import numpy as np

from ebm_jax import applications, assemble
from ebm_jax.tasks.common import Result, compiled, mean_squared_error, rows_of
from ebm_jax.trained import TrainedRun
from ebm_jax.types import Config, EnergyFn, Images, Labels, PRNGKey


def likelihood_weight(config: Config) -> float:
    """The likelihood's weight at which one gradient of the chain removes the share `sample.strength` of the misfit."""
    return config.sample.strength / assemble.equivalent_step_size(config)


def restored(
    run: TrainedRun,
    key: PRNGKey,
    images: np.ndarray,
    labels: np.ndarray,
    observed: np.ndarray,
    start: np.ndarray,
    likelihood: Callable[..., EnergyFn],
    what: str,
) -> Result:
    """Chains from `start` under the run's energy and the likelihood of the observation, beside the true images.

    Args:
      images: the true ones, float32 [n, h, w, c] in [0, 1]; `start` has the same shape.
      likelihood: `observed=` -> minus the log-likelihood of images given this observation.
      what: the damage, in words.
    """
    stages = assemble.make_stages(run.config)

    def make(key: PRNGKey, start: Images, observed: jax.Array, labels: Labels) -> Images:
        return applications.restore(key, start, run.chain_energy_fn(labels), likelihood(observed=observed), stages)

    found = compiled(run, make, key, start, observed, labels)
    before, after = mean_squared_error(start, images), mean_squared_error(found, images)
    line = f"restored {len(images)} images ({what}); mean squared error {before:.4f} before and {after:.4f} after"
    arrays = {"images": images, "labels": labels, "observed": observed, "restored": found}
    return Result(arrays, rows_of(original=images, observed=observed, restored=found), line)
