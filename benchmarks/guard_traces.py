"""Replays logged runs under the guard's judge and prints, for each kind of run, what it would have done.

    python -m benchmarks.guard_traces FOLDER ... [--runs] [--before] [--set guard.patience=5 ...]

A folder holds logs. NAME.json has `name`, `seed`, `rows` (each step's metrics), `healthy` (if missing: whether the
name does not begin with "div"), `untrained` (the largest |mean U| of the untrained network; if missing: twice that of
the first step's data, since white images are about twice as bright as most), and `energy_l2` and `grad_unit` or the
`limits` of the guard before. A *.jsonl file is the metrics.jsonl of a run, beside its config.json. Another log begins
where its steps go back after a rescue, or where `rescue` changes in rows that count steps as `n`.

A log is replayed in one piece: a run would judge anew after each checkpoint, and go back after an alarm. The keys
`guard.*` are those of configs/default.py but for `--set`. `--before` judges as commit c7accf1 did.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebm_jax import chains, program, schema
from ebm_jax.methods.contrastive import healthy
from ebm_jax.methods.method import Limits
from ebm_jax.storage.workdir import read_config
from ebm_jax.training import guard

JUDGED = ("energy_data", "energy_samples", "energy_gap", "chain_grad_norm", "non_finite")
BEFORE = {"guard.max_separation": 0.5, "guard.max_of_untrained": 0.0, "guard.patience": 5, "guard.window": 0}
BEFORE |= {"guard.at_once": math.inf}
FINE = 1e-9  # limits so much narrower are left by every step, and tell how near it is to the limits


class Log(NamedTuple):
    """A logged run."""

    kind: str
    seed: int
    healthy: bool
    energy_l2: float
    grad_unit: float
    untrained: float
    rows: Sequence[Mapping[str, np.ndarray]]


class Verdict(NamedTuple):
    """What the judge says of a log; steps are 0 if there are none."""

    first_outside: int
    alarm: int
    words: str
    fraction: float
    """The largest fraction of a limit that the log reaches."""
    energy: float
    """The largest |mean U|, in units of 1/(2λ)."""


def read(folder: Path) -> Iterator[Log]:
    """All logs of a folder and of the folders in it."""
    for path in sorted(folder.rglob("*.json")):
        if "rows" in (found := json.loads(path.read_text())):
            yield _of_json(found)
    for path in sorted(folder.rglob("*.jsonl")):
        yield from _of_run(path)


def _of_json(found: dict[str, Any]) -> Log:
    rows = [metrics_of(row) for row in found["rows"]]
    if "limits" in found:
        _, separation, (_, most), _ = found["limits"]
        energy_l2, grad_unit = 0.5 / separation, most / 2
    else:
        energy_l2, grad_unit = found["energy_l2"], found["grad_unit"]
    is_healthy = found["healthy"] if "healthy" in found else not found["name"].startswith("div")
    untrained = found["untrained"] if "untrained" in found else 2 * abs(float(rows[0]["energy_data"]))
    return Log(found["name"], found["seed"], is_healthy, energy_l2, grad_unit, untrained, rows)


def _of_run(path: Path) -> Iterator[Log]:
    config, parts, before = read_config(path.parent), [], (0, 0)
    for row in map(json.loads, path.read_text().splitlines()):
        if "event" in row:
            continue
        place = (row["rescue"], row["n"]) if "rescue" in row else (0, row["step"])
        if not parts or place[0] != before[0] or place[1] <= before[1]:
            parts.append([])
        parts[-1].append(metrics_of(row))
        before = place
    unit = math.sqrt(math.prod(config.data.shape)) / chains.equivalent_step_size(config)
    energy_l2, untrained = max(config.loss.energy_l2, config.guard.least_energy_l2), program.untrained_energy(config)
    for rescue, part in enumerate(parts):
        yield Log(f"{path.parent.name}, a whole run", rescue, True, energy_l2, unit, untrained, part)


def metrics_of(row: dict[str, float]) -> dict[str, np.ndarray]:
    """The metrics of a row that the guard judges."""
    return {name: np.asarray(row[name], np.float64) for name in JUDGED}


def limits_of(log: Log, config: Any, *, before: bool) -> Limits:
    """The limits of a log under the config's `guard.*`."""
    keys = config.guard
    ranges = healthy(
        energy=keys.max_energy / (2 * log.energy_l2),
        of_untrained=keys.max_of_untrained,
        separation=keys.max_separation / log.energy_l2,
        chain_grad=(keys.min_chain_grad * log.grad_unit, keys.max_chain_grad * log.grad_unit),
    )
    if before:
        ranges = tuple(one._replace(followed=(-math.inf, math.inf)) for one in ranges)
    return guard.widened(Limits(ranges, keys.patience, keys.window, keys.at_once), log.untrained)


def replayed(log: Log, limits: Limits) -> Verdict:
    """Judge all steps of a log."""
    fine = tuple(
        one._replace(least=FINE * one.least if one.least < 0 else -math.inf, most=FINE * one.most)
        for one in limits.ranges
    )
    health = near = guard.HEALTHY
    first, alarm, words, fraction = 0, 0, "", 0.0
    for step, metrics in enumerate(log.rows, 1):
        near, _ = guard.judge(near, metrics, Limits(fine))
        fraction = max(fraction, FINE * near.symptom.times if near.symptom else 0.0)
        health, illness = guard.judge(health, metrics, limits)
        first = first or (step if health.symptom else 0)
        if illness and not alarm:
            alarm, words = step, illness
    energy = max(abs(float(row[name])) for row in log.rows for name in ("energy_data", "energy_samples"))
    return Verdict(first, alarm, words, fraction, energy * 2 * log.energy_l2)


def line(kind: str, verdicts: list[Verdict], *, is_healthy: bool) -> str:
    """A row of the table: a kind of run."""
    alarms = sorted(one.alarm for one in verdicts if one.alarm)
    outside = sum(one.first_outside > 0 for one in verdicts)
    steps = ", ".join(map(str, alarms)) if alarms else "-"
    low, high = min(one.energy for one in verdicts), max(one.energy for one in verdicts)
    fraction = max(one.fraction for one in verdicts)
    word = "healthy" if is_healthy else "made ill"
    return (
        f"| {kind} | {word} | {len(verdicts)} | {low:.2g} to {high:.2g} | {fraction:.2g} | {outside} | {len(alarms)} "
        f"| {steps} |"
    )


def main() -> None:
    """Print the table, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--runs", action="store_true", help="also each run")
    parser.add_argument("--before", action="store_true", help="judge as commit c7accf1")
    parser.add_argument("--set", nargs="*", default=[], metavar="guard.KEY=VALUE")
    words = parser.parse_args()
    given = {key: json.loads(value) for key, _, value in (one.partition("=") for one in words.set)}
    config = schema.with_values(schema.default_config(), (BEFORE if words.before else {}) | given)
    kinds: dict[tuple[str, bool], list[Verdict]] = {}
    for log in [log for folder in words.folders for log in read(folder)]:
        verdict = replayed(log, limits_of(log, config, before=words.before))
        kinds.setdefault((log.kind, log.healthy), []).append(verdict)
        if words.runs:
            print(f"{log.kind} {log.seed}: {len(log.rows)} steps, {verdict}")
    print("| kind | | runs | largest mean U, in 1/(2λ) | of a limit | outside | alarms | at step |")
    print("|---|---|---|---|---|---|---|---|")
    for (kind, is_healthy), verdicts in kinds.items():
        print(line(kind, verdicts, is_healthy=is_healthy))
    for which, name in ((True, "healthy"), (False, "made ill")):
        chosen = [one for (_, is_healthy), verdicts in kinds.items() if is_healthy == which for one in verdicts]
        print(f"{name}: {sum(one.alarm > 0 for one in chosen)} alarms in {len(chosen)} runs")


if __name__ == "__main__":
    main()
