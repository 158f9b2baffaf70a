"""What --help prints, read off the schema, the configs and the sources, so that it says what there is."""

import ast
import difflib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ebm_jax import invocation, schema, shipped
from ebm_jax.given import BadInput
from ebm_jax.kinds import Limit, shown
from ebm_jax.schema import FORMER_NAMES, GROUPS, KEYS, OPEN_GROUPS, nearest

COLUMNS = 100
PACKAGE = Path(__file__).parent
OF_COMPILE = PACKAGE.parent / "tools" / "compile" / "report.py"  # in a clone alone
OF_REPORT = PACKAGE / "report" / "verb.py"
SCOPES = {
    schema.RUN: "another value makes another run",
    schema.FREE: "a run may go on under another value",
    schema.HOST: "a run may go on under another value, and each of its hosts may have its own",
}
ON_MANY_HOSTS = (
    "On every host of a pod or cluster (docs/pods.md): --multihost, and where JAX cannot know them "
    "--coordinator=HOST:PORT --num_processes=N --process_id=I; --join_timeout=SECONDS"
)


def usage(modes: Sequence[str]) -> str:
    """The form of a command, as this program was started."""
    if invocation.name() == invocation.COMMAND:
        return f"{invocation.COMMAND} [{'|'.join(modes)}] --config=NAME [--workdir=DIR] [--config.key=value ...]"
    return f"python run.py --config=configs/NAME.py [--workdir=DIR] [--mode={'|'.join(modes)}] [--config.key=value ...]"


def overview(modes: Sequence[str]) -> str:
    """The modes, examples, configs, tasks, metrics and groups of keys."""
    program = " ".join(invocation.portable())
    config = "NAME" if invocation.name() == invocation.COMMAND else "configs/NAME.py"
    example = config.replace("NAME", "digits")
    groups = sorted({group.partition(".")[0] for group in GROUPS})
    parts = [
        ["Train an energy-based model, or use a trained one."],
        [f"  {program} --config={config} [--workdir=DIR] [--mode=MODE] [--config.key=value ...]"],
        ["MODE, also as the first word; without one it is train:", *_listed({mode: mode_line(mode) for mode in modes})],
        [
            "Examples:",
            f"  {program} --config={example}",
            f"  {program} sample --workdir=runs/digits --config.sample.labels=3,5",
            f"  {program} evaluate --workdir=runs/digits --config.eval.metrics=classifier_distance",
        ],
        [
            "Configs that come along, for --config=NAME; a file of your own goes as --config=PATH/NAME.py:",
            *_listed({name: first_line(shipped.folder() / f"{name}.py") for name in shipped.names()}),
        ],
        [
            "Trained energies that come along, for sample, evaluate and export with --energy=NAME:",
            *_wrapped(", ".join(shipped.energy_names())),
        ],
        ["Tasks, for --config.sample.task=NAME:", *_listed(tasks())],
        ["Metrics, for --config.eval.metrics=NAME,NAME (docs/evaluation.md):", *_listed(metrics())],
        [
            "Keys, for --config.KEY=VALUE; all are in ebm_jax/schema.py:",
            "  --help=KEY tells the default, limit, meaning and source of one, --help=GROUP lists a group",
            *_wrapped(f"Groups: {', '.join(groups)}"),
        ],
        textwrap.wrap(ON_MANY_HOSTS, COLUMNS),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def entry(asked: str, modes: Sequence[str]) -> str:
    """What --help=WORD tells about a key, a group of keys, a mode, a task or a metric.

    Raises:
      BadInput: it is none of them; with the nearest one.
    """
    word = asked.strip().lstrip("-").removeprefix("config.").partition("=")[0]
    if word in GROUPS:
        return _group(word)
    name = FORMER_NAMES.get(word, word)
    if name in KEYS:
        return _key(name, "" if name == word else f" (formerly {word})")
    if word in OPEN_GROUPS or schema.is_open(word):
        return f"{word}: keys of your own, for code of your own (docs/extending.md)"
    if word in modes:
        return f"--mode={word}: {mode_line(word)}"
    for key, listed in OPTIONS.items():
        if word in (entries := listed()):
            own = f"{key.partition('.')[0]}.{word}"
            keys = [_group(own)] if own in GROUPS else []
            return "\n".join([*textwrap.wrap(f"--config.{key}={word}: {entries[word]}", COLUMNS), *keys])
    near = difflib.get_close_matches(word, [*sorted(GROUPS), *modes, *tasks(), *metrics()], 1)
    near = near[0] if near and "." not in word else nearest(word)
    raise BadInput(f"--help={shown(asked)[1:-1]} is no key, group, mode, task or metric; did you mean --help={near}?")


def show(text: str) -> None:
    """Print it for a reader that may leave before the end, as a pager or head does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end


def mode_line(mode: str) -> str:
    """What a mode does, from its source."""
    source = {"compile": OF_COMPILE, "report": OF_REPORT}.get(mode, PACKAGE / f"{mode}.py")
    if not source.is_file():
        return "compiles for chips that are not there; needs a clone of the repository"
    words = first_line(source).removeprefix("The verb that ").removesuffix(".")
    return words.removeprefix(f"{mode}s: ").removeprefix("it ")


def tasks() -> dict[str, str]:
    """What each task of `sample.task` does, by its name."""
    return _described(PACKAGE / "tasks", "TASKS")


def metrics() -> dict[str, str]:
    """What each metric of `eval.metrics` measures, by its name."""
    return _described(PACKAGE / "evaluators", "EVALUATORS")


OPTIONS = {"sample.task": tasks, "eval.metrics": metrics}


def first_line(source: Path, function: str = "") -> str:
    """The first line of a module's docstring, or its function's, without importing it; empty if there is none."""
    module = ast.parse(source.read_text(encoding="utf-8"))
    found = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    return (ast.get_docstring(found[function] if function else module) or "").partition("\n")[0]


def _described(package: Path, table: str) -> dict[str, str]:
    """The table of a package, {"name": Type(check, module.function)}, without importing it: each function's first line.

    `check` comes first in both types; the second function is what does it.
    """
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {ast.literal_eval(name): _does(package, entry) for name, entry in pairs if name}
    raise LookupError(f"{package} has no table {table}")


def _does(package: Path, entry: ast.expr) -> str:
    """The first line about the second argument, `module.function`, of a table's entry."""
    if not (isinstance(entry, ast.Call) and isinstance(does := entry.args[1], ast.Attribute)):
        raise LookupError(f"{ast.unparse(entry)} of {package} does not name module.function second")
    return first_line(package / f"{ast.unparse(does.value)}.py", does.attr)


def _key(name: str, remark: str) -> str:
    key = KEYS[name]
    rows = {
        "default": _value(key.default),
        "limit": _limit(key.limit),
        "source": key.source,
        "scope": SCOPES[schema.scope_of(name)],
        "set by": f"--config.{name}=VALUE",
    }
    meaning = textwrap.wrap(key.meaning, COLUMNS - 2, initial_indent="  ", subsequent_indent="  ")
    options = ["each of them:", *_listed(OPTIONS[name]())] if name in OPTIONS else []
    told = _listed({word: text for word, text in rows.items() if text})
    return "\n".join([f"{name}{remark}", *meaning, *told, *options])


def _group(group: str) -> str:
    rows = {name: key for name, key in KEYS.items() if name.startswith(f"{group}.")}
    lines = [f"The keys of {group}, with their defaults; --help=KEY tells more:"]
    for name, key in rows.items():
        lines.append(f"  {name}={_word(key.default)}")
        lines += textwrap.wrap(key.meaning, COLUMNS - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _value(value: Any) -> str:
    return "empty" if value == "" else _word(value)


def _word(value: Any) -> str:
    """A value as a word of the command line."""
    return str(value).replace(" ", "") if isinstance(value, tuple) else str(value)


def _limit(limit: Limit) -> str:
    return f"one of {', '.join(limit.options)}" if limit.options else ", ".join(filter(None, (limit.kind, limit.range)))


def _listed(rows: dict[str, str]) -> list[str]:
    """A line for each name, its text in a column of its own."""
    return [line for name, text in rows.items() for line in _row(name, text, max(map(len, rows)) + 4)]


def _row(name: str, text: str, indent: int) -> Iterator[str]:
    lines = textwrap.wrap(text, COLUMNS - indent, break_long_words=False, break_on_hyphens=False) or [""]
    yield f"  {name}".ljust(indent) + lines[0]
    yield from (" " * indent + line for line in lines[1:])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
