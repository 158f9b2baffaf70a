"""The curves of a run as values to draw: which numbers share a chart, what each means; thinned to what can be seen."""

import math
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from ebm_jax.report.contents import Row
from ebm_jax.report.numbers import Number
from ebm_jax.report.scales import scale_of

POINTS = 1_000  # of a chart at most
DIGITS = 6  # significant ones that a page keeps
MEMBERS = 8  # models of one program that a chart shows beside their mean
NOT_DRAWN = {"step", "stage", "seconds"}


class Chart(NamedTuple):
    """Numbers that share axes."""

    title: str
    meaning: str
    names: tuple[str, ...]


# fmt: off
CHARTS = (
    Chart("Energies", "mean U of training images and of the chains that they are compared with", ("energy_data", "energy_samples", "energy_wrong_label")),
    Chart("Energy gap", "U of data minus U of samples; far below 0: the samples lie far above the data", ("energy_gap",)),
    Chart("Matching error", "1: no better than a constant energy, 0: perfect; near the data: of the images with little noise, a tenth of a batch, so it scatters", ("matching_error", "matching_error_near_data")),
    Chart("Denoising error", "of the score, as the loss weighs it", ("denoising_error",)),
    Chart("Told from noise", "share of points put on the right side, data or noise", ("noise_accuracy",)),
    Chart("Log Z", "the learnt log of the normaliser, nats", ("log_normaliser",)),
    Chart("Classes", "mean probability of the right class of training images", ("class_probability",)),
    Chart("Gradient along chains", "mean length of ∇U where the chains are; 0: the network is dead to them", ("chain_grad_norm",)),
    Chart("Movement of chains", "mean change of a value from start to end of a chain: of a pixel, from 0 to 1, or of a point's coordinate", ("chain_movement",)),
    Chart("Saturated", "share of the chains' values that end on the walls: pixels at exactly 0 or 1", ("saturated",)),
    Chart("Loss", "what the optimiser lowers; of contrastive divergence it need not fall", ("loss", "class_loss")),
    Chart("Gradient of the parameters", "its norm before clipping", ("grad_norm",)),
    Chart("Learning rate", "of the update to each step, as optim.* plans it; a rescue lowers it", ("learning_rate",)),
    Chart("Rate", "training steps a second since the line before, of steps alone: without compiling, pictures and checkpoints", ("steps_per_second",)),
)
JUDGED = (
    Chart("Classifier distance", "of fresh samples to the training images; smaller is better, no FID", ("classifier_distance",)),
    Chart("Classifier score", "from 1 to the number of classes; larger is better", ("classifier_score",)),
    Chart("Class coverage", "1: all classes as often as in the data", ("class_coverage",)),
    Chart("Agreement with the asked class", "share of samples that the classifier gives the class asked for", ("agreement",)),
    Chart("KL(data, model)", "nats, by integration; 0: the model is the data's law", ("kl",)),
    Chart("Negative log-likelihood", "nats, of the data under the model; the best is the data's entropy", ("nll", "entropy")),
)
# fmt: on
LABELS = {
    "energy_data": "data",
    "energy_samples": "samples",
    "energy_wrong_label": "data, wrong label",
    "matching_error": "all noise levels",
    "matching_error_near_data": "near the data",
    "chain_grad_norm": "|∇U|",
    "grad_norm": "norm",
    "class_loss": "of the classes, nats",
    "nll": "model",
    "entropy": "entropy of the data",
}


def label_of(name: str) -> str:
    """The word for a number in a legend."""
    return LABELS.get(name, name.replace("_", " "))


def is_error(name: str, names: Container[str]) -> bool:
    """Whether a number is the standard error of another of these names."""
    return name.endswith("_error") and name.removesuffix("_error") in names


def charts(rows: Sequence[Row], known: Sequence[Chart]) -> list[dict[str, Any]]:
    """The charts of rows, as JSON has them: title, meaning, x (steps), series of a label and y, and their scale.

    The scale is whether it is logarithmic (`log`), its `range`, None for all values, and `beyond`, words on the values
    that lie outside; empty: none do.

    The known charts come first, then one for each other number, marked `more`. Models of one program, NAME_0, NAME_1
    ..., are in the chart of their mean NAME. NAME_error is the standard error of NAME, a band around it.
    """
    rows = by_stage(rows)
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_DRAWN)
    errors = {name for name in names if is_error(name, names)}
    members = {name: _mean_of(name) for name in names if _mean_of(name) in names}
    apart = [name for name in names if name not in members and name not in errors]
    of_known = {name for chart in known for name in chart.names}
    others = [Chart(label_of(name).capitalize(), "", (name,)) for name in apart if name not in of_known]
    found = [
        {**_drawn(rows, chart.names, [name for name in members if members[name] in chart.names], errors),
         "title": chart.title, "meaning": chart.meaning, "more": chart in others}
        for chart in (*known, *others)
        if any(name in names for name in chart.names)
    ]  # fmt: skip
    return [chart for chart in found if chart["x"]]


def overlaid(runs: Mapping[str, Sequence[Row]], known: Sequence[Chart]) -> list[dict[str, Any]]:
    """A chart for each number that a run has, with a series for each run; as `charts`."""
    runs = {run: by_stage(rows) for run, rows in runs.items()}
    titles = {name: chart for chart in known for name in chart.names}
    names = dict.fromkeys(name for rows in runs.values() for row in rows for name in row if name not in NOT_DRAWN)
    errors = {name for name in names if is_error(name, names)}
    order = [name for name in titles if name in names] + [name for name in names if name not in titles]
    return [
        {**_scaled(_one_number(runs, name)), "more": name not in titles, **_title(titles.get(name), name)}
        for name in order
        if name not in errors and _mean_of(name) not in names
    ]


def _title(chart: Chart | None, name: str) -> dict[str, str]:
    if chart is None:
        return {"title": label_of(name).capitalize(), "meaning": ""}
    return {
        "title": chart.title if len(chart.names) == 1 else f"{chart.title}: {label_of(name)}",
        "meaning": chart.meaning,
    }


def _one_number(runs: Mapping[str, Sequence[Row]], name: str) -> dict[str, Any]:
    few = {run: thinned(rows, (name,), max(4, POINTS // len(runs))) for run, rows in runs.items()}
    columns = {run: {row["step"]: _value(row, name) for row in rows} for run, rows in few.items()}
    steps = sorted({step for column in columns.values() for step in column})
    series = [{"label": run, "y": [column.get(step) for step in steps]} for run, column in columns.items()]
    return {"x": [int(step) for step in steps], "series": series}


def _drawn(rows: Sequence[Row], names: Sequence[str], members: Sequence[str], errors: set[str]) -> dict[str, Any]:
    there = [name for name in names if any(name in row for row in rows)]
    few = thinned(_trimmed(rows, there), there, POINTS)
    series = [{"label": label_of(name), "y": [_value(row, name) for row in few]} for name in there]
    for name in members[:MEMBERS]:
        series.append(
            {"label": f"model {name.rpartition('_')[2]}", "y": [_value(row, name) for row in few], "thin": True}
        )
    for one, name in zip(series, there, strict=False):
        if f"{name}_error" in errors:
            one["error"] = [_value(row, f"{name}_error") for row in few]
    return _scaled({"x": [int(row["step"]) for row in few], "series": series})


def _scaled(chart: dict[str, Any]) -> dict[str, Any]:
    """The chart with its vertical scale."""
    steps, series = chart["x"], chart["series"]
    scale = scale_of([one["y"] for one in series])
    words = ""
    if scale.beyond:
        far = max(scale.beyond, key=lambda place: abs(series[place[0]]["y"][place[1]]))
        of_label = f" ({series[far[0]]['label']})" if len(series) > 1 else ""
        farthest = f"{series[far[0]]['y'][far[1]]:.4g} at step {steps[far[1]]:,}{of_label}"
        several = f"{len(scale.beyond)} values lie beyond this scale, ▲, the largest "
        words = f"{several if scale.beyond[1:] else 'One value lies beyond this scale, ▲: '}{farthest}"
    return {**chart, "log": scale.log, "range": scale.range, "beyond": words}


def by_stage(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of a run of several stages, each without the numbers of other stages, which are 0 in all its rows."""
    if not any("stage" in row for row in rows):
        return rows
    seen: dict[str, set[Number]] = {}  # by number, the stages in which it is not always 0
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, set()).update({row.get("stage", 0.0)} if value != 0 else ())
    return [
        {
            name: value
            for name, value in row.items()
            if value != 0 or not seen[name] or row.get("stage", 0.0) in seen[name]
        }
        for row in rows
    ]


def _trimmed(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows from the first to the last that have one of the numbers."""

    def has_one(index: int) -> bool:
        return any(math.isfinite(rows[index].get(name, math.nan)) for name in names)

    first = next(filter(has_one, range(len(rows))), None)
    last = next(filter(has_one, reversed(range(len(rows)))), None)
    return [] if first is None or last is None else list(rows[first : last + 1])


def thinned(rows: Sequence[Row], names: Sequence[str], points: int) -> list[Row]:
    """At most about `points` of the rows, in order: of equal stretches, those where a number is smallest or largest.

    So no peak is lost. The first and the last row stay.
    """
    if len(rows) <= points:
        return list(rows)
    stretches = max(1, points // (2 * max(1, len(names))) - 1)
    kept = {0, len(rows) - 1}
    for stretch in range(stretches):
        inside = range(len(rows) * stretch // stretches, len(rows) * (stretch + 1) // stretches)
        for name in names:
            numbers = [(rows[index][name], index) for index in inside if math.isfinite(rows[index].get(name, math.nan))]
            if numbers:
                kept |= {min(numbers)[1], max(numbers)[1]}
    return [rows[index] for index in sorted(kept)]


def _value(row: Row, name: str) -> float | None:
    """A number as the page keeps it; None where there is none."""
    value = row.get(name, math.nan)
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _mean_of(name: str) -> str:
    """The name of the mean that the number of one model belongs to; empty if it is no such number."""
    match = re.fullmatch(r"(.+)_\d+", name)
    return match[1] if match else ""
