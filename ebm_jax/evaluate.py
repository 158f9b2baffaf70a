"""The verb that measures a trained run: numbers, how they came about, and pictures."""

import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ebm_jax import capacity, checks, choices, trained
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import CHECKS, EVALUATORS, card
from ebm_jax.evaluators.card import Evaluation, Measured
from ebm_jax.evaluators.common import Subject, with_split
from ebm_jax.models import energy
from ebm_jax.report import console
from ebm_jax.storage import bucket, provenance
from ebm_jax.storage.workdir import flat, unused, write_atomically
from ebm_jax.types import BadInput, Config, Folder

JSON, CARD = "evaluation.json", "card.md"


def evaluate(config: Config, folder: Folder) -> int:
    """Write evaluation/STEP_N/: evaluation.json, card.md, the protocol card, and pictures. Earlier ones stay.

    What was measured is written after every metric, so that one that fails, or an interrupt, costs no other.

    Raises:
      BadInput: before anything is measured, or at the end, if a metric could not be measured.
    """
    sizes = config.train.batch_size, config.buffer.capacity, config.sample.buffer_capacity
    parallel.split_cpu(config.train.cpu_devices, *sizes)
    mesh = parallel.device_mesh()
    checks.check(config, mesh.size)
    checks.check_evaluation(config, mesh.size)
    capacity.check_evaluation_fits(config)
    names = asked_metrics(config)
    for name in names:
        CHECKS.get(name, lambda config: None)(config)
    for split in dict.fromkeys((config.eval.split, config.eval.reference_split)):
        sources.make_source(with_split(config, split))
    found = trained.restore_ensemble(folder, config, mesh)
    console.warn_skipped(found.skipped)
    step = found.step or 0
    evaluation = Evaluation(_protocol(config, folder, step, energy.num_members(found.params) or 1), {}, {})
    into = unused(folder / "evaluation", f"{step:06d}")
    with console.Pieces(names) as pieces:
        subject = Subject(config, found.params, mesh, step, folder, pieces.note)
        for name in pieces:
            _measure(evaluation, subject, name)
            _write(evaluation, name, folder, into)
    for name, measured in evaluation.measured.items():
        for table in card.tables(measured.outcome):
            console.table(card.title(evaluation, name), table)
    console.say(f"wrote {into / JSON}, the protocol card {into / CARD}, and pictures beside them")
    if evaluation.failed:
        reasons = "; ".join(f"{name} could not be measured: {reason}" for name, reason in evaluation.failed.items())
        raise BadInput(f"{reasons}; all else is in {into}")
    return 0


def asked_metrics(config: Config) -> list[str]:
    """The metrics of `eval.metrics`, each once.

    Raises:
      BadInput: one of them is unknown, or there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in config.eval.metrics.split(",") if name.strip()))
    if not names:
        raise BadInput(f"eval.metrics '{config.eval.metrics}' names none; use some of {', '.join(EVALUATORS)}")
    for name in names:
        choices.among("eval.metrics", name, EVALUATORS)
    return names


def _measure(evaluation: Evaluation, subject: Subject, name: str) -> None:
    """Add what one metric finds, or why it finds nothing."""
    began = time.perf_counter()
    subject.used.clear()
    try:
        outcome = EVALUATORS[name](subject)
    except BadInput as error:
        evaluation.failed[name] = str(error)
        console.warn(f"{name}: {error}")
        return
    seconds = time.perf_counter() - began
    evaluation.measured[name] = Measured(outcome, subject.used_in_words(), seconds)


def _protocol(config: Config, folder: Folder, step: int, members: int) -> dict[str, str]:
    """What holds for all metrics, in words."""
    weights = {"ema": "running mean (EMA) of the weights", "raw": "raw weights of the last step"}
    alone = "one model" if members == 1 else f"an ensemble of {members} members, the mean of their energies"
    if members > 1 and choices.choice(config, "sample.ensemble"):
        alone += ", but for samples, which one member at a time made by turns"
    return {
        "command": _command(config, folder),
        "run": f"{folder}, trained on {config.data.name} {config.data.split}",
        "checkpoint": f"step {step}, {weights[config.sample.weights]}, {alone}",
        "seed": str(config.eval.seed),
        "code": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.devices(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _command(config: Config, folder: Folder) -> str:
    """The command that asks for the same again, with all that differs from the run's own config."""
    own = flat(trained.read_run(folder))
    changes = [f"--config.{key}={value}" for key, value in flat(config).items() if value != own[key]]
    return shlex.join(["python", "run.py", "--mode=evaluate", f"--workdir={folder}", *changes])


def _write(evaluation: Evaluation, name: str, folder: Folder, into: Folder) -> None:
    """The files with all metrics so far, and the pictures of the newest."""
    with bucket.staged(folder) as staged:
        here = staged / into.relative_to(folder).as_posix()
        here.mkdir(parents=True, exist_ok=True)
        for picture, draw in _pictures(evaluation, name).items():
            draw(here / card.picture_name(name, picture))
        write_atomically(here / JSON, card.as_json(evaluation))
        write_atomically(here / CARD, card.as_card(evaluation))


def _pictures(evaluation: Evaluation, name: str) -> dict[str, Callable[[Path], None]]:
    return evaluation.measured[name].outcome.pictures if name in evaluation.measured else {}
