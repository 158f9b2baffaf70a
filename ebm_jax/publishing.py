"""A trained energy to give away: its weights, its config, and a card that says what it is and what was measured.

The folder has the layout that model hubs take (`huggingface_hub.upload_folder`), and is opened as a run's folder is. It
cannot be trained further: it has neither the optimiser's state nor a method's memory.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ebm_jax import identity, invocation, schema
from ebm_jax.assemble import init_params
from ebm_jax.checks import is_density
from ebm_jax.data import found
from ebm_jax.kinds import printable
from ebm_jax.models import energy
from ebm_jax.report.reporter import EVALUATION
from ebm_jax.schema import HOST, flat, scope_of, value_of, with_values
from ebm_jax.shipped import WEIGHTS
from ebm_jax.storage import bucket, provenance, published
from ebm_jax.storage.published import CARD, Published
from ebm_jax.storage.workdir import CONFIG, DATA, PATHS, read_config
from ebm_jax.types import BadInput, Config, Folder, Params

ORDERING = "orders images by how noisy they are, and is flat at the data: it is no log-density"
NUMBERS, PICTURE = "evaluation.json", "samples.png"
MAKES_IMAGES = "unconditional-image-generation"  # the hubs' word for images from noise; a class is no prompt
KEPT = (DATA, provenance.FILE)  # files of a run that its published folder has as well
JOINED = {"sample.with_runs": "", "sample.snapshots": 1, "sample.checkpoint": "newest", "sample.buffer_capacity": 0}
"""Keys that name other weights or arrays than the folder's, and the values that name none."""
PLACE = re.compile(r"(?<![\w.:/])/(?:[^\s'\",;/\\]+/)*([^\s'\",;/\\]+)")
"""A whole path in words, of which its last name is left."""
DIVERGENCE = {
    "kl": "KL(data || model), nats",
    "nll": "negative log-likelihood, nats",
    "entropy": "entropy of the data, nats",
}
"""What a run of a 2-D density keeps of it, and what that is."""


def publish(
    config: Config,
    params: Params,
    step: int,
    run: Folder,
    target: Folder,
    *,
    dtype: str = "float32",
    license: str = "",
    notes: str = "",
) -> None:
    """Write the folder: model.safetensors, config.json, README.md, and what the run knows of its data and versions.

    The newest evaluation of this step comes along. Values of keys that only concern this machine stay behind, and of
    a place of data, and of whole paths in the evaluation's words, the last name is left.

    Args:
      params: one network's, or an ensemble's, stacked.
      run: the folder that they come from, which may be a published one.
      target: a folder that does not exist.
      dtype: of the weights in the file: float32, bfloat16 or float16.
      license: a licence's SPDX name, for the card; empty: that of a published `run`, else none.
      notes: sentences for the card, on the data for example; empty: those of a published `run`, else none.

    Raises:
      BadInput: there is something at `target`, or it cannot be written; no such type, or weights that it cannot hold.
    """
    if os.path.lexists(target) if not bucket.is_remote(target) else bucket.names(target):
        raise BadInput(f"folder {target} exists already; give another one")
    names = bucket.names(run)
    if WEIGHTS in names:
        before = published.read(run)
        license, notes = license or before.license, notes or before.notes
    config = _given_away(config)
    parts = energy.members(params)
    plain = parts[0] if len(parts) == 1 else params.params  # pyright: ignore[reportAttributeAccessIssue]
    facts = {"step": step, "members": len(parts), "weights": config.sample.weights, "license": license, "notes": notes}
    files = {WEIGHTS: published.packed(plain, dtype, **facts), CONFIG: _json(config.to_dict())}
    kept = (*KEPT, NUMBERS, PICTURE) if WEIGHTS in names else KEPT
    files |= {name: (run / name).read_bytes() for name in kept if name in names}
    if DATA in files:
        files[DATA] = _without_places(files[DATA])
    if provenance.FILE in files:
        files[provenance.FILE] = _without_words(files[provenance.FILE])
    if numbers := _measured(run, step):
        files[NUMBERS] = numbers
    try:
        if bucket.is_remote(target):
            with bucket.staged(target) as staged:
                _write(staged, files)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as made:
            inside = Path(made) / target.name
            inside.mkdir()
            _write(inside, files)
            inside.rename(target)
    except OSError as error:
        raise BadInput(f"folder {target} cannot be written ({bucket.reason(error)}); give another one") from error


def restored(folder: Folder, config: Config, snapshots: int) -> tuple[Params, Published]:
    """The parameters in a published folder, and what its file says of them.

    Args:
      snapshots: how many are asked for; there is one.

    Raises:
      BadInput: the file is damaged, or of another network; or other weights than these are asked for.
    """
    weights = published.read(folder)
    asked = {"sample.weights": (config.sample.weights, weights.weights), "snapshots": (snapshots, 1)}
    asked["sample.checkpoint"] = (config.sample.checkpoint, "newest")
    for key, (wanted, there) in asked.items():
        if wanted != there:
            raise BadInput(f"{folder} has no checkpoints, and one set of weights: {key} is {there}, not {wanted}")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = published.as_params(weights, shapes, folder)
    return (energy.Stacked(params) if weights.members > 1 else params), weights


def card(folder: Folder) -> str:
    """The text of the folder's README.md, from its other files: what hubs show, in Markdown.

    Raises:
      BadInput: a file is damaged.
    """
    config, weights, names = read_config(folder), published.read(folder), bucket.names(folder)
    data = config.data.name
    head = ["---", "library_name: ebm_jax", *([f"license: {_scalar(weights.license)}"] if weights.license else [])]
    head += [f"pipeline_tag: {MAKES_IMAGES}"] if len(config.data.shape) == 3 else []
    head += ["tags:", "- energy-based-model", "- jax", f"- {_scalar(config.method.name)}", "---"]
    opened = printable(folder.name)
    parts = [
        "\n".join(head),
        f"# An energy of {printable(data)}",
        _what(config, weights),
        *([f"![samples]({PICTURE})"] if PICTURE in names else []),
        "## Use",
        f'```python\nimport jax\nimport ebm_jax\n\nrun = ebm_jax.open_run("{opened}")\n'
        "images = run.sample(jax.random.key(0), 64)\nenergies = run.energy(images)\n```",
        "## Data",
        _data(folder, config, weights),
        "## Training",
        _training(folder, config, weights),
        "## Measured",
        _numbers(folder) if NUMBERS in names else "Not measured.",
        "## Limits",
        _limits(config),
    ]
    return "\n\n".join(parts) + "\n"


def _scalar(text: str) -> str:
    """A text as one value of YAML, quoted where its marks would mean something there."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / CARD).write_text(card(folder))


def _given_away(config: Config) -> Config:
    """The config without what only concerns the machine and the person that trained."""
    defaults = schema.defaults()
    values = {key: value_of(defaults, key) for key in schema.KEYS if scope_of(key) == HOST or key.startswith("eval.")}
    kind, _, place = config.data.source.partition(":")
    if kind in PATHS:
        values["data.source"] = f"{kind}:{Path(place).name}"
    return with_values(config, values | JOINED)


def _without_places(content: bytes) -> bytes:
    """The records of a run's data, with the last name of each place."""
    records = found.from_json(content.decode())
    kinds = [record.source.partition(":") for record in records]
    sources = [f"{kind}:{Path(place).name}" if kind in PATHS else kind + mark + place for kind, mark, place in kinds]
    return found.as_json(
        record._replace(source=source) for record, source in zip(records, sources, strict=True)
    ).encode()


def _without_words(content: bytes) -> bytes:
    """The entries of versions.json without the words of commands, which name places of the machine."""
    try:
        entries = json.loads(content)
        return _json([{key: entry[key] for key in entry if key != invocation.ARGUMENTS} for entry in entries])
    except (ValueError, TypeError):  # a person changed it: it only informs
        return _json([])


def _measured(run: Folder, step: int) -> bytes:
    """The newest evaluation of this step; empty: there is none. A 2-D density's divergence is one as well."""
    numbered = (re.fullmatch(rf"{step:06d}_(\d+)", name) for name in bucket.names(run / "evaluation"))
    for match in sorted(filter(None, numbered), key=lambda match: -int(match[1])):
        if NUMBERS in bucket.names(path := run / "evaluation" / match[0]):
            return PLACE.sub(r"\1", (path / NUMBERS).read_text()).encode()
    return _divergence(run, step) if EVALUATION in bucket.names(run) else b""


def _divergence(run: Folder, step: int) -> bytes:
    """The divergence of a 2-D density at this step, in the form of an evaluation; empty: it was not measured there."""
    rows = [json.loads(line) for line in (run / EVALUATION).read_text().splitlines()]
    found_there = [row for row in rows if row["step"] == step and row.keys() >= DIVERGENCE.keys()]
    if not found_there:
        return b""
    values = {name: {"value": found_there[-1][key], "standard_error": None} for key, name in DIVERGENCE.items()}
    measured = {"density": {"values": values, "protocol": {"of": "integrals over a grid of the square"}}}
    return _json({"protocol": {}, "metrics": measured})


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _what(config: Config, weights: Published) -> str:
    number = sum(array.size for array in weights.arrays.values()) // weights.members
    several = f" The folder holds {weights.members} of them; the energy is their mean." if weights.members > 1 else ""
    classes = config.model.num_classes
    under = f", under each of {classes} classes or none" if classes > 1 else ""
    return (
        f"A network U(x) ({config.model.name}, {number:,} parameters) gives each array x of the shape "
        f"{list(config.data.shape)} in [0, 1] one number{under}. {_meaning(config)}{several}"
    )


def _meaning(config: Config) -> str:
    if not is_density(config):
        return f"It {ORDERING}. Descent of U from noise generates; likelihoods and Metropolis tests have no meaning."
    if config.method.name == "noise_contrastive":
        return "U(x) is -log q(x) itself, with log Z = 0 as far as training went."
    where = " near the data, as far as the chains of training went" if config.method.then.after else ""
    scaled = "U(x)" if config.chain.temperature == 1 else f"U(x) / {config.chain.temperature:g}"
    return f"q(x) = exp(-{scaled}) / Z is a density{where}; Z is not known."


def _data(folder: Folder, config: Config, weights: Published) -> str:
    records = identity.records_of(folder)
    lines = [found.line(records[-1])] if records else [f"data: {printable(config.data.name)}"]
    if records and records[-1].digest:
        lines.append(f"fingerprint of the training images: {records[-1].digest}")
    lines.append(f"licence of these weights: {weights.license or 'not stated'}; the data have their own")
    lines += [weights.notes] if weights.notes else []
    return "\n".join(f"- {printable(line)}" for line in lines)


def _training(folder: Folder, config: Config, weights: Published) -> str:
    default, own = flat(schema.defaults()), flat(config)
    changes = [f"{key}={own[key]}" for key in own if key not in default or own[key] != default[key]]
    which = {"ema": "running mean (EMA) of the weights", "raw": "weights of the last step"}[weights.weights]
    steps = f"{weights.step:,} steps" if weights.step else "trained elsewhere, with keys that may differ from these"
    lines = [f"{config.method.name}, {steps}; {which}, stored as {weights.dtype}", *_versions(folder)]
    settings = "\n".join(printable(change) for change in changes)
    return "\n".join(f"- {line}" for line in lines) + f"\n\nKeys that differ from the defaults:\n\n```\n{settings}\n```"


def _versions(folder: Folder) -> Iterator[str]:
    """A line for each entry of versions.json that can be read: it only informs."""
    try:
        entries = json.loads((folder / provenance.FILE).read_text())
        lines = [
            f"{e['event']} at step {e['step']}, {e['date']}: commit {e['commit']}, jax {e['jax']}" for e in entries
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return
    yield from map(printable, lines)


def _numbers(folder: Folder) -> str:
    """The numbers of evaluation.json, and how they came about."""
    try:
        content = json.loads((folder / NUMBERS).read_text())
        sections = [_section(name, metric) for name, metric in content["metrics"].items()]
        return "\n\n".join(filter(None, [*sections, _facts(content["protocol"])]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / NUMBERS} is damaged ({error}); restore it from a copy") from error


def _section(name: str, metric: dict[str, Any]) -> str:
    values, protocol = metric["values"], metric["protocol"]
    rows = [
        f"| {key} | {_number(value['value'])} | {_number(value['standard_error'])} |" for key, value in values.items()
    ]
    return "\n".join([f"### {name}", "", "| value | | standard error |", "|---|---|---|", *rows, "", _facts(protocol)])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(facts: dict[str, str]) -> str:
    return printable("\n".join(f"- {name}: {text}" for name, text in facts.items()), but="\n")


def _limits(config: Config) -> str:
    kept = (
        "It is a model of these data at this size, and knows nothing else; nothing but what stands above was measured."
    )
    return f"{kept} Other arrays of the shape {list(config.data.shape)} get an energy too, which then says little."
