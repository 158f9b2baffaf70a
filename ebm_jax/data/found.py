"""The data of a run as a record: a line for a person, JSON for the run's folder, and what differs between two."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ebm_jax.data.source import Source
from ebm_jax.kinds import printable

SHOWN = 12  # names in a line, at most
LONGEST_NAME = 60  # characters of a name in a line, at most


class Record(NamedTuple):
    """The data of a run. The fields without a text here are those of `Found` and `Source`."""

    source: str
    """`data.source`, as a person gave it."""
    split: str
    """`data.split`."""
    images: int
    num_classes: int
    class_names: tuple[str, ...] = ()
    class_sizes: tuple[int, ...] = ()
    passed_over: tuple[tuple[str, int], ...] = ()
    values: tuple[float, float] | None = None
    measured: int = 0
    splits: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""
    """Empty: there is none."""


def record_of(images: Source, source: str, split: str, *, digest: bool = True) -> Record:
    """The record of the images that `data.source` and `data.split` mean.

    Args:
      digest: False: leave it out, because it reads or lists all images.
    """
    known = images.found
    return Record(
        source,
        split,
        images.length,
        images.num_classes,
        known.class_names,
        known.class_sizes,
        known.passed_over,
        known.values,
        known.measured,
        known.splits,
        known.notes,
        known.digest() if digest and known.digest else "",
    )


def line(record: Record) -> str:
    """The record in one line."""
    files = sum(count for _, count in record.passed_over)
    reasons = [f"{count:,} {printable(reason)}" for reason, count in record.passed_over]
    parts = [_number(record.images, "image"), _classes(record), _values(record), _splits(record)]
    over = f"; passed over {_number(files, 'file')} ({some(reasons)})" if files else ""
    notes = "".join(f"; {printable(note)}" for note in record.notes)
    return f"data, split {shown(record.split)}: {', '.join(filter(None, parts))}{over}{notes}"


def _classes(record: Record) -> str:
    number = _number(record.num_classes, "class", "classes")
    if len(record.class_names) != record.num_classes:
        return number
    sizes = record.class_sizes if len(record.class_sizes) == record.num_classes else None
    names = [shown(name) for name in record.class_names]
    words = names if sizes is None else [f"{name}: {size:,}" for name, size in zip(names, sizes, strict=True)]
    return f"{number} ({some(words)})"


def _values(record: Record) -> str:
    if record.values is None:
        return ""
    low, high = record.values
    of = "" if record.measured == record.images else f" in {record.measured:,} of them"
    return f"values {low:g} to {high:g}{of}"


def _splits(record: Record) -> str:
    if record.splits is None:
        return "other splits unknown"
    others = [shown(split) for split in record.splits if split != record.split]
    return f"other splits: {some(others) or 'none'}" + ("" if "test" in record.splits else ", no test split")


def shown(name: str) -> str:
    """A name on one line, cut if it is long."""
    text = printable(name)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}..."


def some(words: Sequence[str]) -> str:
    """The first `SHOWN` words, and how many more there are."""
    more = [f"and {len(words) - SHOWN:,} more"] if len(words) > SHOWN else []
    return ", ".join([*words[:SHOWN], *more])


def numbered_names(names: Sequence[str]) -> str:
    """The names of classes with their labels, such as "0 cat, 1 dog"."""
    return some([f"{label} {shown(name)}" for label, name in enumerate(names)])


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def changes(old: Record, new: Record) -> list[str]:
    """What differs between the data of a run and those that are there now, in words; empty: nothing that is known."""
    words = _class_changes(old, new)
    more = new.images - old.images
    if more:
        words.append(f"{_number(abs(more), 'image')} {'more' if more > 0 else 'fewer'}")
    if not words and old.digest and new.digest and old.digest != new.digest:
        words.append("as many images, but not the same ones")
    return words


def relabels(old: Record, new: Record) -> bool:
    """Whether a label, or the number of classes, has another meaning in the new data."""
    names = old.class_names and new.class_names and old.class_names != new.class_names
    return bool(names) or old.num_classes != new.num_classes


def _class_changes(old: Record, new: Record) -> list[str]:
    before, now = old.class_names, new.class_names
    if not before or not now:
        same = old.num_classes == new.num_classes
        return [] if same else [f"{_number(old.num_classes, 'class', 'classes')} are now {new.num_classes:,}"]
    gone = [shown(name) for name in before if name not in now]
    came = [shown(name) for name in now if name not in before]
    if len(gone) == len(came) == 1:
        words = [f"class {gone[0]} is now {came[0]}"]
    else:
        words = [
            f"{'class' if len(names) == 1 else 'classes'} {some(names)} {'is' if len(names) == 1 else 'are'} {what}"
            for names, what in ((gone, "gone"), (came, "new"))
            if names
        ]
    moved = [name for name in before if name in now and before.index(name) != now.index(name)]
    if moved:
        words.append(f"class {shown(moved[0])} has the label {now.index(moved[0])} and had {before.index(moved[0])}")
    return words


def as_json(records: Iterable[Record]) -> str:
    """The records as JSON; `from_json` reads it."""
    return json.dumps([record._asdict() for record in records], indent=2) + "\n"


def from_json(text: str) -> list[Record]:
    """The records, with each value of its kind.

    Raises:
      ValueError: the text is no JSON of records.
    """
    try:
        return [_record(entry) for entry in json.loads(text)]
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _record(entry: Any) -> Record:
    values, splits = entry["values"], entry["splits"]
    return Record(
        source=str(entry["source"]),
        split=str(entry["split"]),
        images=int(entry["images"]),
        num_classes=int(entry["num_classes"]),
        class_names=tuple(map(str, entry["class_names"])),
        class_sizes=tuple(map(int, entry["class_sizes"])),
        passed_over=tuple((str(reason), int(count)) for reason, count in entry["passed_over"]),
        values=None if values is None else (float(values[0]), float(values[1])),
        measured=int(entry["measured"]),
        splits=None if splits is None else tuple(map(str, splits)),
        notes=tuple(map(str, entry["notes"])),
        digest=str(entry["digest"]),
    )
