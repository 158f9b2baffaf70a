"""The samples that an evaluation judges: from fresh chains, a sampling buffer, or the training buffer."""

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import assemble, opening, program, samplers
from ebm_jax.evaluators.common import Samples, chosen_rows, key_of
from ebm_jax.report import style
from ebm_jax.sampling import replay
from ebm_jax.sampling.base import WORDS
from ebm_jax.schema import with_values
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config

SAMPLES = 0  # the samples' number in `key_of`


def draw(run: TrainedRun, note: Note) -> Samples:
    """`eval.num_samples` samples of the model, as `eval.samples` and the keys of the group `sample` say."""
    if run.config.eval.samples == "buffer":
        return _buffered(run)
    asked = {"sample.num_images": run.config.eval.num_samples, "sample.batch_size": run.config.eval.batch_size}
    config = with_values(run.config, asked)
    judged = run._replace(config=config)
    if config.sample.buffer_capacity:
        return _by_rounds(judged, note)
    found = judged.samples(key_of(config, SAMPLES), note)
    return Samples(found.images, found.labels, fresh_origin(config))


def _by_rounds(run: TrainedRun, note: Note) -> Samples:
    """The chains with the most rounds of a sampling buffer; the buffer is new, so that only seeds matter."""
    config = run.config
    init, advance, _ = samplers.make_rounds(config, run.mesh)
    key_init, key_rounds = jax.random.split(key_of(config, SAMPLES))
    buffer = init(key_init)
    for _ in range(config.sample.rounds):
        buffer = advance(run.params, key_rounds, buffer)
        note(f"round {int(buffer.rounds)} of {config.sample.rounds} of the sampling buffer")
    images, labels, visits = samplers.oldest_chains(config, buffer, config.eval.num_samples)
    mixed = np.random.default_rng(config.eval.seed).permutation(len(images))  # errors are over consecutive groups
    origin = f"{rounds_origin(config)}; {visits.mean():.1f} on average, {visits.min()} at least"
    return Samples(images[mixed], labels[mixed], origin)


def _buffered(run: TrainedRun) -> Samples:
    """Random chains of the newest checkpoint's buffer, as training left them; some have just restarted from noise.

    Raises:
      BadInput: the method keeps no chains.
    """
    config = run.config
    abstract = program.abstract_state(config, run.mesh)
    state = opening.restore(run.folder, abstract, run.step + 1, opening.chosen(config)).state
    buffer = assemble.make_method(config).chains(state.memory)
    if buffer is None:
        raise BadInput(f"eval.samples buffer is for methods with chains; {config.method.name} keeps none, use fresh")
    pixels, labels, visits = jax.device_get((buffer.images, buffer.labels, buffer.visits))
    chains = visits.size
    rows = chosen_rows(chains, config.eval.num_samples, config.eval.seed)
    stored = jnp.asarray(pixels.reshape(chains, -1)[rows])
    images = np.asarray(replay.as_images(stored, tuple(config.data.shape)))
    labels = labels.reshape(chains, *labels.shape[visits.ndim :])[rows]
    origin = (
        f"THE TRAINING BUFFER, not fresh chains: {len(rows)} of its {chains} chains, each moved on in "
        f"{visits.reshape(-1)[rows].mean():.1f} training steps on average since it started from noise"
    )
    return Samples(images, labels, origin)


def fresh_origin(config: Config) -> str:
    """The origin of fresh chains in words, from the group `sample`."""
    sample = config.sample
    annealed = f", annealed from temperature {sample.anneal_from:g}" if sample.anneal_from else ""
    labels = f", under the labels {sample.labels} in turn" if sample.labels else ""
    descent = f"{sample.descent_steps} steps of descent, then " if sample.descent_steps else ""
    quiet = 0 if config.chain.kernel == "descent" else sample.quiet_steps  # which has no noise at all
    silent = f", the last {quiet} without noise" if quiet else ""
    return (
        f"fresh chains of {descent}{sample.num_steps} steps of {config.chain.kernel} from {WORDS[config.chain.base]}"
        f"{silent}{annealed}{labels}{style.guidance(config)}{style.kept(config)}"
    )


def rounds_origin(config: Config) -> str:
    """The origin of a sampling buffer's chains in words, from the group `sample`."""
    sample = config.sample
    energies = "the energy of one member, by turns" if config.sample.ensemble == "turns" else "the energy"
    return (
        f"chains of a sampling buffer of {sample.buffer_capacity}, begun from {WORDS[config.chain.base]} by this "
        f"evaluation: {sample.rounds} rounds, each of {min(sample.num_images, sample.batch_size)} of them and "
        f"{sample.num_steps} steps of {config.chain.kernel} under {energies}, the last {sample.quiet_steps} without "
        f"noise; {sample.restart_prob:g} of them restarted and {sample.relabel_prob:g} relabelled in a round; those "
        "that went the most rounds since they began"
    )
