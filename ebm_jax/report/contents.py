"""What lies in a run's folder, read for its page: what is damaged, half written or a link is left out and named.

This imports no JAX and no NumPy, so that a page is made in a fraction of a second. A folder may be a stranger's, so
nothing in it is believed: each value is of the kind that the page needs, or is not there.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ebm_jax import invocation
from ebm_jax.given import BadInput, Config, printable
from ebm_jax.paths import Folder
from ebm_jax.report.numbers import Number
from ebm_jax.storage import bucket, workdir

METRICS, EVALUATION, VERSIONS = "metrics.jsonl", "evaluation.jsonl", "versions.json"
IMAGES, SAMPLES, EVALUATIONS, CHECKPOINTS = "images", "samples", "evaluation", "checkpoints"
OF_A_RUN = (workdir.CONFIG, METRICS, EVALUATION, VERSIONS, IMAGES, SAMPLES, EVALUATIONS, CHECKPOINTS)
FIRST = ("chains", "density")  # pictures of fresh samples
LARGEST = 2**28  # bytes of a file of lines that are read, from its end
MOST_WHOLE = 2**53  # that a browser's numbers hold
NAMED = 8  # damaged things that a page names
IMAGE = re.compile(r"(.+)_(\d{6,12})\.png")
SAMPLE = re.compile(r"(?:(.+)_)?(\d{6,12})_(\d{1,9})\.(png|gif)")
MEASURED = re.compile(r"(\d{6,12})_(\d{1,9})")

Row = dict[str, Number]
"""The numbers of one step by their names, `step` among them; what is not finite is NaN."""


class Event(NamedTuple):
    """What happened to the run at a step, in words."""

    step: int
    text: str


class Picture(NamedTuple):
    """A picture file of the run."""

    path: str
    """Relative to the run's folder, with / between its parts."""
    size: int
    """Bytes."""


class Sampled(NamedTuple):
    """The pictures of one sampling."""

    task: str
    step: int
    number: int
    png: Picture | None
    gif: Picture | None


class Evaluated(NamedTuple):
    """One evaluation, as evaluation.json has it: values, protocol and pictures of each metric."""

    step: int
    number: int
    protocol: dict[str, str]
    metrics: dict[str, "Metric"]
    failed: dict[str, str]


class Metric(NamedTuple):
    """One metric of an evaluation."""

    values: dict[str, tuple[Number, Number | None]]
    """A number and its standard error, by name."""
    verdicts: list[str]
    """Sentences on what the numbers say."""
    protocol: dict[str, str]
    pictures: list[Picture]


class Contents(NamedTuple):
    """All that a page shows of a run."""

    folder: Folder
    """Where its files are read."""
    place: Folder
    """What commands call it: a bucket's address, where the folder is this machine's copy."""
    config: Config | None
    """None: it cannot be read."""
    rows: list[Row]
    events: list[Event]
    judged: list[Row]
    """The rows of evaluation.jsonl."""
    images: dict[str, dict[int, Picture]]
    """By name and step."""
    samples: list[Sampled]
    """The newest first, and of them plain samples."""
    evaluations: list[Evaluated]
    """The newest first."""
    versions: list[dict[str, str]]
    arguments: list[str]
    """Words of the command that trained last; empty: they are not known."""
    data: dict[str, Any]
    """The newest record of the run's data; empty: there is none."""
    checkpoints: list[int]
    """Steps, the newest first."""
    last_written: float | None
    """Seconds since 1970 when the newest line of metrics was written; None: there is none."""
    damaged: list[str]
    """What could not be read, in words."""

    @property
    def num_steps(self) -> int | None:
        """Steps that the run is to take; None: its config cannot be read."""
        return None if self.config is None else int(self.config.train.num_steps)

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return max([*(int(row["step"]) for row in self.rows[-1:]), *self.checkpoints[:1]], default=0)


def read(folder: Folder, place: Folder | None = None) -> Contents:
    """The contents of a run's folder, on this machine or in a bucket.

    Args:
      place: what commands call it; None: the folder.

    Raises:
      BadInput: it is no folder, or holds nothing of a run.
    """
    names = bucket.names(folder)
    if not names.intersection(OF_A_RUN):
        raise BadInput(f"{folder} is not the folder of a run: it has none of {', '.join(OF_A_RUN[:4])}")
    reader = _Reader(folder)
    config = reader.config(names)
    rows, events = _rows_and_events(reader.lines(METRICS) if METRICS in names else [])
    judged, _ = _rows_and_events(reader.lines(EVALUATION) if EVALUATION in names else [])
    records = reader.json(workdir.DATA) if workdir.DATA in names else []
    versions = reader.json(VERSIONS) if VERSIONS in names else []
    entries = [entry for entry in _list(versions) if isinstance(entry, dict)]
    arguments = [_list(entry.pop(invocation.ARGUMENTS, [])) for entry in entries][-1:]
    newest = [record for record in _list(records) if isinstance(record, dict)][-1:]
    return Contents(
        folder,
        place or folder,
        config,
        rows,
        events,
        judged,
        reader.images() if IMAGES in names else {},
        reader.samples() if SAMPLES in names else [],
        reader.evaluations() if EVALUATIONS in names else [],
        [_texts(entry) for entry in entries],
        [word for words in arguments for word in words if isinstance(word, str)],
        dict(newest[0]) if newest else {},
        reader.checkpoints() if CHECKPOINTS in names else [],
        reader.time_of(METRICS) if METRICS in names else None,
        _some(reader.damaged),
    )


def picture_bytes(folder: Folder, picture: Picture) -> bytes | None:
    """The bytes of a PNG or GIF file of the run; None if it is gone, another kind of file, or a link."""
    path = folder / picture.path
    try:
        if not _is_plain(path):
            return None
        content = path.read_bytes()
    except Exception:  # a bucket's libraries each raise their own
        return None
    return content if content.startswith((b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")) else None


class _Reader:
    """Reads a folder's files, and keeps in words what cannot be read."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.damaged: list[str] = []

    def config(self, names: set[str]) -> Config | None:
        if workdir.CONFIG not in names:
            self.damaged.append(f"{workdir.CONFIG} is missing")
            return None
        if not _is_plain(self._folder / workdir.CONFIG):
            self.damaged.append(f"{workdir.CONFIG} is a link, and not followed")
            return None
        try:
            return workdir.read_config(self._folder)
        except BadInput as error:
            self.damaged.append(str(error))
            return None

    def text(self, name: str) -> str:
        path = self._folder / name
        try:
            if not _is_plain(path):
                self.damaged.append(f"{name} is a link, and not followed")
                return ""
            with path.open("rb") as file:
                file.seek(max(0, _size(path) - LARGEST))
                return file.read().decode(errors="replace")
        except Exception as error:  # a bucket's libraries each raise their own
            self.damaged.append(f"{name} cannot be read ({bucket.reason(error)})")
            return ""

    def json(self, name: str) -> Any:
        text = self.text(name)
        try:
            return json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            self.damaged.append(f"{name} is damaged ({bucket.reason(error)})")
            return None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON objects of a file of lines; the last line may be half written."""
        found, wrong = [], 0
        text = self.text(name)
        lines = text.splitlines()
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                step = row["step"]
                if type(step) is not int or not 0 <= step <= MOST_WHOLE:
                    raise ValueError
                found.append(row)
            except (ValueError, KeyError, TypeError, RecursionError):
                half_written = number == len(lines) - 1 and not text.endswith("\n")
                wrong += not half_written and bool(line.strip())
        if wrong:
            self.damaged.append(f"{name} has {wrong:,} damaged line{'s' * (wrong > 1)}, left out")
        return found

    def images(self) -> dict[str, dict[int, Picture]]:
        found: dict[str, dict[int, Picture]] = {}
        for name, picture in self._pictures(IMAGES):
            if match := IMAGE.fullmatch(name):
                found.setdefault(match[1], {})[int(match[2])] = picture
        in_order = sorted(found, key=lambda name: (name not in FIRST, name))
        return {name: dict(sorted(found[name].items())) for name in in_order}

    def samples(self) -> list[Sampled]:
        found: dict[tuple[str, int, int], dict[str, Picture]] = {}
        for name, picture in self._pictures(SAMPLES):
            if match := SAMPLE.fullmatch(name):
                found.setdefault((match[1] or "generate", int(match[2]), int(match[3])), {})[match[4]] = picture
        made = [Sampled(*key, files.get("png"), files.get("gif")) for key, files in found.items()]
        return sorted(made, key=lambda one: (-one.step, -one.number, one.task != "generate", one.task))

    def evaluations(self) -> list[Evaluated]:
        found = []
        for name in self._names(EVALUATIONS):
            match, inside = MEASURED.fullmatch(name), f"{EVALUATIONS}/{name}"
            if match and "evaluation.json" in self._names(inside):
                content = _dict(self.json(f"{inside}/evaluation.json"))
                pictures = dict(self._pictures(inside))
                metrics = {
                    str(metric): _metric(_dict(values), pictures)
                    for metric, values in _dict(content.get("metrics")).items()
                }
                facts = _texts(_dict(content.get("protocol"))), metrics, _texts(_dict(content.get("failed")))
                found.append(Evaluated(int(match[1]), int(match[2]), *facts))
        return sorted(found, key=lambda one: (one.step, one.number), reverse=True)

    def checkpoints(self) -> list[int]:
        numbers = [int(name) for name in self._names(CHECKPOINTS) if name.isascii() and name.isdigit()]
        return sorted(numbers, reverse=True)

    def time_of(self, name: str) -> float | None:
        try:
            found = (self._folder / name).stat()
            return float(getattr(found, "st_mtime", None) or getattr(found, "mtime", 0.0)) or None
        except Exception:  # a bucket's libraries each raise their own
            return None

    def _pictures(self, inside: str) -> Iterator[tuple[str, Picture]]:
        for name in sorted(self._names(inside)):
            if name.endswith((".png", ".gif")) and not name.startswith("."):
                path = self._folder / inside / name
                try:
                    size = _size(path)
                except Exception:  # gone since, or a link to nothing; a bucket's libraries each raise their own
                    continue
                if _is_plain(path):
                    yield name, Picture(f"{inside}/{name}", size)
                else:
                    self.damaged.append(f"{inside}/{name} is a link, and not followed")

    def _names(self, inside: str) -> set[str]:
        path = self._folder / inside
        if not _is_plain(path):
            return set()
        try:
            return bucket.names(path)
        except BadInput as error:
            self.damaged.append(f"{inside} cannot be read ({error})")
            return set()


def _rows_and_events(lines: list[dict[str, Any]]) -> tuple[list[Row], list[Event]]:
    """The rows in the order of their steps, the later one where a step has two, and the events as they happened."""
    rows = {
        line["step"]: {name: _number(value) for name, value in line.items()} for line in lines if "event" not in line
    }
    numbers = [{name: value for name, value in row.items() if value is not None} for _, row in sorted(rows.items())]
    return numbers, [Event(line["step"], _text(line["event"])) for line in lines if "event" in line]


def _metric(found: dict[str, Any], pictures: dict[str, Picture]) -> Metric:
    pairs = {str(name): _dict(pair) for name, pair in _dict(found.get("values")).items()}
    numbers = {name: (_number(pair.get("value")), _number(pair.get("standard_error"))) for name, pair in pairs.items()}
    names = [name for name in _list(found.get("pictures")) if isinstance(name, str)]
    seconds = _number(found.get("seconds"))
    time = {} if seconds is None or not math.isfinite(seconds) else {"time": f"{seconds:.0f} s"}
    return Metric(
        {name: (number, error) for name, (number, error) in numbers.items() if number is not None},
        [words for words in _list(found.get("verdicts")) if isinstance(words, str)],
        _texts(_dict(found.get("protocol"))) | time,
        [pictures[name] for name in names if name in pictures],
    )


def _number(value: Any) -> Number | None:
    """A number, or one that JSON had to write as text; None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if -MOST_WHOLE <= value <= MOST_WHOLE or isinstance(value, float) else math.nan
    return float(value) if value in ("nan", "inf", "-inf") else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return printable(str(value), but="\n")


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in values.items()}


def _some(words: list[str]) -> list[str]:
    return words[:NAMED] + ([f"and {len(words) - NAMED} more"] if len(words) > NAMED else [])


def _size(path: Any) -> int:
    """Bytes of a file; etils has another name for it."""
    return int(path.stat().length if bucket.is_remote(path) else path.stat().st_size)


def _is_plain(path: Folder) -> bool:
    """Whether what lies there is no link, which could lead to a file of the reader's."""
    return bucket.is_remote(path) or not os.path.islink(path)
