"""Six two-dimensional densities in the unit box [0, 1]^2, with samples and the exact log-density.

All are centred in the box and have less than 1e-6 of their mass outside. The few samples there are clipped to the box,
as chains are; the log-density is normalised on the box to that precision. Curves and modes are at least 0.02 wide.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import ive, logsumexp

CENTRE = 0.5
NODES = 384  # quadrature nodes along an arc; the spirals' errors in the corners: 1e-4 with 192, 1e-7 with 256
CHUNK = 4096  # points at a time, so that their distances to all nodes take 25 MB

Sample = Callable[[np.random.Generator, int], np.ndarray]
LogDensity = Callable[[np.ndarray], np.ndarray]


class Density(NamedTuple):
    """A law on [0, 1]^2: `sample(rng, n)` float32 [n, 2], and `log_density(x)` float64 [m], in nats, at points [m, 2].

    The log-density is -inf outside the support, hence outside the box.
    """

    sample: Sample
    log_density: LogDensity


def _in_box(sample: Sample, log_density: LogDensity) -> Density:
    """A density on the plane, restricted to the box."""

    def clipped(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.clip(sample(rng, n), 0.0, 1.0).astype(np.float32)

    def bounded(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        return np.where(((x >= 0) & (x <= 1)).all(-1), log_density(x), -np.inf)

    return Density(clipped, bounded)


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    """Points [..., 2] around the origin."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _log_normal(squares: np.ndarray, std: float) -> np.ndarray:
    """log N(x; mean, std² I) in the plane, from squared distances |x - mean|²."""
    return -0.5 * squares / std**2 - np.log(2 * np.pi * std**2)


def _eight_gaussians(radius: float, std: float) -> Density:
    """Eight equal isotropic Gaussians, evenly spaced on a circle."""
    means = CENTRE + _polar(radius, 2 * np.pi * np.arange(8) / 8)

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        return means[rng.integers(8, size=n)] + std * rng.standard_normal((n, 2))

    def log_density(x: np.ndarray) -> np.ndarray:
        return logsumexp(_log_normal(cdist(x, means, "sqeuclidean"), std), axis=1) - np.log(8)

    return _in_box(sample, log_density)


def _around_arcs(arcs: Callable[[np.ndarray], np.ndarray], std: float, nodes: int) -> Density:
    """Isotropic Gaussian noise around the point at a uniform t in [0, 1] on one of several equally likely arcs.

        p(x) = mean over arcs of ∫_0^1 N(x; arc(t), std² I) dt = mean of ∫_0^1 N(x; arc(u²), std² I) 2u du

    by Gauss-Legendre quadrature in u: arcs that depend on √t are smooth in u. It agrees with adaptive quadrature to
    1e-9 nats all over the box (tests/test_densities.py).

    Args:
      arcs: maps t [k] to points [number of arcs, k, 2].
      std: standard deviation of the noise in each direction, in units of the box.
      nodes: number of quadrature nodes.
    """

    @functools.cache  # computed at first use: its eigenvalues take a second
    def quadrature() -> tuple[np.ndarray, np.ndarray]:
        abscissae, weights = np.polynomial.legendre.leggauss(nodes)
        u = (abscissae + 1) / 2
        points = arcs(u**2)
        return points.reshape(-1, 2), np.tile(u * weights, len(points)) / len(points)  # 2u · half a weight on [-1, 1]

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        choices = arcs(rng.random(n))
        return choices[rng.integers(len(choices), size=n), np.arange(n)] + std * rng.standard_normal((n, 2))

    def chunk(x: np.ndarray) -> np.ndarray:
        centres, weights = quadrature()
        return np.asarray(logsumexp(_log_normal(cdist(x, centres, "sqeuclidean"), std), axis=1, b=weights))

    def log_density(x: np.ndarray) -> np.ndarray:
        return np.concatenate([chunk(x[start : start + CHUNK]) for start in range(0, len(x), CHUNK)])

    return _in_box(sample, log_density)


def _moons(t: np.ndarray) -> np.ndarray:
    """Two half circles of radius 1/4 that reach into each other, as scikit-learn's make_moons places them."""
    upper = np.array([0.375, 0.4375]) + _polar(0.25, np.pi * t)
    return np.stack([upper, 2 * CENTRE - upper])


def _spirals(t: np.ndarray) -> np.ndarray:
    """Two Archimedean arms of one and a half turns to the radius 0.36, nearly uniform in length."""
    turn = np.sqrt(t)
    arm = _polar(0.36 * turn, 3 * np.pi * turn)
    return np.stack([CENTRE + arm, CENTRE - arm])


def _rings(radii: np.ndarray, std: float) -> Density:
    """Isotropic Gaussian noise around a uniform point on one of several equally likely circles.

    The noise averages over a circle of radius R to a Bessel function of r = |x - centre| (Rice's law of the radius):

        p(x) = mean over R of exp(-(r - R)² / 2 std²) exp(-rR / std²) I_0(rR / std²) / (2π std²)
    """

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        on_circle = _polar(radii[rng.integers(len(radii), size=n)], 2 * np.pi * rng.random(n))
        return CENTRE + on_circle + std * rng.standard_normal((n, 2))

    def log_density(x: np.ndarray) -> np.ndarray:
        r = np.linalg.norm(x - CENTRE, axis=-1, keepdims=True)
        circles = _log_normal((r - radii) ** 2, std) + np.log(ive(0, r * radii / std**2))
        return logsumexp(circles, axis=1) - np.log(len(radii))

    return _in_box(sample, log_density)


def _checkerboard(margin: float) -> Density:
    """Uniform on the eight dark squares of a four by four board, with `margin` free around the board.

    Without a margin the density would reach the border, where clipped chains leave atoms. Squares are closed and reach
    3e-8 beyond their edges, because float32 rounds samples that far. A grid integrates the density exactly if its cells
    end at the squares' edges: for the margin 1/10 the number of cells a side must be a multiple of ten.
    """
    half = (1 - 2 * margin) / 8
    columns, rows = np.nonzero(np.indices((4, 4)).sum(0) % 2 == 0)
    centres = margin + half * (2 * np.stack([columns, rows], -1) + 1)

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        return centres[rng.integers(8, size=n)] + half * rng.uniform(-1, 1, (n, 2))

    def log_density(x: np.ndarray) -> np.ndarray:
        dark = cdist(x, centres, "chebyshev").min(1) <= half + 3e-8
        return np.where(dark, -np.log(8 * (2 * half) ** 2), -np.inf)

    return _in_box(sample, log_density)


def _pinwheel(arms: int, radius: float, radial_std: float, tangential_std: float, twist: float) -> Density:
    """Gaussians on a circle, long along the radius; each point then turns around the centre by `twist` · its radius.

    The turn keeps areas (its Jacobian is 1), so the density equals the Gaussians' density at the point turned back.
    """
    angles = 2 * np.pi * np.arange(arms) / arms
    log_norm = np.log(2 * np.pi * radial_std * tangential_std * arms)

    def turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        along = np.array([radius, 0.0]) + np.array([radial_std, tangential_std]) * rng.standard_normal((n, 2))
        return CENTRE + turned(along, angles[rng.integers(arms, size=n)] + twist * np.linalg.norm(along, axis=-1))

    def log_density(x: np.ndarray) -> np.ndarray:
        offset = (x - CENTRE)[:, None]
        along = turned(offset, -angles - twist * np.linalg.norm(offset, axis=-1))
        scaled = (along - [radius, 0.0]) / [radial_std, tangential_std]
        return logsumexp(-0.5 * np.square(scaled).sum(-1), axis=1) - log_norm

    return _in_box(sample, log_density)


DENSITIES: dict[str, Density] = {
    "eight_gaussians": _eight_gaussians(radius=0.3, std=0.035),
    "two_moons": _around_arcs(_moons, std=0.025, nodes=NODES),
    "checkerboard": _checkerboard(margin=0.1),
    "rings": _rings(radii=np.array([0.12, 0.24, 0.36]), std=0.02),
    "spirals": _around_arcs(_spirals, std=0.02, nodes=NODES),
    "pinwheel": _pinwheel(arms=5, radius=0.22, radial_std=0.05, tangential_std=0.03, twist=5.0),
}
