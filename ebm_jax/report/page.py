"""The page of a run, report.html: one file that opens anywhere, offline, made of what lies in the run's folder."""

import base64
import json
import math
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ebm_jax import invocation, schema
from ebm_jax.kinds import SOFT, printable
from ebm_jax.paths import Folder
from ebm_jax.report import contents, curves, meanings, rates, tiles
from ebm_jax.report.console import command
from ebm_jax.report.contents import Contents, Evaluated, Metric, Picture
from ebm_jax.report.numbers import BETWEEN, Number, shown, with_error
from ebm_jax.storage import bucket
from ebm_jax.storage.writing import write_atomically
from ebm_jax.version import VERSION

NAME = "report.html"
MARK = '<meta name="generator" content="ebm_jax">'  # in the template
ASSETS = Path(__file__).parent / "assets"
LARGEST = 10_000_000  # bytes of a page
CLASSES, OF_A_CLASS = 200, 16  # classes that a page shows, and samples of each, at most
SAMPLINGS = 12  # pictures of samplings at most, the newest
RATES = 10  # newest lines of metrics whose median rate tells the time left
EVENTS = 200  # newest events that a page lists and marks
LONGEST = 4_000  # letters of a text from a file
LAST = {  # numbers of the last line of metrics that stand beside the state
    "energy_data": "U of data",
    "energy_samples": "U of samples",
    "energy_gap": "energy gap",
    "chain_grad_norm": "chain |∇U|",
    "matching_error": "matching error",
    "noise_accuracy": "told from noise",
    "loss": "loss",
}
Page = dict[str, Any]
"""What page.js draws, as JSON has it."""


def write(folder: Folder, place: Folder | None = None) -> Folder:
    """Make the page of a run anew; return its path. `place` as for `contents.read`.

    Raises:
      BadInput: the folder holds nothing of a run.
      OSError: the page cannot be written.
    """
    path = folder / NAME
    write_atomically(path, html(of_run(contents.read(folder, place))))
    return path


def html(page: Page) -> str:
    """The page as one text: template, style, program, plotting library and values, with no other file."""
    parts = {
        "TITLE": _escaped(page["title"]),
        "VALUES": _as_script(page),
        "PLOT.CSS": _asset("uPlot.min.css"),
        "PAGE.CSS": _asset("page.css"),
        "PLOT.JS": _asset("uPlot.iife.min.js"),
        "PAGE.JS": _asset("page.js"),
    }
    return re.sub(r"\{\{([A-Z.]+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def of_run(run: Contents, largest: int = LARGEST) -> Page:
    """All that the page of a run shows.

    Args:
      largest: bytes of the whole page, about; pictures that have no room are left out and named, those in the middle of
        training first.
    """
    page = {
        "kind": "run",
        **_head(run.place.name or str(run.place)),
        "state": _state(run),
        "charts": curves.charts(rates.with_rate(run), curves.CHARTS),
        "judged": curves.charts(run.judged, curves.JUDGED),
        "unchosen": _unchosen(run),
        "events": _events(run),
        "config": _config_rows(run),
        "data": _data_rows(run.data),
        "versions": _versions(run),
        "commands": _commands(run),
        "damaged": [_cut(words) for words in run.damaged],
    }
    fixed = len(html(page | {"pictures": [], "samples": [], "evaluations": []}).encode())
    album = _Album(run.folder, largest - fixed - _size_of_evaluations(run))
    newest = {name: album.take(list(steps.values())[-1]) for name, steps in run.images.items()}
    evaluations = [_evaluation(run, one, album) for one in run.evaluations[:1]]
    page["samples"] = _samples(run, album)
    page["pictures"] = [
        _series(name, steps, newest[name], album, 1 / (len(run.images) - number))
        for number, (name, steps) in enumerate(run.images.items())
    ]
    page["by_class"] = _by_class(run, page["samples"], page["pictures"])
    page["evaluations"] = evaluations + [_evaluation(run, one, album) for one in run.evaluations[1:]]
    page["left_out"] = album.left_out
    return page


def of_runs(runs: Sequence[Contents], largest: int = LARGEST) -> Page:
    """All that the page shows which compares several runs; as `of_run`."""
    names = names_of([run.place for run in runs])
    of_name = dict(zip(names, runs, strict=True))
    page = {
        "kind": "comparison",
        **_head(", ".join(names)),
        "runs": [{"name": name, "folder": _folder(run.place), "state": _state(run)} for name, run in of_name.items()],
        "charts": curves.overlaid({name: rates.with_rate(run) for name, run in of_name.items()}, curves.CHARTS),
        "judged": curves.overlaid({name: run.judged for name, run in of_name.items()}, curves.JUDGED),
        "events": [],
        "config": _differences(of_name),
        "metrics": _metrics_beside(of_name),
        "damaged": [_cut(f"{name}: {words}") for name, run in of_name.items() for words in run.damaged],
    }
    room = (largest - len(html(page | {"beside": []}).encode())) // len(runs)
    albums = {name: _Album(run.folder, room) for name, run in of_name.items()}
    page["beside"] = [_newest_pictures(name, run, albums[name]) for name, run in of_name.items()]
    page["left_out"] = [f"{name}: {path}" for name, album in albums.items() for path in album.left_out]
    return page


def names_of(folders: Sequence[Folder]) -> list[str]:
    """A short name for each folder, no two alike."""
    short = [folder.name for folder in folders]
    long = [str(folder) for folder in folders]
    names = [one if one and short.count(one) == 1 else other for one, other in zip(short, long, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


class _Album:
    """Takes pictures into a page as long as there is room, and keeps the paths of those left out."""

    def __init__(self, folder: Folder, room: int) -> None:
        self._folder, self._room = folder, room
        self.left_out: list[str] = []

    def take(self, picture: Picture | None) -> str | None:
        """The picture as a data URI; None if there is none, it cannot be read, or there is no room."""
        if picture is None:
            return None
        if self._cost(picture.size) > self._room:
            self.left_out.append(picture.path)
            return None
        content = contents.picture_bytes(self._folder, picture)
        if content is None or self._cost(len(content)) > self._room:
            return None
        self._room -= self._cost(len(content))
        kind = "gif" if content.startswith(b"GIF") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def several(self, pictures: Mapping[int, Picture], share: float) -> dict[int, str]:
        """As many of a series as this share of the room holds, evenly spaced; by step."""
        steps = list(pictures)
        costs = {step: self._cost(picture.size) for step, picture in pictures.items()}
        strides = (steps[::stride] for stride in range(1, len(steps) + 1))
        kept = next((some for some in strides if sum(costs[step] for step in some) <= share * self._room), [])
        self.left_out += [pictures[step].path for step in steps if step not in kept]
        taken = {step: self.take(pictures[step]) for step in kept}
        return {step: source for step, source in taken.items() if source}

    @staticmethod
    def _cost(size: int) -> int:
        return 4 * (-(-size // 3)) + 64


def _head(title: str) -> Page:
    return {"title": _cut(title), "made": time.time(), "version": VERSION}


def _state(run: Contents) -> Page:
    """How far the run is, in numbers; what is not known is None."""
    first_stage = 0 if run.config is None else int(run.config.method.then.after)
    alike = [row for row in run.rows[-RATES:] if (row["step"] > first_stage) == (run.step > first_stage)]
    rates = [row["steps_per_second"] for row in alike if row.get("steps_per_second", 0.0) > 0]
    rate = statistics.median(rates) if rates else None
    seconds = [row["seconds"] for row in run.rows if math.isfinite(row.get("seconds", math.nan))]
    ends = [one for one, after in zip(seconds, [*seconds[1:], 0.0], strict=False) if after < one]  # of each going on
    steps = [row["step"] for row in run.rows]
    last = curves.by_stage(run.rows)[-1] if run.rows else {}
    staged = run.num_steps is not None and run.step < first_stage < run.num_steps
    end = first_stage if staged else run.num_steps
    left = None if end is None else max(0, end - run.step)
    return {
        "step": run.step,
        "steps": run.num_steps,
        "left": left / rate if left and rate and math.isfinite(rate) else None,
        "left_of": "of the first stage" if staged else "",
        "rate": _finite(rate),
        "seconds": sum(ends) if ends else None,
        "every": (steps[-1] - steps[-2]) / rate if len(steps) > 1 and rate else None,
        "checkpoint": run.checkpoints[0] if run.checkpoints else None,
        "written": run.last_written,
        "last": [[words, shown(last[name])[0]] for name, words in LAST.items() if name in last],
    }


def _events(run: Contents) -> list[Page]:
    """The newest events; the guard's begin with their step, which has a column of its own."""
    return [
        {"step": event.step, "text": _cut(event.text.removeprefix(f"step {event.step}: "))}
        for event in run.events[-EVENTS:]
    ]


def _unchosen(run: Contents) -> str:
    """Why the samples of training differ from those that --mode=sample writes, in words; empty: they do not."""
    keep = 1.0 if run.config is None else float(run.config.sample.keep)
    return (
        f"All samples of training, where --mode=sample and --mode=evaluate keep {keep:.0%} (sample.keep): choosing is "
        "no part of what is trained."
        if keep < 1
        else ""
    )


def _series(name: str, steps: Mapping[int, Picture], newest: str | None, album: _Album, share: float) -> Page:
    """The pictures of one name through training, the newest last; those before it take this share of the room."""
    *before, last = steps
    taken = album.several({step: steps[step] for step in before}, share)
    frames = [{"step": step, "source": source} for step, source in taken.items()]
    return {
        "name": name,
        "frames": frames + ([{"step": last, "source": newest}] if newest else []),
        "of": len(steps),
    }


def _samples(run: Contents, album: _Album) -> list[Page]:
    """The newest samplings: of each task the newest first, then others."""
    first = list({one.task: one for one in reversed(run.samples)}.values())
    others = [one for one in run.samples if one not in first]
    chosen = [*sorted(first, key=run.samples.index), *others][:SAMPLINGS]
    return [
        {
            "title": f"{one.task.replace('_', ' ')}, step {one.step:,}",
            "task": one.task,
            "step": one.step,
            "path": (one.png or one.gif or Picture("", 0)).path,
            "film": album.take(one.gif),
            "source": album.take(one.png),
        }
        for one in chosen
    ]


def _by_class(run: Contents, samples: Sequence[Page], series: Sequence[Page]) -> Page | None:
    """The images of the newest grid of samples that is on the page, by their classes; None for a run without classes.

    The images stay in the grid's own picture, `place` in the page, and page.js cuts them out. Without a grid that tells
    classes, as those of earlier versions, `place` is empty, and a command makes one.
    """
    config = run.config
    if config is None or config.model.num_classes == 1 or config.data.condition in SOFT:
        return None
    grids = [
        (one["step"], 1, one["path"], ("samples", number, "source"))
        for number, one in enumerate(samples)
        if one["task"] == "generate" and one["source"]
    ] + [
        (shown["frames"][-1]["step"], 0, f"{contents.IMAGES}/chains_{shown['frames'][-1]['step']:06d}.png",
         ("pictures", number, "frames", len(shown["frames"]) - 1, "source"))
        for number, shown in enumerate(series)
        if shown["name"] == "chains" and shown["frames"]
    ]  # fmt: skip
    for step, _, path, place in sorted(grids, reverse=True):
        content = contents.picture_bytes(run.folder, Picture(path, 0))
        found = tiles.inside(content) if content else None
        if found and len(of_class := _places(found.classes)) > 1:
            rows = [[_cut(name), places[:OF_A_CLASS]] for name, places in list(of_class.items())[:CLASSES]]
            return {**found._asdict(), "classes": rows, "place": place, "path": path, "step": step}
    number = min(10 * config.model.num_classes, 1_000)
    words = "--mode=sample", f"--workdir={_folder(run.place)}", f"--config.sample.num_images={number}"
    return {"place": None, "command": command(*_words(), *words)}


def _places(classes: Sequence[str]) -> dict[str, list[int]]:
    """The places of each class in a grid; classes are in the order in which they come there."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(classes):
        found.setdefault(name, []).append(place)
    return found


def _evaluation(run: Contents, found: Evaluated, album: _Album) -> Page:
    return {
        "title": f"Step {found.step:,}" + (f", evaluation {found.number + 1}" if found.number else ""),
        "facts": _facts(found.protocol),
        "metrics": [_metric(run, name, metric, album) for name, metric in found.metrics.items()],
        "failed": _facts(found.failed),
    }


def _metric(run: Contents, name: str, metric: Metric, album: _Album) -> Page:
    num_classes = None if run.config is None else int(run.config.model.num_classes)
    rows = []
    for value_name, pair in metric.values.items():
        verdict = meanings.verdict_of(value_name, metric.values, num_classes)
        number, error = shown(*pair)
        row, _, column = value_name.partition(BETWEEN)
        rows.append(
            {
                "name": _cut(value_name.replace(BETWEEN, ": ")),
                "row": _cut(row),
                "column": _cut(column),
                "value": number,
                "error": error,
                "meaning": meanings.meaning_of(value_name),
                "tone": verdict.tone if verdict else "",
                "verdict": verdict.words if verdict else "",
            }
        )
    pictures = [{"name": picture.path.rpartition("/")[2], "source": album.take(picture)} for picture in metric.pictures]
    return {
        "name": _cut(name),
        "warning": "of the training buffer, not of fresh chains"
        if "BUFFER" in metric.protocol.get("samples", "")
        else "",
        "verdicts": [_cut(words) for words in metric.verdicts],
        "rows": rows,
        "facts": _facts(metric.protocol),
        "pictures": [picture for picture in pictures if picture["source"]],
    }


def _size_of_evaluations(run: Contents) -> int:
    """Bytes of the evaluations' words in the page."""
    none = _Album(run.folder, -1)
    return len(_as_script([_evaluation(run, one, none) for one in run.evaluations]).encode())


def _facts(facts: Mapping[str, str]) -> list[list[str]]:
    return [[_cut(name), _cut(text)] for name, text in facts.items()]


def _config_rows(run: Contents) -> list[Page]:
    """The keys whose value is not the default, and those of the user's own."""
    if run.config is None:
        return []
    values, defaults = schema.flat(run.config), schema.flat(schema.defaults())
    return [
        {"key": _cut(key), "value": _plain(value), "default": _plain(defaults[key]) if key in defaults else "",
         "meaning": schema.KEYS[key].meaning if key in schema.KEYS else "a key of your own"}
        for key, value in values.items()
        if key not in defaults or value != defaults[key]
    ]  # fmt: skip


def _differences(runs: Mapping[str, Contents]) -> list[Page]:
    """The keys of which two runs have different values."""
    values = {name: schema.flat(run.config) for name, run in runs.items() if run.config is not None}
    keys = dict.fromkeys(key for of_run in values.values() for key in of_run)
    rows = {key: [_plain(values[name][key]) if key in values.get(name, {}) else "" for name in runs] for key in keys}
    return [
        {"key": _cut(key), "values": row, "meaning": schema.KEYS[key].meaning if key in schema.KEYS else ""}
        for key, row in rows.items()
        if len({text for name, text in zip(runs, row, strict=True) if name in values}) > 1
    ]


def _metrics_beside(runs: Mapping[str, Contents]) -> list[Page]:
    """Each number of the newest evaluations and of the last line of evaluation.jsonl, for every run that has it."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, run in runs.items():
        for value, (number, error) in _last_judged(run).items():
            found.setdefault(("while training", curves.label_of(value)), {})[name] = with_error(number, error)
        newest = {
            metric: (one.step, values) for one in reversed(run.evaluations) for metric, values in one.metrics.items()
        }
        for metric, (step, measured) in newest.items():
            for value, pair in measured.values.items():
                found.setdefault((metric, value), {})[name] = f"{with_error(*pair)} (step {step:,})"
    return [
        {"metric": _cut(metric), "name": _cut(value.replace(BETWEEN, ": ")), "meaning": meanings.meaning_of(value),
         "values": [texts.get(name, "") for name in runs]}
        for (metric, value), texts in found.items()
    ]  # fmt: skip


def _last_judged(run: Contents) -> dict[str, tuple[Number, Number | None]]:
    row = run.judged[-1] if run.judged else {}
    return {
        name: (value, row.get(f"{name}_error"))
        for name, value in row.items()
        if name != "step" and not curves.is_error(name, row)
    }


def _newest_pictures(name: str, run: Contents, album: _Album) -> Page:
    """The newest sampling and the newest pictures of training of one run."""
    made = [(f"samples, step {one.step:,}", one.png) for one in run.samples if one.task == "generate"][:1]
    through = [(f"{image}, step {list(steps)[-1]:,}", list(steps.values())[-1]) for image, steps in run.images.items()]
    taken = [{"title": title, "source": album.take(picture)} for title, picture in [*made, *through]]
    return {"name": name, "pictures": [one for one in taken if one["source"]]}


def _data_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The newest record of data.json in words (data/found.py says what each field is)."""
    names, sizes = record.get("class_names"), record.get("class_sizes")
    rows = {name.replace("_", " "): value for name, value in record.items() if value not in (None, [], "")}
    if isinstance(names, list) and isinstance(sizes, list) and len(names) == len(sizes):
        rows["class names"] = [f"{name}: {size}" for name, size in zip(names, sizes, strict=True)]
        rows.pop("class sizes", None)
    return [[_cut(name), _plain(value)] for name, value in rows.items()]


def _versions(run: Contents) -> list[list[list[str]]]:
    return [_facts(entry) for entry in run.versions]


def _commands(run: Contents) -> list[Page]:
    """Commands to paste: the one that goes on, where it is known, and those that use the run."""
    folder = f"--workdir={_folder(run.place)}"
    words, found = _words(), []
    if again := run.arguments:
        rest = [word for word in again if not word.startswith(("--workdir=", "-workdir="))]
        found.append({"what": "Train, or go on where it stopped", "command": command(*words, *rest, folder)})
    else:
        found.append({"what": f"To go on where it stopped: the command that began it, and {folder}", "command": ""})
    tasks = {
        "Sample": ["--mode=sample", folder],
        "Evaluate": ["--mode=evaluate", folder],
        "Make this page anew": ["--mode=report", folder],
    }
    if run.config is not None and run.config.data.source == "density":
        del tasks["Evaluate"]  # which is for images
    return found + [{"what": what, "command": command(*words, *rest)} for what, rest in tasks.items()]


def _words() -> list[str]:
    """The first words of a command, which hold in any directory."""
    return [os.path.abspath(word) if word.endswith(invocation.SCRIPT) else word for word in invocation.words()]


def _folder(folder: Folder) -> str:
    """The folder as a command names it, whatever the present directory is."""
    return str(folder if bucket.is_remote(folder) else os.path.abspath(folder))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return _cut(", ".join(_plain(one) for one in value))
    return _cut("empty" if value == "" else printable(str(value)))


def _cut(text: str) -> str:
    """A text from outside, without control characters and not endless; page.js shows it as text and never as HTML."""
    text = printable(text, but="\n")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _finite(value: Number | None) -> Number | None:
    return value if value is not None and math.isfinite(value) else None


def _as_script(values: Any) -> str:
    """JSON that no HTML parser takes for the end of its script element, or for anything but JSON."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode(errors="replace").decode()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
