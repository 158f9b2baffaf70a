"""The command line, parsed into a config, a folder and a mode, or refused with one clear line."""

import ast
import difflib
import inspect
import os
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from ebm_jax import manual, schema, shipped
from ebm_jax.distributed import processes
from ebm_jax.given import BadInput, Config
from ebm_jax.kinds import FLAG, one_of, shown
from ebm_jax.machine import ACCELERATOR
from ebm_jax.paths import Folder, expanded
from ebm_jax.schema import FORMER_NAMES, KEYS, nearest
from ebm_jax.storage import bucket, workdir
from ebm_jax.version import VERSION

MODES = ("train", "sample", "evaluate", "export", "prepare", "compile")
REPORT = "report"  # the mode that takes folders alone, and no config
WORDS = (*MODES, REPORT)
READ_A_RUN = {  # modes that read the run's config from its folder, and the groups that may change
    "sample": ("sample",),
    "export": ("sample",),
    "evaluate": ("sample", "eval"),
}
MOVABLE = ("sample", "evaluate")  # of these, modes that find the run's data at another place
VERBS = {"sample": "sample", "export": "", "evaluate": "eval"}  # the group that a mode's verb uses
REPORT_USAGE = "report DIR [DIR ...]"
PATH_SIGNS = re.compile(r"[/\\.~]")  # what the name of a shipped config has none of


class Command(NamedTuple):
    """What the user asked for."""

    mode: str
    config: Config
    workdir: Folder
    topology: str
    """The chips of `--mode=compile`; empty in other modes."""
    note: str
    """One line on the keys filled in for a run of an earlier version, or not obeyed; empty if there are none."""


def parse(argv: list[str]) -> Command:
    """The command in `argv`; its first word is the program's name.

    Sampling, exporting and evaluating read the config of the run in the folder. The command line may override its
    groups `sample` and, for evaluating, `eval`; for sampling and evaluating also the place of a folder or .npz file of
    images. --config only finds the default folder. The first word may be the mode, without --mode=.

    Raises:
      BadInput: an unknown flag or key, a value of the wrong type or out of its range, a config file that cannot be
        read, no run in the folder, another value than the run's in a group that may not change.
      SystemExit: after --help or --version.
    """
    if (asked_for := _help_asked(argv)) is not None:
        manual.show(manual.entry(asked_for, WORDS) if asked_for else manual.overview(WORDS))
        raise SystemExit(0)
    if argv[1:] == ["--version"]:
        print(f"ebm_jax {VERSION}")
        raise SystemExit(0)
    argv = _with_mode_as_flag(argv)
    _check_words(argv[1:])
    source = _config_source(argv)
    energy = _energy(argv, source)
    mode, folder, topology = _mode_workdir_topology(argv, source)
    machine = None if mode in READ_A_RUN else _machine(argv, mode, folder)
    there = shipped.energies() / energy if energy else folder
    config, note = workdir.read(there) if mode in READ_A_RUN else (from_file(source, machine), "")
    asked = _overridden(config, argv)
    schema.check_values(asked)
    if mode not in READ_A_RUN and asked.train.machine != config.train.machine:
        raise BadInput(
            f"train.machine {asked.train.machine} is for configs that choose by it, such as folder; {source} does not"
        )
    if mode in READ_A_RUN:
        from ebm_jax import trust  # seconds of imports that a wrong word need not wait for

        asked, refused = trust.obeyed(asked, folder, _named_keys(argv), VERBS[mode])
        note = "; ".join(filter(None, (note, *refused)))
    if mode not in READ_A_RUN and asked.train.dry_run:
        asked = schema.dry_run(asked)
    anywhere = mode in MOVABLE  # the verb compares the data themselves
    if mode in READ_A_RUN and (differing := workdir.differences(config, asked, anywhere=anywhere)):
        groups = " and ".join(f"--config.{group}" for group in READ_A_RUN[mode])
        differing = workdir.describe(differing)
        raise BadInput(f"--workdir {folder} holds another run: {differing}; only {groups} keys may change")
    if energy:
        shipped.copied(energy, folder)
        note = ""  # keys that came later than the energy are no news
    return Command(mode, asked, folder, topology, note)


def _named_keys(argv: list[str]) -> set[str]:
    """The keys that the command line gives, under their present names."""
    keys = [found[1] for word in argv if (found := re.match(r"--?config\.([^=]+)", word))]
    return {FORMER_NAMES.get(key, key) for key in keys}


def folders_to_report(argv: list[str]) -> list[Folder] | None:
    """The folders of the command `report DIR [DIR ...]`, or --mode=report with --workdir; None for any other mode.

    Raises:
      BadInput: there is no folder, one comes twice, or a word is no folder's.
    """
    words = _after_report(argv)
    if words is None or _help_asked(argv) is not None:
        return None
    found = []
    for word in words:
        if word.startswith("-") and not word.startswith("--workdir="):
            raise BadInput(f"{shown(word)[1:-1]} is no flag of report; usage: {REPORT_USAGE}")
        found.append(bucket.folder_of(word.removeprefix("--workdir=")))
    if not found:
        raise BadInput(f"report needs the folder of a run; usage: {REPORT_USAGE}")
    if twice := next((folder for folder in found if found.count(folder) > 1), None):
        raise BadInput(f"{twice} is given twice; give each folder once")
    return found


def _after_report(argv: list[str]) -> list[str] | None:
    """The other words of a command line that asks for a report, --workdir DIR as one word; None: it does not."""
    text = "\0".join(argv[1:]).replace("--workdir\0", "--workdir=").replace("--mode\0", "--mode=")
    words = text.split("\0") if text else []
    if words[:1] != [REPORT] and f"--mode={REPORT}" not in words:
        return None
    rest = words[1:] if words[:1] == [REPORT] else words
    return [word for word in rest if word != f"--mode={REPORT}"]


def _machine(argv: list[str], mode: str, folder: Folder) -> str | None:
    """The kind of machine to choose a config for: the one asked for, or that the run in the folder began on.

    A program that is compiled for chips is for an accelerator. None: this machine's kind.
    """
    words = " ".join(argv)
    if asked := re.findall(r"--?config\.train\.machine[= ](\S+)", words):
        return asked[-1]
    if mode == "compile":
        return ACCELERATOR
    return workdir.read_config(folder).train.machine if workdir.CONFIG in bucket.names(folder) else None


def launch(argv: list[str]) -> processes.Launch | None:
    """The run's processes as the command line states them; None for a run of one process.

    Raises:
      BadInput: a value of the wrong type, such a flag without --multihost, or --multihost with a mode other than train.
    """
    if _help_asked(argv) is not None:
        return None
    values = _known_flags(_with_mode_as_flag(argv))
    asked = processes.Launch(values.coordinator, values.num_processes, values.process_id, values.join_timeout)
    if values.multihost and values.mode != "train":
        raise BadInput(
            f"--multihost is for --mode=train, not {values.mode}; run that on one host: it takes checkpoints of any "
            "number of hosts and devices"
        )
    if values.multihost:
        return asked
    for name, value in zip(("coordinator", "num_processes", "process_id"), asked, strict=False):
        if value is not None:
            raise BadInput(f"--{name} {value} is for a run of several processes; add --multihost, or leave it out")
    return None


def _help_asked(argv: list[str]) -> str | None:
    """What --help asks for, as --help=WORD or --help WORD; empty: all; None: the command line has no --help."""
    for index, word in enumerate(argv[1:], start=1):
        flag, separator, asked = word.partition("=")
        if flag in ("-h", "-help", "--help"):
            following = "".join(argv[index + 1 : index + 2])
            return asked if separator or following.startswith("-") else following
    return None


def _with_mode_as_flag(argv: list[str]) -> list[str]:
    """The command line with a mode that is its first word as the flag --mode.

    Raises:
      BadInput: the first word is no mode, or --mode is another.
    """
    if not argv[1:] or argv[1].startswith("-") or not argv[1]:
        return argv
    word, rest = argv[1], [argv[0], *argv[2:]]
    if word not in MODES:
        near = difflib.get_close_matches(word, WORDS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(f"the first word {shown(word)} is no mode; use one of {', '.join(WORDS)}{hint}")
    mode = _known_flags(rest)["mode"]
    if mode.present and mode.value != word:
        raise BadInput(f"the first word says {word} and --mode={mode.value}; leave one of them out")
    return [argv[0], f"--mode={word}", *argv[2:]]


def _names_config(argv: list[str], index: int) -> bool:
    """Whether the word at `index` is --config=FILE, or one of the two words --config FILE."""
    alone = ("--config", "-config")
    return argv[index].partition("=")[0] in alone or (index > 0 and argv[index - 1] in alone)


def _config_source(argv: list[str]) -> Path | None:
    """The existing config file that the command line names; None if it names none."""
    words = [word for index, word in enumerate(argv) if _names_config(argv, index)]
    if not words:
        return None
    text = words[-1].removeprefix("-").removeprefix("-").removeprefix("config=")
    path = expanded(text, "--config")
    if os.path.isfile(path):  # False for a name that is too long, where Path.is_file raises
        return path
    if found := shipped.named(text):
        return found
    beside = sorted(str(near) for near in path.parent.glob("*.py") if near.stem not in shipped.HIDDEN)
    if beside and PATH_SIGNS.search(text):
        raise BadInput(f"--config {path} is not a file; use one of {', '.join(beside)}")
    near = difflib.get_close_matches(path.stem, shipped.names(), 1)
    cure = f"did you mean --config={near[0]}? --help lists them all" if near else "--help lists them"
    raise BadInput(f"--config {path} is not a file, nor the name of a shipped config; {cure}")


def _mode_workdir_topology(argv: list[str], source: Path | None) -> tuple[str, Folder, str]:
    values = _known_flags(argv)
    if values.energy and values.mode in READ_A_RUN:
        return values.mode, bucket.folder_of(values.workdir or f"runs/{values.energy}-shipped"), values.topology
    if source is None and not (values.mode in READ_A_RUN and values.workdir):
        raise BadInput(_nothing_named(values.mode, values(argv, known_only=True)[1:]))
    if values.topology and values.mode != "compile":
        raise BadInput(f"--topology {values.topology} is for --mode=compile, not --mode={values.mode}; leave it out")
    folder = bucket.folder_of(values.workdir) if values.workdir or source is None else Path("runs") / source.stem
    return values.mode, folder, values.topology


def _nothing_named(mode: str, words: list[str]) -> str:
    """The line for a command that names neither config nor run; a word without a flag may be meant as one of them."""
    flag = "workdir" if mode in READ_A_RUN else "config"
    word = next((word for word in words if not word.startswith("-")), "")
    if word:
        return f"{shown(word)} is not a flag; did you mean --{flag}={word}?"
    usage = f"usage: {manual.usage(WORDS)}"
    return (
        f"--workdir, the folder of a run, is missing; {usage}" if flag == "workdir" else f"--config is missing; {usage}"
    )


def _energy(argv: list[str], source: Path | None) -> str:
    """The energy of this package that the command line names; empty: none.

    Raises:
      BadInput: there is no such energy; the mode does not take one; or a config is named too.
    """
    values, names = _known_flags(argv), shipped.energy_names()
    if not values.energy:
        return ""
    if source:
        raise BadInput(f"--energy {shown(values.energy)} has its own config; leave --config {source} out")
    if values.mode not in READ_A_RUN:
        raise BadInput(
            f"--energy {shown(values.energy)} is for {', '.join(READ_A_RUN)}, not for {values.mode}; leave it out"
        )
    if values.energy not in names:
        near = difflib.get_close_matches(values.energy, names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(f"--energy {shown(values.energy)} is unknown; use one of {', '.join(names)}{hint}")
    return values.energy


def _known_flags(argv: list[str]) -> flags.FlagValues:
    """The flags that are not keys of the config."""
    values = flags.FlagValues()
    _define(values)
    try:
        values(argv, known_only=True)
    except (flags.Error, ValueError) as error:
        raise BadInput(_one_line(error)) from error
    one_of(*WORDS).check("--mode", values.mode)
    return values


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "the run's folder; default: runs/NAME", flag_values=values)
    flags.DEFINE_string("energy", "", "a trained energy of this package, copied to the folder", flag_values=values)
    flags.DEFINE_string("mode", "train", "what to do", flag_values=values)
    flags.DEFINE_string("topology", "", "the chips that --mode=compile is for, such as v5e:16x16", flag_values=values)
    flags.DEFINE_bool("multihost", False, "this is one of several processes of a run", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "processes of the run", flag_values=values)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0 on", flag_values=values)
    flags.DEFINE_float("join_timeout", 300.0, "seconds that the processes have to meet", flag_values=values)


def from_file(source: Path | None, machine: str | None = None) -> Config:
    """What the config file's get_config returns; one with a parameter `machine` chooses its sizes by that."""
    try:
        with shipped.importable(Path(str(source))):
            get_config = runpy.run_path(str(source))["get_config"]
            chooses = "machine" in inspect.signature(get_config).parameters
            found = get_config(machine=machine) if chooses else get_config()
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise BadInput(f"--config {source} cannot be read: {type(error).__name__} {_one_line(error)}") from error
    return schema.as_config(found, f"--config {source}")


def _check_words(argv: list[str]) -> None:
    """Refuse an unknown key, and a flag without its value: the parser would take the next flag for the value."""
    for index, word in enumerate(argv):
        flag, separator, _ = word.partition("=")
        name = re.match(
            r"--?(config\.(.*)|(?:config|workdir|mode|topology|coordinator|num_processes|process_id|join_timeout)$)",
            flag,
        )
        if not name or (index and argv[index - 1] == "--"):
            continue
        if name[2] is not None and not (name[2] in KEYS or name[2] in FORMER_NAMES or schema.is_open(name[2])):
            raise BadInput(f"{flag} is not a key of the config; did you mean --config.{nearest(name[2])}?")
        following = argv[index + 1 : index + 2]
        if not separator and not _is_flag(name[2]) and (not following or following[0].startswith("--")):
            raise BadInput(f"{flag} has no value; give one as {flag}=VALUE")


def _is_flag(key: str | None) -> bool:
    """Whether a key, under its present or a former name, takes True or False."""
    name = FORMER_NAMES.get(key or "", key)
    return name in KEYS and KEYS[name].limit is FLAG


def _overridden(config: Config, argv: list[str]) -> Config:
    """A copy of the config with the values of the words --config.key=value; refuse a word that is left over."""
    words, own = _own_keys([word for index, word in enumerate(argv) if not _names_config(argv, index)])
    values = flags.FlagValues()
    _define(values)
    asked = schema.with_values(config, own)
    config_flags.DEFINE_config_dict("config", asked, flag_values=values, sys_argv=words)
    try:
        rest = values(words)
    except (flags.Error, TypeError, ValueError) as error:
        raise BadInput(_of_a_key(error, words) or _one_line(error)) from error
    if len(rest) > 1:
        raise BadInput(f"'{rest[1][:100]}' is not a flag; usage: {manual.usage(WORDS)}")
    return asked


def _of_a_key(error: BaseException, words: list[str]) -> str:
    """What is wrong with a key's value that the parser could not read, and its cure; empty if it is not about a key."""
    about = re.match(r"flag --config\.([^=]+)=", _one_line(error))
    if about is None or about[1] not in KEYS:
        return ""
    key, flag = KEYS[about[1]], f"--config.{about[1]}"
    texts = ["".join(words[at + 1 : at + 2]) if word == flag else word.removeprefix(f"{flag}=")
             for at, word in enumerate(words) if word == flag or word.startswith(f"{flag}=")]  # fmt: skip
    needed = f"{key.limit.kind} ({key.limit.range})" if key.limit.range else key.limit.kind
    return f"{flag}={shown(texts[-1])[1:-1]} is not {needed}; give one, such as {flag}={key.default}"


def _own_keys(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Split off the values of keys in open groups; the other words have their keys under present names.

    The config need not have a key of an open group yet. Its value is a Python literal, or else text.
    """
    rest: list[str] = []
    own: dict[str, Any] = {}
    following = iter(words)
    for word in following:
        match = re.fullmatch(r"--?config\.([^=]+)(=?)(.*)", word, re.DOTALL)
        if match is None:
            rest.append(word)
        elif schema.is_open(match[1]):
            text = match[3] if match[2] else next(following, "")
            try:
                own[match[1]] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                own[match[1]] = text
        else:
            rest.append(f"--config.{FORMER_NAMES.get(match[1], match[1])}{match[2]}{match[3]}")
    return rest, own


def _one_line(error: BaseException) -> str:
    """The first line of an error's text, at most 400 characters; ml_collections hides it in an escaped string."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    quoted = re.fullmatch(r"([\"'])(.*)\1", text, re.DOTALL)
    return ((quoted[2] if quoted else text).splitlines() or [""])[0][:400]
