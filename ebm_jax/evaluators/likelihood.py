"""The log-likelihood of a trained run on images that it never saw, between bounds by annealed importance sampling.

The law is q(x) = exp(-U(x) / T) / Z on [0, 1]^d at the temperature `eval.ais.temperature`, 1 for the model itself. The
release's untied Langevin chains follow another law: they are near the temperature σ²/(2s), 1.25e-6. A model of classes
has the law q(x | y): each class has its own Z, from its own chains, and an image has the likelihood under its label.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ebm_jax import assemble, chains
from ebm_jax.checks import require_density
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.common import Draw, Evidence, Outcome, Samples, Value, key_of
from ebm_jax.evaluators.energies import dequantised, energies_of
from ebm_jax.labels import label_shape
from ebm_jax.metrics import ais, diagnostics
from ebm_jax.models import energy
from ebm_jax.report import figures
from ebm_jax.sampling.hmc import hmc, no_walls, unit_box_walls
from ebm_jax.sampling.kernel import run as run_chain
from ebm_jax.sampling.mala import mala
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, EnergyFn, Images, Labels, PRNGKey

AIS = 21  # this evaluator's number in `key_of`
CROSSED = 3.0  # standard errors by which the bounds may cross by chance
LEVELS = 256  # values of a pixel


BASES = {
    "uniform": "uniform on [0, 1]^d, log Z 0",
    "normal": "N(0, I) on R^d, log Z 0 with its density",
    "centred_normal": "N(½, ¼ I) on R^d, log Z 0 with its density",
}


class Move(NamedTuple):
    """How chains move between two temperatures."""

    kernel_of: ais.KernelOf
    acceptance: float
    """The target that sets the step size, the best in many dimensions: 0.574 for MALA (Roberts & Rosenthal 1998), 0.651
    for HMC (Beskos et al. 2013)."""
    largest_step: float
    """The step size at which a single move crosses the box."""


def make_move(config: Config) -> Move:
    """The move that `eval.ais.kernel` names. MALA refuses a proposal outside the box, HMC bounces off the walls.

    Chains stay in the support of the law that they start from, the box or the whole space.
    """
    project = chains.make_base(config).project
    if config.eval.ais.kernel == "mala":
        return Move(partial(mala, project=project), 0.574, 0.5)
    reflect = unit_box_walls if config.chain.base == "uniform" else no_walls
    return Move(partial(hmc, num_leaps=config.eval.ais.leaps, project=project, reflect=reflect), 0.651, 1.0)


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Bounds of log Z, log-likelihood and bits per dimension, by annealed chains.

    Raises:
      BadInput: a class has no sample to start at.
    """
    config, groups = run.config, run.config.model.num_classes
    number = _rounded_up(config.eval.ais.chains, groups * run.mesh.size)
    labels = np.repeat(np.arange(groups, dtype=np.int32), number // groups)
    keys = jax.random.split(key_of(config, AIS), 8)
    chain = Chains(run, make_move(config), labels)
    evidence.note(f"AIS: the pilot of {number} chains")
    path = chain.pilot(keys[0], keys[1])
    evidence.note("AIS: forward")
    forward, along, acceptance = chain.forward(keys[2], keys[3], path)
    starts, mixing = chain.starts(keys[4], path, evidence.samples)
    evidence.note("AIS: reverse")
    backward = chain.backward(keys[5], starts, path)
    bounds = [
        ais.sandwich(below, above)
        for below, above in zip(forward.reshape(groups, -1), backward.reshape(groups, -1), strict=True)
    ]
    data = evidence.data["eval.split"]
    test = energies_of(run, dequantised(keys[6], data.images), data.labels, evidence.note) / config.eval.ais.temperature
    classes = data.labels if groups > 1 else np.zeros(len(test), np.int32)
    likelihood = Likelihood(bounds, test, classes, math.prod(config.data.shape), config.eval.ais.tolerance)
    shares = np.asarray(path.shares[1:], np.float64)
    nats = -shares * test.mean() - along @ np.bincount(classes, minlength=groups) / len(classes)
    values, closed = likelihood.values(), likelihood.verdict()
    return Outcome(
        values,
        {
            "AIS": f"{number} chains either way{_a_class(groups)}, {config.eval.ais.steps} temperatures, one move of "
            f"{_kernel_in_words(config)} at each, step sizes and path from a pilot run whose chains are thrown away; "
            f"mean acceptance {acceptance:.2f}",
            "AIS base": BASES[config.chain.base],
            "AIS law": f"exp(-U/T)/Z at T = {config.eval.ais.temperature:g}{' of each class' if groups > 1 else ''}"
            f"{_temperature_of_chains(config)}",
            "AIS reverse starts": f"APPROXIMATE samples of the model: {evidence.samples.origin}, then "
            f"{config.eval.ais.burn_in} moves at T; split R-hat of their energy in the last half {mixing.r_hat:.3f}",
            "AIS bounds": closed,
            "likelihood": f"density on [0, 1]^d of {len(test)} images of {config.eval.split}, uint8 v as (v + U[0, 1])"
            f"/256; bits per dimension are -log2 of it a dimension, plus {math.log2(LEVELS):g}: 8 for uniform noise",
        },
        {"likelihood_by_temperature": _curve(run, config.eval.ais.temperature / shares, nats)},
        (closed, verdicts.bits(values["bits per dimension at most (reverse AIS)"].number, LEVELS)),
    )


class Chains:
    """Chains of all classes at once, over all devices, one chain for each of `labels`."""

    def __init__(self, run: TrainedRun, move: Move, labels: np.ndarray) -> None:
        self._run, self._move, self._labels = run, move, labels
        self._base = chains.make_base(run.config)
        self._apply = energy.of_members(assemble.make_apply(run.config))
        self._anneal = jax.jit(self._annealed)

    def _bound(self, params, labels: Labels) -> EnergyFn:
        return energy.tempered(energy.bind(self._apply, params, labels), self._run.config.eval.ais.temperature)

    def _annealed(self, key: PRNGKey, params, x: Images, labels: Labels, path: ais.Path) -> ais.Annealed:
        return ais.anneal(key, x, self._base, self._bound(params, labels), self._move.kernel_of, path)

    def _noise(self, key: PRNGKey) -> np.ndarray:
        return np.asarray(self._base.sample(key, len(self._labels)))

    def _placed(self, x: np.ndarray) -> tuple[jax.Array, ...]:
        return parallel.place_batch(self._run.mesh, (x, self._labels))

    def pilot(self, key_start: PRNGKey, key: PRNGKey) -> ais.Path:
        """The path of temperatures and step sizes, from chains that are thrown away."""
        evaluation = self._run.config.eval

        @jax.jit
        def tried(key: PRNGKey, params, x: Images, labels: Labels) -> ais.Pilot:
            return ais.pilot(
                key,
                x,
                self._base,
                self._bound(params, labels),
                self._move.kernel_of,
                evaluation.ais.steps,
                acceptance=self._move.acceptance,
                largest_step=self._move.largest_step,
            )

        found = tried(key, self._run.params, *self._placed(self._noise(key_start)))
        return ais.path_of(jax.device_get(found), evaluation.ais.steps)

    def forward(self, key_start: PRNGKey, key: PRNGKey, path: ais.Path) -> tuple[np.ndarray, np.ndarray, float]:
        """Log-weights [chains] from exact draws of the base; log Z of each class at each stop [steps, classes]; mean
        acceptance.
        """
        annealed = self._anneal(key, self._run.params, *self._placed(self._noise(key_start)), path)
        differences, groups = parallel.on_host(annealed.differences), self._run.config.model.num_classes
        return (
            ais.log_weights(path, differences),
            np.stack([ais.log_z_along(path, part) for part in np.split(differences, groups, axis=1)], axis=1),
            float(np.mean(parallel.on_host(annealed.acceptance))),
        )

    def starts(self, key: PRNGKey, path: ais.Path, samples: Samples) -> tuple[np.ndarray, diagnostics.Mixing]:
        """The run's samples of each chain's class, moved on under the law itself, and the mixing of their energies."""
        steps = self._run.config.eval.ais.burn_in
        kernel = self._move.kernel_of(path.step_sizes[-1])

        @jax.jit
        def moved(key: PRNGKey, params, x: Images, labels: Labels) -> tuple[Images, jax.Array]:
            x, info = run_chain(kernel, key, x, self._bound(params, labels), steps)
            return x, info.energy

        images = samples.images[_rows_of_classes(samples.labels, self._labels)]
        x, energies = parallel.on_host(moved(key, self._run.params, *self._placed(images)))
        return x, diagnostics.mixing(energies[steps // 2 :])

    def backward(self, key: PRNGKey, starts: np.ndarray, path: ais.Path) -> np.ndarray:
        """Log-weights [chains] of the reverse chains from `starts`."""
        back = ais.reverse(path)
        annealed = self._anneal(key, self._run.params, *self._placed(starts), back)
        return ais.log_weights(back, parallel.on_host(annealed.differences))


class Likelihood(NamedTuple):
    """The likelihood of images, from bounds of log Z and the images' energies and classes."""

    bounds: list[ais.Sandwich]
    """One for each class."""
    energies: np.ndarray
    """U/T of the images, nats."""
    classes: np.ndarray
    dimensions: int
    tolerance: float
    """Nats; bounds count as closed up to this gap, errors included."""

    def values(self) -> dict[str, Value]:
        """All numbers; log Z is the mean over the images' classes."""
        low, low_error = self._mean("lower")
        high, high_error = self._mean("upper")
        at_most, most_error = self._log_likelihood("lower")
        at_least, least_error = self._log_likelihood("upper")
        per_bit = self.dimensions * math.log(2)
        return {
            "log Z from below (forward AIS), nats": Value(low, low_error),
            "log Z from above (reverse AIS), nats": Value(high, high_error),
            "gap of log Z, nats": Value(high - low, math.hypot(low_error, high_error)),
            "effective sample size, forward": Value(min(bound.lower_size for bound in self.bounds)),
            "effective sample size, reverse": Value(min(bound.upper_size for bound in self.bounds)),
            "log-likelihood at most (forward AIS), nats": Value(at_most, most_error),
            "log-likelihood at least (reverse AIS), nats": Value(at_least, least_error),
            "bits per dimension at least (forward AIS)": Value(
                ais.bits_per_dimension(at_most, self.dimensions, LEVELS), most_error / per_bit
            ),
            "bits per dimension at most (reverse AIS)": Value(
                ais.bits_per_dimension(at_least, self.dimensions, LEVELS), least_error / per_bit
            ),
        }

    def _mean(self, side: str) -> tuple[float, float]:
        """A bound of log Z and its error, weighted by the classes of the images."""
        shares = np.bincount(self.classes, minlength=len(self.bounds)) / len(self.classes)
        means = np.array([getattr(bound, side) for bound in self.bounds])
        errors = np.array([getattr(bound, f"{side}_error") for bound in self.bounds])
        return float(shares @ means), float(np.sqrt(np.square(shares * errors).sum()))

    def _log_likelihood(self, side: str) -> tuple[float, float]:
        """The images' mean log-likelihood at a bound of log Z, and its error from the images and the bound."""
        log_z, error = self._mean(side)
        levels = np.array([getattr(bound, side) for bound in self.bounds])[self.classes]
        spread = np.std(self.energies + levels, ddof=1) / math.sqrt(len(self.energies))
        return float(-self.energies.mean() - log_z), math.hypot(float(spread), error)

    def verdict(self) -> str:
        """Whether the sandwich of the worst class closes, in words, and what it means if it does not."""
        worst = max(self.bounds, key=lambda bound: abs(bound.gap))
        gap, error = worst.gap, worst.gap_error
        said = f"{gap:+.3f} nats, standard error {error:.3f}{' in the worst class' if len(self.bounds) > 1 else ''}"
        if gap < -CROSSED * error and -gap > self.tolerance:
            return (
                f"THE BOUNDS CROSS, gap {said}: the reverse chains did not start in the model's law, or all chains "
                "miss a part of it; log Z is not known, more of eval.ais.burn_in and eval.ais.steps may tell"
            )
        if abs(gap) + 2 * error <= self.tolerance:
            return f"closed, gap {said}: log Z is known to that"
        return (
            f"THE SANDWICH DOES NOT CLOSE, gap {said}: log Z lies between the bounds in expectation, if the reverse "
            "chains start in the model's law, and the log-likelihood is known to that width only; more of "
            "eval.ais.steps and eval.ais.chains narrow it"
        )


def check(config: Config) -> None:
    """Refuse a model of vector labels, which has no Z for each class, and too few chains for the classes.

    Raises:
      BadInput: with the key, its value and what to do.
    """
    require_density(config, "metric ais", "leave it out of eval.metrics")
    groups = config.model.num_classes
    if label_shape(config) is not None:
        raise BadInput(
            f"metric ais needs an unconditional model or one of classes; data.condition is {config.data.condition}, "
            "and each of its labels has another Z"
        )
    if config.eval.ais.chains < 2 * groups:
        raise BadInput(
            f"eval.ais.chains {config.eval.ais.chains} is too small for {groups} classes, each with its own Z; use at "
            f"least {2 * groups}"
        )


def _rounded_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _rows_of_classes(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted label, the row of a sample that has it; the samples of a label take turns."""
    given = given if wanted.any() else np.zeros(len(given), np.int32)
    rows = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        found = np.flatnonzero(given == label)
        if len(found) == 0:
            raise BadInput(
                f"there is no sample of class {label} to start reverse AIS at; use a larger eval.num_samples"
            )
        rows[wanted == label] = np.resize(found, int((wanted == label).sum()))
    return rows


def _a_class(groups: int) -> str:
    return f" ({groups} classes alike)" if groups > 1 else ""


def _kernel_in_words(config: Config) -> str:
    if config.eval.ais.kernel == "mala":
        return "MALA that stays in the box by refusal"
    return f"HMC of {config.eval.ais.leaps} leaps that bounces at the box's walls"


def _temperature_of_chains(config: Config) -> str:
    """The temperature of the chains that train and sample, in words."""
    chain = config.chain
    if chain.kernel != "langevin" or chain.langevin.tied:
        return f"; the run's own chains are at T = {chain.temperature:g}"
    temperature = chain.temperature * chain.langevin.noise_scale**2 / (2 * chain.step_size)
    return f"; the run's own chains are near T = {temperature:.3g}"


def _curve(run: TrainedRun, temperatures: np.ndarray, nats: np.ndarray) -> Draw:
    """The picture of log-likelihood against temperature; forward AIS knows log Z at each stop of its path."""
    title = run.title("mean log-likelihood of images never seen")

    def draw(path: Path) -> None:
        lines, labels = {"forward AIS": (temperatures, nats)}, ("temperature T of exp(-U/T)/Z", "nats")
        figures.curves(path, lines, labels, title, xscale="log")

    return draw
