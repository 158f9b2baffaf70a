"""R-hat, effective sample size and autocorrelation of autoregressive chains against their closed forms."""

import numpy as np
import pytest

from ebm_jax.metrics.diagnostics import autocorrelation, mixing
from ebm_jax.types import BadInput

STEPS, CHAINS = 4_000, 16


def autoregressive(correlation, shifts=0.0):
    """x_t = ρ x_{t-1} + sqrt(1 - ρ²) α, started in its law N(shift, 1): float32 [STEPS, CHAINS]."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=CHAINS)]
    for _ in range(STEPS - 1):
        x.append(correlation * x[-1] + np.sqrt(1 - correlation**2) * rng.normal(size=CHAINS))
    return (np.stack(x) + shifts).astype(np.float32)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_effective_sample_size_is_the_closed_form_of_an_autoregressive_chain(correlation):
    found = mixing(autoregressive(correlation))
    expected = STEPS * CHAINS * (1 - correlation) / (1 + correlation)
    np.testing.assert_allclose(found.effective_sample_size, expected, rtol=0.1)
    assert 0.999 < found.r_hat < 1.01


def test_chains_that_keep_apart_have_the_r_hat_of_their_two_variances():
    """Chains of variance 1 with means of spread s have R-hat = sqrt(1 + s²); their ranks nearly so, if s is small."""
    shifts = np.where(np.arange(CHAINS) % 2, 0.3, -0.3)
    expected = np.sqrt(1 + 0.3**2 * CHAINS / (CHAINS - 1))
    np.testing.assert_allclose(mixing(autoregressive(0.0, shifts)).r_hat, expected, rtol=0.01)


def test_a_drift_shows_in_one_chain_against_its_own_other_half():
    drift = np.linspace(0, 2, STEPS)[:, None]
    assert mixing(autoregressive(0.0, drift)).r_hat > 1.05
    assert mixing(autoregressive(0.0, drift[::-1])).r_hat > 1.05


def test_autocorrelation_falls_as_the_powers_of_that_of_one_step():
    found = autocorrelation(autoregressive(0.8), 20)
    # Bartlett: in a chain of n draws the error of a late lag is sqrt((1 + ρ²) / (1 - ρ²) / n)
    standard_error = np.sqrt((1 + 0.64) / (1 - 0.64) / (STEPS * CHAINS))
    np.testing.assert_allclose(found, 0.8 ** np.arange(20), atol=5 * standard_error)
    apart = autocorrelation(autoregressive(0.8, np.where(np.arange(CHAINS) % 2, 2.0, -2.0)), 400)
    np.testing.assert_allclose(apart[200:].mean(), 4 / 5, atol=0.02)


def test_frozen_chains_are_infinitely_far_apart():
    found = mixing(np.tile(np.arange(4.0), (10, 1)))
    assert found == (float("inf"), 0.0)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: mixing(np.zeros((100, 1))), "1 chains of 100 steps"),
        (lambda: mixing(np.zeros((7, 3))), "3 chains of 7 steps"),
        (lambda: mixing(np.full((9, 3), np.nan)), "27 of 27 values .* not finite"),
        (lambda: mixing(np.ones((9, 3))), "all chains trace 1 alone"),
        (lambda: autocorrelation(np.ones((9, 3)), 2), "all chains trace 1 alone"),
        (lambda: autocorrelation(np.eye(9), 10), "10 lags of chains of 9 steps"),
    ],
)
def test_what_tells_nothing_is_refused(call, line):
    with pytest.raises(BadInput, match=line):
        call()
