"""The sampler's chains: how they move and mix, and their energies beside the energies of data and noise."""

import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import assemble, chains
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.common import Evidence, Outcome, Value, key_of
from ebm_jax.evaluators.energies import at_most, dequantised, energies_of
from ebm_jax.labels import sample_labels
from ebm_jax.metrics import diagnostics
from ebm_jax.models import energy
from ebm_jax.report import figures
from ebm_jax.sampling.base import WORDS
from ebm_jax.sampling.kernel import Info, Kernel
from ebm_jax.sampling.kernel import run as run_chain
from ebm_jax.trained import TrainedRun
from ebm_jax.types import Config, Images, Labels, PRNGKey

CHAINS = 22  # this evaluator's number in `key_of`
LAGS = 4  # the traces' length divided by the longest lag
SHOWN = 12  # chains in the picture
MALA_STEPS = 50
FEW = 0.01  # of moves: so few accepted ones are explained


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Whether chains mix: R-hat, effective sample size, acceptance.

    R-hat is split. The picture has autocorrelations, and histograms of energies.

    It runs chains of the run's kernel from noise, at constant temperature, and throws away the first half.
    """
    config = run.config
    number = -(-config.eval.chains.number // run.mesh.size) * run.mesh.size
    key_noise, key_run, key_mala, key_data, key_more = jax.random.split(key_of(config, CHAINS), 5)
    labels = np.asarray(sample_labels(config, jnp.arange(number)))
    noise = _noise(config, key_noise, number)
    kernel = chains.make_kernel(config, config.chain.temperature)
    evidence.note(f"compiling, and {config.eval.chains.steps:,} steps of {number:,} chains")
    x, traces, acceptances = _traced(run, kernel, config.eval.chains.steps, key_run, noise, labels)
    kept = traces[config.eval.chains.steps // 2 :]
    mixing = diagnostics.mixing(kept)
    correlation = diagnostics.autocorrelation(kept, -(-len(kept) // LAGS))
    energies = _energies_beside(run, evidence, key_data, key_more) | {"chains": kept.ravel().astype(np.float64)}
    evidence.note("the acceptance of a Metropolis test")
    acceptance, accepted_in_words = _acceptance(run, acceptances, key_mala, x, labels)
    independent = {"chains": mixing.effective_sample_size}
    values = {
        f"energy of {name}, mean": _mean(found, independent.get(name, float(len(found))))
        for name, found in energies.items()
    }
    values |= {
        "split R-hat of energy": Value(mixing.r_hat),
        "effective sample size of energy": Value(mixing.effective_sample_size),
        "autocorrelation of energy at the longest lag": Value(float(correlation[-1])),
    }
    if acceptance is not None:
        values["acceptance"] = Value(acceptance)
    mixed = f"R-hat {mixing.r_hat:.3f}, effective sample size {mixing.effective_sample_size:.0f} of {kept.size:,}"
    title = run.title(mixed)
    return Outcome(
        values,
        {
            "chains": f"{number} of {config.chain.kernel} from {WORDS[config.chain.base]}, "
            f"{config.eval.chains.steps} steps at temperature {config.chain.temperature:g}, the first half thrown "
            f"away; longest lag {len(correlation) - 1}",
            "chains, mixing": "rank-normalised split R-hat and bulk effective sample size by BlackJAX",
            "chains, acceptance": accepted_in_words,
        },
        {"chains": partial(_draw, energies=energies, traces=traces, correlation=correlation, title=title)},
        (verdicts.mixing(mixing),),
    )


def _draw(path: Path, energies: dict[str, np.ndarray], traces: np.ndarray, correlation: np.ndarray, title: str) -> None:
    figures.chains_figure(path, energies, traces[:, :SHOWN], correlation, title=title)


def _noise(config: Config, key: PRNGKey, number: int) -> np.ndarray:
    return np.asarray(chains.make_base(config).sample(key, number))


def _traced(
    run: TrainedRun, kernel: Kernel, steps: int, key: PRNGKey, x: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ends [b, *event] of chains under the energy, and their energies and acceptances [steps, b]."""
    apply = energy.of_members(assemble.make_apply(run.config))

    @jax.jit
    def chain(key: PRNGKey, params, x: Images, labels: Labels) -> tuple[Images, Info]:
        return run_chain(kernel, key, x, energy.bind(apply, params, labels), steps)

    x, info = parallel.on_host(chain(key, run.params, *parallel.place_batch(run.mesh, (x, labels))))
    return x, info.energy, info.acceptance


def _energies_beside(run: TrainedRun, evidence: Evidence, key: PRNGKey, key_noise: PRNGKey) -> dict[str, np.ndarray]:
    """Energies of at most `eval.num_samples` images of each split, and of as much noise under the same labels."""
    config, found = run.config, {}
    splits = {"eval.reference_split": config.eval.reference_split, "eval.split": config.eval.split}
    for number, (place, split) in enumerate(splits.items()):
        some = at_most(evidence.data[place], config.eval.num_samples, config.eval.seed)
        images = dequantised(jax.random.fold_in(key, number), some.images)
        found[split] = energies_of(run, images, some.labels, evidence.note)
    noise = _noise(config, jax.random.fold_in(key_noise, number), len(images))
    found["noise"] = energies_of(run, noise, some.labels, evidence.note)
    return found


def _acceptance(
    run: TrainedRun, own: np.ndarray, key: PRNGKey, x: np.ndarray, labels: np.ndarray
) -> tuple[float | None, str]:
    """The kernel's own acceptance or, for Langevin, MALA's from the ends of the chains; and its origin in words."""
    chain = run.config.chain
    if chain.kernel != "langevin":
        stuck = _of_no_move(own, x, chain.step_size, chain.temperature) if chain.kernel == "mala" else ""
        return float(own.mean()), f"of {chain.kernel}'s own Metropolis test, over all steps{stuck}"
    temperature = _langevin_temperature(run.config)
    if temperature == 0:
        return None, "none: the chain has no noise, and MALA no temperature 0"
    kernel = chains.make_kernel(run.config, temperature, name="mala")
    _, _, tested = _traced(run, kernel, MALA_STEPS, key, x, labels)
    return float(tested.mean()), (
        f"langevin has no Metropolis test: this is that of MALA at the same step size {chain.step_size:g}, clip and "
        f"temperature {temperature:.3g}, in {MALA_STEPS} steps from where the chains ended; MALA refuses what leaves "
        f"the box, where Langevin clamps{_of_no_move(tested, x, chain.step_size, temperature)}"
    )


def _of_no_move(tested: np.ndarray, x: np.ndarray, step_size: float, temperature: float) -> str:
    """Why MALA hardly moved from or to the ends `x` of chains, in words; empty if it did move."""
    if tested.mean() >= FEW:
        return ""
    noise, on_faces = math.sqrt(2 * step_size * temperature), np.isin(x, (0.0, 1.0)).mean()
    return (
        f". HARDLY A MOVE WAS ACCEPTED: noise of standard deviation {noise:.2g} and the drift take nearly every "
        f"proposal out of the box or up in energy ({on_faces:.0%} of the pixels lie at 0 or 1); a smaller "
        "chain.step_size, or chain.kernel=hmc, which bounces off the faces, is accepted more often"
    )


def _langevin_temperature(config: Config) -> float:
    """T at which tied Langevin for exp(-U/T) has this step and noise: chain.temperature, times σ²/(2s) if untied."""
    chain = config.chain
    return chain.temperature * (1.0 if chain.langevin.tied else chain.langevin.noise_scale**2 / (2 * chain.step_size))


def _mean(values: np.ndarray, independent: float) -> Value:
    """The mean, and its standard error for `independent` independent values; infinite for none."""
    return Value(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(independent) if independent else math.inf)
