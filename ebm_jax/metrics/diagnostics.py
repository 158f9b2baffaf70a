"""How well chains mix, judged by a number that each chain traces, such as its energy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ebm_jax.types import BadInput

Traces = Float[np.ndarray, "steps chains"]
FEWEST_STEPS = 8  # two halves, of four draws each


class Mixing(NamedTuple):
    """What traces say of the chains' law. A number alone proves nothing: all chains may miss the same mode."""

    r_hat: float
    """Rank-normalised split R-hat: 1 where halves of chains agree; above 1.01 they have not mixed."""
    effective_sample_size: float
    """So many independent draws would give as exact a mean of ranks as all these draws, of all chains ("bulk")."""


def mixing(traces: Traces) -> Mixing:
    """Split R-hat and effective sample size (Vehtari et al. 2021), by BlackJAX.

    Chains that all stand still, in different places, have an infinite R-hat and no effective draws.

    Raises:
      BadInput: there are fewer than 2 chains or 8 steps; a value is not finite; or all values are equal.

    Examples:
      >>> import numpy as np
      >>> from ebm_jax import diagnostics
      >>> draws = np.random.default_rng(0).normal(size=(1_000, 4))  # independent ones
      >>> bool(diagnostics.mixing(draws).r_hat < 1.01), bool(diagnostics.mixing(draws + np.arange(4)).r_hat > 1.1)
      (True, True)
    """
    steps, chains = traces.shape
    if chains < 2 or steps < FEWEST_STEPS:
        raise BadInput(f"{chains} chains of {steps} steps tell nothing of mixing; use 2 chains of {FEWEST_STEPS} steps")
    if not np.isfinite(traces).all():
        raise BadInput(f"{np.sum(~np.isfinite(traces))} of {traces.size} values that the chains trace are not finite")
    if np.ptp(traces) == 0:
        raise BadInput(f"all chains trace {traces.flat[0]:g} alone; their mixing cannot be seen")
    if (np.ptp(traces, axis=0) == 0).all():
        return Mixing(float("inf"), 0.0)
    from blackjax import diagnostics  # slow to import, and of use to few runs

    values = jnp.asarray(traces.T)
    r_hat, size = jax.jit(lambda values: (diagnostics.rhat(values), diagnostics.ess_bulk(values)))(values)
    return Mixing(float(r_hat), float(size))


def autocorrelation(traces: Traces, lags: int) -> Float[np.ndarray, " lags"]:
    """The correlation of a chain with itself `lag` steps later, for lags 0, 1 ... lags-1, over all chains.

    Deviations are from the mean of all chains, so chains that keep apart never lose their correlation.

    Raises:
      BadInput: `lags` is not from 1 to the number of steps, or all values are equal.

    Examples:
      >>> import numpy as np
      >>> from ebm_jax import diagnostics
      >>> to_and_fro = np.tile([[1.0], [-1.0]], (50, 2))
      >>> diagnostics.autocorrelation(to_and_fro, 3).round(6).tolist()
      [1.0, -1.0, 1.0]
    """
    steps = len(traces)
    if not 1 <= lags <= steps:
        raise BadInput(f"{lags} lags of chains of {steps} steps; use 1 to {steps}")
    if np.ptp(traces) == 0:
        raise BadInput(f"all chains trace {traces.flat[0]:g} alone; it has no autocorrelation")
    centred = np.asarray(traces, np.float64) - np.mean(traces, dtype=np.float64)
    power = np.square(np.abs(np.fft.rfft(centred, n=2 * steps, axis=0)))
    products = np.fft.irfft(power, axis=0)[:lags].mean(1) / (steps - np.arange(lags))
    return products / products[0]
