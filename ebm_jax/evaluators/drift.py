"""Where long chains go: the classifier distance after more and more steps of training's kernel, from fresh samples."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from ebm_jax import assemble, chains
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.classifier import Referee, evenly_spaced, require_enough, see
from ebm_jax.evaluators.common import Evidence, Outcome, Value, key_of
from ebm_jax.kinds import CHAIN_STEPS, shown
from ebm_jax.models import energy
from ebm_jax.pixels import quantised
from ebm_jax.report import pictures
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config, Images, Labels, Params, PRNGKey

NAME, KEY = "drift", "eval.drift.steps"
DRIFT = 33  # this evaluator's number in `key_of`
SHOWN = 64  # chains in a picture


def check(config: Config) -> None:
    """Refuse lengths that are none, starts that are not fresh, and too few samples.

    Raises:
      BadInput: with the key, its value and what to do.
    """
    lengths_of(config)
    if config.eval.samples != "fresh":
        raise BadInput(f"{NAME} follows chains from fresh samples; use eval.samples=fresh, not {config.eval.samples}")
    require_enough(NAME, "eval.num_samples", config.eval.num_samples)


def lengths_of(config: Config) -> list[int]:
    """The lengths of `eval.drift.steps` in ascending order, each once.

    Raises:
      BadInput: there is none, or one is no whole number in the range of chain steps.
    """
    text = config.eval.drift.steps
    try:
        lengths = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise BadInput(
            f"{KEY} {shown(text)} is no list of whole numbers; use steps apart by commas, such as 100,400"
        ) from None
    for length in lengths:
        CHAIN_STEPS.check(KEY, length)
    return lengths


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """Whether chains stay where samples are: distances after more chain steps.

    Raises:
      BadInput: as `evaluators.classifier.see`; or chains leave the finite numbers.
    """
    config, found, unseen = run.config, evidence.shared, evidence.data["eval.split"]
    lengths, values, grids = [0, *lengths_of(config)], {}, {}
    row = partial(_row, found, num_groups=config.eval.splits, note=evidence.note)
    for length, images in zip(lengths, _positions(run, evidence, lengths), strict=True):
        values |= row(images, f"after {length:,} steps")
        grids[f"after_{length}_steps"] = partial(
            _draw,
            images=images[:SHOWN],
            captions=run.names_of(evidence.samples.labels[:SHOWN]),
            title=run.title(f"samples after {length:,} more steps of training's chain", evidence.samples.origin),
        )
    rows = evenly_spaced(len(unseen.images), config.eval.num_samples)
    values |= row(unseen.images[rows], f"{config.eval.split} images")
    chain = config.chain
    protocol = found.protocol | {
        "chains": f"the samples go on by {chain.kernel} with step size {chain.step_size:g}, as in training, at the "
        f"constant temperature {chain.temperature:g}, no step without noise, under the labels that they have",
        "meaning": "chains that sample the model's law and began in it keep their distance; a distance that grows "
        "with the steps is a law that differs from what the sampler shows",
    }
    begin, end, real = (
        values[f"{row} / classifier distance"]
        for row in ("after 0 steps", f"after {lengths[-1]:,} steps", f"{config.eval.split} images")
    )
    return Outcome(values, protocol, grids, (verdicts.drift(begin, end, lengths[-1], real),))


def _row(found: Referee, images: np.ndarray, name: str, num_groups: int, note: Note) -> dict[str, Value]:
    return {f"{name} / {column}": value for column, value in see(found, images, num_groups, note, name).values.items()}


def _positions(run: TrainedRun, evidence: Evidence, lengths: list[int]) -> Iterator[np.ndarray]:
    """The chains, uint8 [n, h, w, c], at each of the ascending lengths; the first length is 0, where they begin.

    Raises:
      BadInput: a value is not finite.
    """
    each = math.gcd(*lengths)
    begin, go_on = _chain(run, each)
    key, total = key_of(run.config, DRIFT), len(evidence.samples.images)
    images, labels = _batches(run, evidence.samples.images), _batches(run, evidence.samples.labels)
    states = [begin(run.params, *of_batch) for of_batch in zip(images, labels, strict=True)]
    done = 0
    evidence.note(f"compiling, and the first {each:,} of {lengths[-1]:,} steps")
    for length in lengths:
        for call in range(done // each, length // each):
            keys = jax.random.split(jax.random.fold_in(key, call), len(states))
            states = [go_on(run.params, *now) for now in zip(keys, states, labels, strict=True)]
            evidence.note(f"step {(call + 1) * each:,} of {lengths[-1]:,}")
        done = length
        found = np.concatenate([parallel.on_host(state.x) for state in states])[:total]
        if not np.isfinite(found).all():
            raise BadInput(f"after {length:,} steps chains are not finite; lower chain.step_size or chain.temperature")
        yield quantised(found)


def _batches(run: TrainedRun, rows: np.ndarray) -> list[Any]:
    """Rows [n, ...] in batches of `eval.batch_size`, over all devices; the last batch repeats the last row."""
    size = -(-min(run.config.eval.batch_size, len(rows)) // run.mesh.size) * run.mesh.size
    places = np.minimum(np.arange(-(-len(rows) // size) * size), len(rows) - 1).reshape(-1, size)
    return [parallel.place_batch(run.mesh, rows[of_batch]) for of_batch in places]


def _chain(run: TrainedRun, num_steps: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The compiled (params, images, labels) -> state, and (params, key, state, labels) -> state after `num_steps`."""
    config = run.config
    apply, kernel = (
        energy.of_members(assemble.make_apply(config)),
        chains.make_kernel(config, config.chain.temperature),
    )

    def begin(params: Params, images: Images, labels: Labels) -> Any:
        return kernel.init(images, energy.bind(apply, params, labels))

    def go_on(params: Params, key: PRNGKey, state: Any, labels: Labels) -> Any:
        energy_fn = energy.bind(apply, params, labels)

        def body(state: Any, key: PRNGKey) -> tuple[Any, None]:
            return kernel.step(key, state, energy_fn)[0], None

        return lax.scan(body, state, jax.random.split(key, num_steps))[0]

    return jax.jit(begin), jax.jit(go_on)


def _draw(path: Path, images: np.ndarray, captions: list[str], title: str) -> None:
    pictures.write_grid(path, images / np.float32(255), captions, title=title)
