"""The files of an evaluation: evaluation.json and the protocol card, from the same facts."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ebm_jax.evaluators.common import Outcome, Value
from ebm_jax.registry import file_name
from ebm_jax.report.numbers import BETWEEN, shown, with_error
from ebm_jax.types import printable

Table = list[list[str]]
BAR = "\\|"  # a bar in a cell of a Markdown table


class Measured(NamedTuple):
    """One metric of an evaluation."""

    outcome: Outcome
    used: dict[str, str]
    """The samples and sets that went into it, in words."""
    seconds: float


class Evaluation(NamedTuple):
    """All that is known of one evaluation so far."""

    protocol: dict[str, str]
    """Facts that hold for all metrics, in words."""
    measured: dict[str, Measured]
    failed: dict[str, str]
    """The reason for each metric that could not be measured."""


def picture_name(metric: str, picture: str) -> str:
    """The file name of a metric's picture."""
    return f"{file_name(metric)}_{picture}.png"


def as_json(evaluation: Evaluation) -> str:
    """The evaluation as JSON; numbers that JSON cannot write are text: "nan", "inf", "-inf"."""
    metrics = {
        name: {
            "values": {key: _pair(value) for key, value in measured.outcome.values.items()},
            "protocol": measured.used | measured.outcome.protocol,
            "verdicts": list(measured.outcome.verdicts),
            "pictures": [picture_name(name, picture) for picture in measured.outcome.pictures],
            "seconds": round(measured.seconds, 1),
        }
        for name, measured in evaluation.measured.items()
    }
    content = {"protocol": evaluation.protocol, "metrics": metrics, "failed": evaluation.failed}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _pair(value: Value) -> dict[str, Any]:
    return {"value": _plain(value.number), "standard_error": _plain(value.standard_error)}


def _plain(number: float | int | None) -> float | int | str | None:
    return number if number is None or math.isfinite(number) else str(float(number))


def as_card(evaluation: Evaluation) -> str:
    """The protocol card, Markdown: numbers, and with each metric its verdicts and its protocol."""
    parts = ["# Evaluation: numbers and protocol", _facts(evaluation.protocol)]
    for name, measured in evaluation.measured.items():
        outcome = measured.outcome
        parts += [f"## {name}{_warning(measured)}"]
        parts += ["\n".join(f"- **{verdict}**" for verdict in outcome.verdicts)] if outcome.verdicts else []
        parts += map(_markdown, tables(outcome))
        parts += [_facts(measured.used | outcome.protocol | {"time": f"{measured.seconds:.0f} s"})]
        parts += [f"![{picture}]({picture_name(name, picture)})" for picture in outcome.pictures]
    if evaluation.failed:
        parts += ["## Not measured", _facts(evaluation.failed)]
    return printable("\n\n".join(parts) + "\n", but="\n")


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {text}" for name, text in facts.items())


def _markdown(table: Table) -> str:
    rule = ["---"] * len(table[0])
    return "\n".join(
        f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in (table[0], rule, *table[1:])
    )


def title(evaluation: Evaluation, name: str) -> str:
    """The heading of a metric's tables, with a warning if the samples are the training buffer's."""
    return f"{name}{_warning(evaluation.measured[name])}"


def _warning(measured: Measured) -> str:
    return " (TRAINING BUFFER, not fresh chains)" if "BUFFER" in measured.used.get("samples", "") else ""


def tables(outcome: Outcome) -> list[Table]:
    """The values as tables, header first: values named "row / column" in one grid, the others in a list."""
    plain = {name: value for name, value in outcome.values.items() if BETWEEN not in name}
    in_grid = {tuple(name.split(BETWEEN, 1)): value for name, value in outcome.values.items() if BETWEEN in name}
    found: list[Table] = []
    if plain:
        found.append([["value", "", "standard error"], *([name, *shown(*value)] for name, value in plain.items())])
    if in_grid:
        columns, names = (list(dict.fromkeys(key[place] for key in in_grid)) for place in (1, 0))
        cells = [[name, *(_cell(in_grid.get((name, column))) for column in columns)] for name in names]
        found.append([["value ± standard error", *columns], *cells])
    return found


def _cell(value: Value | None) -> str:
    return "" if value is None else with_error(*value)
