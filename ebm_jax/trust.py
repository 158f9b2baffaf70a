"""What a run's config.json may choose for whoever opens the run: neither code to run nor places to write.

A run's folder may come from a stranger. A value of its config that names code, or a place outside of the folder to
write to, counts only if this user chose it himself: on this command line, or in an earlier command or config file on
this machine. Such choices are kept in a file of the user's cache folder.
"""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from ebm_jax.data.sources import SOURCES
from ebm_jax.kinds import printable
from ebm_jax.registry import PYTHON
from ebm_jax.schema import value_of, with_values
from ebm_jax.storage import bucket
from ebm_jax.types import BadInput, Config, Folder

CODE = (  # keys that may name an object as package.module:Name
    "data.source",
    "data.name",
    "model.name",
    "model.activation",
    "method.name",
    "chain.kernel",
    "loss.objective",
    "loss.energy_l2_form",
    "loss.wrong_labels",
    "sample.task",
    "eval.metrics",
)
PLACES = ("data.dir", "eval.classifier_distance.dir", "eval.inception.reference")  # keys that name a place to write to
OF_A_VERB = ("sample.task", "eval.metrics")  # only one verb imports what they name
FILE = "ebm_jax/choices.jsonl"  # in the user's cache folder: one [key, value] a line

Choice = tuple[str, str]
_chosen: set[Choice] = set()  # by this process, where the file cannot be written


class Obeyed(NamedTuple):
    """A run's config without what it may not choose."""

    config: Config
    notes: tuple[str, ...]
    """A sentence for each place that is not written to."""


def obeyed(config: Config, folder: Folder, chosen: Collection[str] = (), verb: str = "") -> Obeyed:
    """The config of the run in `folder`, of which places to write outside of the folder are left out.

    Args:
      chosen: keys whose values this command line gives.
      verb: the group whose code is used too, "sample" or "eval"; empty: neither.

    Raises:
      BadInput: it names code that this user never chose.
    """
    remember(config, chosen)
    known = _known()
    for key, name in _code(config):
        of_another = key in OF_A_VERB and not key.startswith(f"{verb}.")
        if (key, name) not in known and not of_another:
            raise BadInput(
                f"{folder} is told by its config.json to run the code {key}={printable(name)}, and you never named it "
                f"on this machine; if you trust it, add --config.{key}={printable(value_of(config, key))}, or load it "
                "with trusted=True"
            )
    refused = [key for key, place in _places(config) if (key, place) not in known and not _is_inside(place, folder)]
    notes = [
        f"{folder} may not choose where to write: {key}={printable(value_of(config, key))} of its config.json is left "
        f"out; to obey it, add --config.{key}={printable(value_of(config, key))}"
        for key in refused
    ]
    return Obeyed(with_values(config, dict.fromkeys(refused, "")) if refused else config, tuple(notes))


def remember(config: Config, chosen: Collection[str] | None = None) -> None:
    """Keep what the user chose himself; where there is no cache folder, this process alone knows.

    Args:
      chosen: the keys that he gave; None: the whole config is his.
    """
    choices = [choice for choice in (*_code(config), *_places(config)) if chosen is None or choice[0] in chosen]
    new = [choice for choice in choices if choice not in _known()]
    _chosen.update(new)
    try:
        if new:
            _file().parent.mkdir(parents=True, exist_ok=True)
            with _file().open("a") as file:
                file.writelines(json.dumps(choice) + "\n" for choice in new)
    except (OSError, RuntimeError):  # no room, no rights, no home
        pass


def is_ours(config: Config) -> bool:
    """Whether the config names no code from outside this package: no import path, and no object that Python gave."""
    return not any(_code(config)) and not any(value_of(config, key).startswith(PYTHON) for key in CODE)


def _known() -> set[Choice]:
    try:
        lines = _file().read_text().splitlines()
        return _chosen | {(key, value) for key, value in map(json.loads, lines)}
    except (OSError, RuntimeError, ValueError, TypeError):  # there is none, or it is damaged
        return _chosen


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / FILE


def _code(config: Config) -> Iterator[Choice]:
    """Every import path of the config, with its key."""
    kind = config.data.source.partition(":")[0]
    for key in CODE:
        value = value_of(config, key)
        names = [name.strip() for name in value.split(",")] if key == "eval.metrics" else [value]
        is_ours = key == "data.source" and kind in (*SOURCES, "density")
        is_a_set = key == "data.name" and kind != "density"
        paths = [name for name in names if ":" in name and not name.startswith(PYTHON)]
        yield from ((key, name) for name in paths if not is_ours and not is_a_set)


def _places(config: Config) -> Iterator[Choice]:
    return ((key, value_of(config, key)) for key in PLACES if value_of(config, key))


def _is_inside(place: str, folder: Folder) -> bool:
    """Whether a path or address lies in the folder, links followed."""
    if bucket.is_remote(folder) or "://" in place:
        return f"{place}/".startswith(f"{folder}/") and ".." not in place.split("/")
    try:
        return Path(place).expanduser().resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError, ValueError):
        return False
