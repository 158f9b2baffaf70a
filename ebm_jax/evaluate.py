"""The verb that measures a trained run and writes numbers, their protocol, and pictures."""

import contextlib
import math
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebm_jax import capacity, checks, evaluators, identity, invocation, opening, schema
from ebm_jax.data import found
from ebm_jax.data.memory import Dataset
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import card, samples
from ebm_jax.evaluators.card import Evaluation, Measured
from ebm_jax.evaluators.common import SAMPLES, Evaluator, Evidence, Needs, described
from ebm_jax.models import energy
from ebm_jax.publishing import ORDERING
from ebm_jax.report import bars, console, meanings, numbers, progress, rewriting, trackers
from ebm_jax.schema import flat
from ebm_jax.storage import bucket, provenance, workdir
from ebm_jax.storage.workdir import unused
from ebm_jax.storage.writing import require_no_links, write_atomically
from ebm_jax.trained import Note, TrainedRun
from ebm_jax.types import BadInput, Config, Folder

JSON, CARD = "evaluation.json", "card.md"


def evaluate(config: Config, folder: str | Folder) -> int:
    """Write evaluation/STEP_N/: evaluation.json, the protocol card card.md, and pictures. Earlier evaluations stay.

    It writes after every metric, so that a metric that fails, or an interrupt, costs no other metric.

    Returns:
      The exit status 0.

    Raises:
      BadInput: before anything is measured, if the run or the config cannot be used; at the end, if a metric could not
        be measured.
    """
    folder = bucket.folder_of(folder)
    sizes = config.train.batch_size, config.buffer.capacity, config.sample.buffer_capacity
    parallel.split_cpu(config.train.cpu_devices, *sizes)
    mesh = parallel.device_mesh()
    checks.check(config, mesh.size)
    require_no_links(folder)
    config = opening.with_numbers(config, folder)
    evaluators.check(config, mesh.size)
    capacity.check_evaluation_fits(config)
    evaluators.check_metrics(config)
    keys = {config.eval.reference_split: "eval.reference_split", config.eval.split: "eval.split"}
    with progress.Board(f"evaluating {folder}"):
        for split, key in keys.items():
            with progress.phase(f"finding the split {split}"), bars.as_notes():
                images = identity.source_of(folder, config, split, key)
            evaluators.check_data(config, images.num_classes)
            console.say(found.line(found.record_of(images, config.data.source, split, digest=False)))
        run = opening.open_run(folder, config, mesh)
        console.warn_skipped(run.skipped)
        evaluation, metrics = Evaluation(_protocol(run), {}, {}), evaluators.evaluators_of(config)
        into = unused(folder / "evaluation", f"{run.step:06d}")
        made: dict[Any, Any] = {}  # the samples, splits by name, and measurements that metrics share, by function
        for number, (name, evaluator) in enumerate(metrics.items(), start=1):
            with progress.phase(f"evaluating {name}, {number} of {len(metrics)}"):
                _measure(evaluation, run, name, evaluator, made, progress.note)
                _write(evaluation, name, folder, into)
        told = _tell(evaluation, config.log.trackers, folder, into, run.step) if evaluation.measured else []
    if config.log.report:
        rewriting.write(folder)
    for name, measured in evaluation.measured.items():
        for table in card.tables(measured.outcome):
            console.table(card.title(evaluation, name), table)
        for verdict in measured.outcome.verdicts:
            console.say(f"  {name}: {verdict}")
    drawn = [card.picture_name(name, picture) for name in metrics for picture in _pictures(evaluation, name)]
    console.say_written(*(into / name for name in (CARD, JSON, *drawn)))
    if told:
        console.say(f"told {' and '.join(told)}: {trackers.point_name('METRIC', 'NUMBER')} at step {run.step:,}")
    if evaluation.failed:
        reasons = "; ".join(f"{name} could not be measured: {reason}" for name, reason in evaluation.failed.items())
        raise BadInput(f"{reasons}; all else is in {into}")
    console.say(console.next_command("take the model elsewhere", folder, "export"))
    return 0


def _measure(
    evaluation: Evaluation, run: TrainedRun, name: str, evaluator: Evaluator, made: dict[Any, Any], note: Note
) -> None:
    """Add one metric's outcome, or why it has none; add to `made` what no metric before it needed."""
    began = time.perf_counter()
    try:
        needs = evaluator.needed(run.config)
        evidence = gathered(run, evaluator, needs, made, note)
        outcome = evaluator.measure(run, evidence)
    except BadInput as error:
        evaluation.failed[name] = str(error)
        console.warn(f"{name}: {error}")
        return
    seconds = time.perf_counter() - began
    evaluation.measured[name] = Measured(outcome, used_in_words(run.config, evidence, needs), seconds)


def gathered(
    run: TrainedRun, evaluator: Evaluator, needs: Needs, made: dict[Any, Any], note: Note = lambda words: None
) -> Evidence:
    """What an evaluator needs, from `made`; make what is missing there and add it."""

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    def read(split: str) -> Dataset:
        note(f"reading {run.config.data.name} {split}")
        return run.data(split)

    drawn = once(SAMPLES, lambda: samples.draw(run, note)) if SAMPLES in needs else None
    splits = {key: schema.value_of(run.config, key) for key in needs if key != SAMPLES}
    data = {key: once(("split", split), lambda split=split: read(split)) for key, split in splits.items()}
    evidence = Evidence(data, drawn, None, note)
    if evaluator.shared is None:
        return evidence
    share = evaluator.shared
    return evidence._replace(shared=once(share, lambda: share(run, evidence)))


def used_in_words(config: Config, evidence: Evidence, needs: Needs) -> dict[str, str]:
    """The samples and sets that went into a metric, in words for a protocol."""
    used = {}
    if SAMPLES in needs:
        used["samples"] = f"{len(evidence.samples.images):,}, {evidence.samples.origin}"
    images = {schema.value_of(config, key): dataset.images for key, dataset in evidence.data.items()}
    return used | {f"split {split}": described(config, split, images[split]) for split in sorted(images)}


def _protocol(run: TrainedRun) -> dict[str, str]:
    """The facts that hold for all metrics, in words."""
    config, folder, members = run.config, run.folder, energy.num_members(run.params) or 1
    weights = {"ema": "running mean (EMA) of the weights", "raw": "raw weights of the last step"}
    best = ", the best by eval.during" if config.sample.checkpoint == "best" else ""
    alone = "one model" if members == 1 else f"an ensemble of {members} members, the mean of their energies"
    if members > 1 and config.sample.ensemble == "turns":
        alone += ", but for samples, which one member at a time made by turns"
    return {
        "command": _command(config, folder),
        "run": f"{folder}, trained on {config.data.name} {config.data.split}",
        **({"classes": found.numbered_names(run.class_names)} if run.class_names else {}),
        **({} if checks.is_density(config) else {"energy": ORDERING}),
        "checkpoint": f"step {run.step}{best}, {weights[config.sample.weights]}, {alone}",
        "seed": str(config.eval.seed),
        "code": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.devices(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _command(config: Config, folder: Folder) -> str:
    """The command that repeats this evaluation, with every value that differs from the run's own config."""
    own = flat(workdir.read_config(folder))
    changes = [f"--config.{key}={value}" for key, value in flat(config).items() if value != own[key]]
    return shlex.join([*invocation.portable(), "--mode=evaluate", f"--workdir={folder}", *changes])


def _write(evaluation: Evaluation, name: str, folder: Folder, into: Folder) -> None:
    """Write the files with all metrics so far, and the pictures of metric `name`."""
    with bucket.staged(folder) as staged:
        here = staged / into.relative_to(folder).as_posix()
        here.mkdir(parents=True, exist_ok=True)
        for picture, draw in _pictures(evaluation, name).items():
            draw(here / card.picture_name(name, picture))
        write_atomically(here / JSON, card.as_json(evaluation))
        write_atomically(here / CARD, card.as_card(evaluation))


def _tell(evaluation: Evaluation, names: str, folder: Folder, into: Folder, step: int) -> list[str]:
    """Tell the run's trackers the numbers, pictures and card, and return whom; one that fails costs a line."""
    told: list[str] = []
    mirror = bucket.Mirror(folder, (trackers.IDENTITIES,))
    for name in trackers.asked(names):
        try:
            with progress.phase(f"telling {name} the evaluation"):
                _tell_one(trackers.of_evaluation(name, mirror.local, into.name), evaluation, into, step)
            told.append(name)
        except Exception as error:  # whatever its package or server raises: the evaluation is whole without it
            reason = bucket.reason(error)
            console.warn(f"{name} is not told this evaluation ({type(error).__name__}: {reason}); all else is written")
    if failure := mirror.close():
        console.warn(failure)
    return told


def _tell_one(tracker: trackers.Tracker, evaluation: Evaluation, into: Folder, step: int) -> None:
    with contextlib.closing(tracker):
        for metric, measured in evaluation.measured.items():
            for key, value in measured.outcome.values.items():
                if math.isfinite(value.number):  # no tracker can draw another
                    name = trackers.point_name(metric, *key.split(numbers.BETWEEN))
                    tracker.add_scalar(
                        name, float(value.number), step, f"{key}: {meanings.meaning_of(key)}".rstrip(": ")
                    )
            for picture in measured.outcome.pictures:
                with (into / card.picture_name(metric, picture)).open("rb") as file:
                    drawn = np.asarray(Image.open(file).convert("RGB"))
                caption = " ".join(measured.outcome.verdicts)
                tracker.add_image(trackers.point_name(metric, picture), drawn, step, caption)
        tracker.add_text(trackers.point_name("card"), card.as_card(evaluation), step)


def _pictures(evaluation: Evaluation, name: str) -> dict[str, Callable[[Path], None]]:
    return evaluation.measured[name].outcome.pictures if name in evaluation.measured else {}
