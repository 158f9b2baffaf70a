"""Whether the data that a config names are the data of the run in a folder, wherever they lie."""

from typing import NamedTuple, NoReturn

from ebm_jax.data import found, sources
from ebm_jax.data.found import Record
from ebm_jax.data.source import Source
from ebm_jax.kinds import printable
from ebm_jax.schema import with_values
from ebm_jax.storage import bucket, workdir
from ebm_jax.storage.workdir import DATA, describe, is_moved, read_config
from ebm_jax.types import BadInput, Config, Folder


class Continued(NamedTuple):
    """What going on with the data of a config means."""

    records: list[Record]
    """Of the run's data, the newest one last."""
    note: str
    """One line on what has changed; empty: nothing."""


def records_of(folder: Folder) -> list[Record]:
    """The records in the run's data.json, the newest one last; [] if the run has none.

    Raises:
      BadInput: the file is damaged.
    """
    text = workdir.read_data(folder)
    try:
        return found.from_json(text) if text else []
    except ValueError as error:
        reason = " ".join(printable(str(error)).split())[:100]
        raise BadInput(
            f"{folder / DATA} is damaged ({reason}); restore it from a copy, or delete it to go on without "
            "comparing the data"
        ) from error


def continued(folder: Folder, config: Config, record: Record) -> Continued:
    """Compare the record of the config's data with the run in the folder, if there is one.

    Raises:
      BadInput: the data are others at another place; or labels have another meaning, for a model of classes.
    """
    if workdir.CONFIG not in bucket.names(folder):
        return Continued([record], "")
    run, records = read_config(folder), records_of(folder)
    if not records:
        if is_moved(run, config):
            _refuse_move(folder, run, config, f"and it has no {DATA} to compare the data with")
        return Continued([record], f"{folder} had no {DATA}; it has one now, of the data that are there")
    old, words = records[-1], found.changes(records[-1], record)
    if is_moved(run, config):
        if words or not (old.digest and record.digest):
            _refuse_move(folder, run, config, f"and these are other data: {', '.join(words) or 'nobody can compare'}")
        return Continued(records, f"the run's data lie at {config.data.source} now")
    if not words:
        return Continued(records, "")
    if config.model.num_classes > 1 and found.relabels(old, record):
        raise BadInput(
            f"--workdir {folder} holds a run whose labels would mean something else: {', '.join(words)}; restore the "
            f"names, use another --workdir, or delete {folder / DATA} if the labels are right"
        )
    return Continued([*records, record], f"the run's data have changed: {', '.join(words)}; it goes on with these")


def _refuse_move(folder: Folder, run: Config, config: Config, why: str) -> NoReturn:
    differing = {"data.source": (run.data.source, config.data.source)}
    raise BadInput(
        f"--workdir {folder} holds a run that cannot go on: {describe(differing)}, {why}; give the run's own data, or "
        "use another --workdir"
    )


def check_place(folder: Folder, config: Config) -> None:
    """Refuse a config for the run in the folder whose training data lie elsewhere and are others; this writes nothing.

    Raises:
      BadInput: as `continued`; or the training split is not there.
    """
    run = read_config(folder)
    if not is_moved(run, config):
        return
    training = with_values(config, {"data.split": run.data.split})
    images = sources.make_source(training)
    continued(folder, config, found.record_of(images, config.data.source, run.data.split))


def source_of(folder: Folder, config: Config, split: str, key: str) -> Source:
    """The images of a split of the run's data, whose name the config has at `key`.

    Raises:
      BadInput: there is no such split; or its classes have other names than the run's, for a model of classes.
    """
    with sources.split_named(key):
        images = sources.make_source(with_values(config, {"data.split": split}))
    names, now = class_names(folder), images.found.class_names
    if config.model.num_classes > 1 and names and now and names != now:
        old = Record("", split, 0, len(names), names)
        words = found.changes(old, old._replace(class_names=now, num_classes=len(now)))
        raise BadInput(
            f"{config.data.source} has other classes than the run in {folder}: {', '.join(words)}; restore the names"
        )
    return images


def class_names(folder: Folder) -> tuple[str, ...]:
    """The names of the run's classes in the order of their labels; empty if it has none."""
    records = records_of(folder)
    return records[-1].class_names if records else ()
