"""From the words of the command line to a config, a folder and a mode, or one clear line."""

import difflib
import re
import runpy
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from ebm_jax.io.workdir import differences, flat, read_config
from ebm_jax.types import BadInput, Config

MODES = ("train", "sample", "prepare")
USAGE = "python run.py --config=configs/NAME.py [--workdir=DIR] [--mode=train|sample|prepare] [--config.key=value ...]"


class Command(NamedTuple):
    """What the user asked for."""

    mode: str
    config: Config
    workdir: Path


def parse(argv: list[str]) -> Command:
    """The command in `argv`, whose first word is the program's name.

    Sampling takes the config of the run in the folder, with what the command line overrides in the group `sample`.

    Raises:
      BadInput: an unknown flag or key, a value of the wrong type, a config file that cannot be read.
      SystemExit: after --help.
    """
    values, words = flags.FlagValues(), list(argv)
    config_flag = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    flags.DEFINE_string("workdir", None, "the run's folder; default: runs/NAME", flag_values=values)
    flags.DEFINE_enum("mode", "train", MODES, "what to do", flag_values=values)
    if {"-h", "-help", "--help"} & set(words):
        print(USAGE + "\nEvery key is in configs/default.py.")
        raise SystemExit(0)
    source = _config_source(words)
    _check_keys(source, words)
    try:
        rest = values(words)
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(str(error).splitlines()[0]) from error
    if len(rest) > 1:
        raise BadInput(f"'{rest[1]}' is not a flag; usage: {USAGE}")
    config, workdir = config_flag.value, Path(values.workdir or Path("runs") / source.stem)
    if values.mode == "sample":
        config = _of_run(workdir, config, config_flags.get_override_values(values["config"]))
    return Command(values.mode, config, workdir)


def _config_source(words: list[str]) -> Path:
    """The config file named on the command line, which exists."""
    for index, word in enumerate(words):
        name, found, value = word.partition("=")
        if name in ("--config", "-config"):
            path = Path(value if found else " ".join(words[index + 1 : index + 2]))
            if not path.is_file():
                known = ", ".join(
                    sorted(str(p) for p in path.parent.glob("*.py") if p.stem not in ("default", "__init__"))
                )
                raise BadInput(
                    f"--config {path} is not a file; " + (f"use one of {known}" if known else f"usage: {USAGE}")
                )
            return path
    raise BadInput(f"--config is missing; usage: {USAGE}")


def _check_keys(source: Path, words: list[str]) -> None:
    """Refuse an override of a key that the config file does not have, and a config file that cannot be run."""
    try:
        config = runpy.run_path(str(source))["get_config"]()
    except Exception as error:  # whatever the user's file raises
        raise BadInput(f"--config {source} cannot be read: {type(error).__name__} {_one_line(error)}") from error
    known = flat(config)
    for word in words:
        key = re.match(r"--?config\.([^=]+)", word)
        if key and key[1] not in known:
            near = difflib.get_close_matches(key[1], known, 1, 0.0)[0]
            raise BadInput(f"--config.{key[1]} is not a key of the config; did you mean --config.{near}?")


def _one_line(error: Exception) -> str:
    """The first line of an error's text; ml_collections hides its line in an escaped string."""
    return str(error).replace("\\n", "\n").replace("\\'", "'").strip("\"'").splitlines()[0]


def _of_run(workdir: Path, config: Config, overrides: dict) -> Config:
    """The config of the run in `workdir` with the overrides of this command line."""
    run = read_config(workdir).unlock()
    asked = run.copy_and_resolve_references()
    asked.update_from_flattened_dict(overrides)
    differing = differences(run, asked)
    if differing:
        changes = ", ".join(f"{key} is {old} there and {new} here" for key, (old, new) in differing.items())
        raise BadInput(f"--workdir {workdir} holds another run: {changes}; only --config.sample keys may change")
    return asked.lock()
