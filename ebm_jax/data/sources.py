"""The data that a config names, as a source of images and as batches."""

import contextlib
import difflib
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ebm_jax.data import decode, densities, files, found, layout, memory, source, stream, tfds, toys
from ebm_jax.data.found import Record
from ebm_jax.distributed import parallel, processes
from ebm_jax.kinds import shown
from ebm_jax.labels import label_shape
from ebm_jax.registry import called, named
from ebm_jax.schema import member_seeds, with_values
from ebm_jax.types import BadInput, Batch, Config

NOISE_IMAGES = 256  # of data.source=noise
MEASURED = 256  # images of a set that streams whose values are measured


BatchAt = Callable[[int], Batch]


@contextlib.contextmanager
def open_batches(config: Config, warn: Callable[[str], None]) -> Iterator[BatchAt]:
    """The function step -> this process's rows of a batch of the config's data, in the config's shape.

    A 2-D density gives fresh draws. Images live in memory if all fit into `data.memory_gib`, else they stream from
    their source; the batches are the same. With several models, each gets the batches of its own seed, and the arrays
    have a leading axis of members. The reading ends with the context.

    Args:
      warn: takes one line for each image that cannot be used.

    Raises:
      BadInput: the data cannot be had, does not fit the config, or is smaller than one batch.
    """
    with open_data(config, warn) as data:
        yield data.batches


class Data(NamedTuple):
    """A config's data, being read."""

    batches: BatchAt
    """As `open_batches` gives it."""
    record: Record | None
    """What was found; None: a 2-D density."""


@contextlib.contextmanager
def open_data(config: Config, warn: Callable[[str], None]) -> Iterator[Data]:
    """As `open_batches`, with the record of what was found beside the batches."""
    with contextlib.ExitStack() as stack:
        batches_of, record = _batches_of(config, warn, stack)
        members = [batches_of(seed) for seed in member_seeds(config)]
        alone = len(members) == 1
        yield Data(members[0] if alone else lambda step: _stacked([batch_at(step) for batch_at in members]), record)


def _batches_of(
    config: Config, warn: Callable[[str], None], stack: contextlib.ExitStack
) -> tuple[Callable[[int], BatchAt], Record | None]:
    """The function seed -> the batches of a run with this seed, and the record; all seeds share the images."""
    batch_size, workers = config.train.batch_size, config.data.workers or parallel.cores()
    share = {"process": processes.index(), "num_processes": processes.count()}
    if config.data.source == "density":
        return lambda seed: memory.sampled_batches(make_density(config).sample, seed, batch_size, **share), None
    images = source.tolerant(make_source(config), config.data.max_unreadable, warn)
    memory.check_length(images.length, batch_size)
    processes.require_same("the number of images", str(images.length))
    if images.length * math.prod(config.data.shape) <= config.data.memory_gib * 2**30:
        dataset = memory.load(images, workers)
        record = _record(config, images, dataset)
        return lambda seed: memory.make_batches(dataset, seed, batch_size, **share), record
    rows = np.unique(np.linspace(0, images.length - 1, MEASURED).astype(int))
    few = images._replace(length=len(rows), read=lambda row: images.read(int(rows[row])))
    record = _record(config, images, memory.load(few, workers))
    return lambda seed: stack.enter_context(stream.open_batches(images, seed, batch_size, workers, **share)), record


def _record(config: Config, images: source.Source, dataset: memory.Dataset) -> Record:
    """The record of a source, with the range of values over `dataset`, its images or some of them.

    Only the first process has the digest, because only it compares and writes.
    """
    record = found.record_of(images, config.data.source, config.data.split, digest=processes.is_first())
    if record.values is not None:
        return record
    low, high = float(dataset.images.min()), float(dataset.images.max())
    return record._replace(values=(low, high), measured=len(dataset.images))


def _stacked(batches: list[Batch]) -> Batch:
    images, labels = (np.stack(column) for column in zip(*batches, strict=True))
    return Batch(images, labels)  # pyright: ignore[reportArgumentType]


def load_dataset(
    config: Config, warn: Callable[[str], None], rows_of: Callable[[int], np.ndarray] = np.arange
) -> memory.Dataset:
    """All images of the config's data in memory, uint8, with the data's labels, also for an unconditional model.

    Args:
      warn: takes one line for each image that cannot be used.
      rows_of: from the number of images to the rows to read.

    Raises:
      BadInput: as `make_source`, or too many are unreadable, or they are larger than the memory of the machine.
    """
    is_conditional = label_shape(config) is not None or config.model.num_classes > 1
    images = make_source(config) if is_conditional else _named_source(config)
    every, rows = source.tolerant(images, config.data.max_unreadable, warn), rows_of(images.length)
    needed, available = len(rows) * math.prod(config.data.shape), parallel.host_memory()
    if needed > available:
        raise BadInput(
            f"{len(rows)} images of {config.data.name} {config.data.split} take {needed:,} bytes of memory, of "
            f"{available:,}; use a smaller split, or a larger machine"
        )
    chosen = every._replace(length=len(rows), read=lambda row: every.read(int(rows[row])))
    return memory.load(chosen, config.data.workers or parallel.cores())


@contextlib.contextmanager
def split_named(key: str) -> Iterator[None]:
    """Let an error about the split name `key`, such as "eval.split", in place of data.split."""
    try:
        yield
    except BadInput as error:
        if "data.split" not in str(error):
            raise
        raise BadInput(str(error).replace("data.split", key)) from error


def _named_source(config: Config) -> source.Source:
    """The images that `data.source` and `data.name` mean, with the data's own labels."""
    make, path = factory_of(config.data.source), config.data.source.partition(":")[2]
    split, share = layout.split_of(config.data.split), config.data.holdout
    if not share or split not in ("train", "test"):
        return make(config, path)
    images = make(with_values(config, {"data.split": "train"} if split == "test" else {}), path)
    if images.found.splits and "test" in images.found.splits:
        asked = images if split == "train" else make(config, path)
        note = f"data.holdout {share:g} keeps nothing back, because there is a split test"
        return asked._replace(found=asked.found._replace(notes=(*asked.found.notes, note)))
    return _part(images, share, held_out=split == "test")


def _part(images: source.Source, share: float, *, held_out: bool) -> source.Source:
    """The images that are held out as the split test, or all others."""
    id_of = images.found.id_of or str
    is_held_out = np.array([_chance(id_of(row)) < share for row in range(images.length)])
    number = int(is_held_out.sum())
    if number in (0, images.length):
        raise BadInput(
            f"data.holdout {share:g} keeps {number} of {images.length} images back; use a share between, or 0"
        )
    rows = np.flatnonzero(is_held_out == held_out)
    note = f"{number:,} of {images.length:,} images are kept back as the split test (data.holdout {share:g})"
    known = images.found._replace(
        class_sizes=(),
        splits=tuple(sorted({*(images.found.splits or ("train",)), "test"})),
        notes=(*images.found.notes, note),
        id_of=lambda row: id_of(int(rows[row])),
    )
    return images._replace(
        length=len(rows),
        read=lambda row: images.read(int(rows[row])),
        name=lambda row: images.name(int(rows[row])),
        found=known,
    )


def _chance(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that images that come later move no other image."""
    text = layout.composed(name).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) / 2**64


def factory_of(name: str) -> Callable[[Config, str], source.Source]:
    """The function (config, text after the colon of `data.source`) -> source.

    Raises:
      BadInput: no source has this name.
    """
    kind = name.partition(":")[0]
    if kind in SOURCES:
        return SOURCES[kind]
    known = [*SOURCES, "density"]
    if ":" not in name and (re.search(r"[/\\~]", name) or name.endswith(".npz")):
        kind = "npz" if name.endswith(".npz") else "folder"
        raise BadInput(f"data.source {shown(name)} is a path without a kind; use {kind}:{name}")
    if ":" not in name or difflib.get_close_matches(kind, known):  # a slip rather than a module
        named("data.source", kind, dict.fromkeys(known))
    own = named("data.source", name, {})
    return lambda config, path: _own_source(config, own)


def _own_source(config: Config, factory: Any) -> source.Source:
    """The user's own source; its factory gets the values that its signature names and all of `data.own`."""
    data = config.data
    offers = {
        "name": lambda: data.name,
        "split": lambda: data.split,
        "shape": lambda: tuple(data.shape),
        "condition": lambda: data.condition,
        "crop": lambda: data.crop,
    }
    made = called("data.source", data.source, factory, offers, data.own.to_dict())
    if isinstance(made, memory.Dataset):
        made = memory.as_source(made, data.name)
    if not isinstance(made, source.Source):
        raise BadInput(
            f"data.source '{data.source}' gives {type(made).__name__}; return an ebm_jax.data.source.Source, or an "
            "ebm_jax.data.memory.Dataset of arrays"
        )
    return made._replace(read=lambda row: _of_bytes(config, made.read(row)))


def _of_bytes(config: Config, example: tuple[np.ndarray, source.Label]) -> tuple[np.ndarray, source.Label]:
    """The example, if its image is uint8; floats from 0 to 1 would be stored as black."""
    if example[0].dtype != np.uint8:
        raise BadInput(
            f"data.source '{config.data.source}' gives images of {example[0].dtype}; give uint8, 0 to 255 "
            "(ebm_jax.pixels.quantised makes it of [0, 1])"
        )
    return example


def make_source(config: Config) -> source.Source:
    """The images that `data.source` and `data.name` mean; an unconditional model sees label 0 everywhere.

    Raises:
      BadInput: there are none, or their shape or number of classes is not the config's.
    """
    images = _named_source(config)
    num_classes, name = config.model.num_classes, config.data.source.partition(":")[2] or config.data.name
    soft = label_shape(config) is not None
    if num_classes != images.num_classes and (soft or num_classes > 1):
        use = f"{images.num_classes}" if soft else f"1 (unconditional) or {images.num_classes}"
        names = found.some([found.shown(word) for word in images.found.class_names])
        why = "".join(
            f", {words}" for words in (f"whose classes are {names}" if names else "", *images.found.notes) if words
        )
        raise BadInput(f"model.num_classes {num_classes} does not fit {name}{why}; use {use}")
    if soft or num_classes > 1:
        return images._replace(read=lambda row: _with_label(images.read(row), label_shape(config) or (), config, name))
    return images._replace(read=lambda row: (images.read(row)[0], 0))


def _with_label(
    example: tuple[np.ndarray, source.Label], shape: tuple[int, ...], config: Config, name: str
) -> tuple[np.ndarray, source.Label]:
    """The example, if its label is a class or a vector as `data.condition` asks; else BadInput."""
    if np.shape(example[1]) != shape:
        kinds = ("classes", "vectors") if shape else ("vectors", "classes")
        raise BadInput(
            f"data.condition {config.data.condition} does not fit {name}: its labels are {kinds[0]}, not {kinds[1]}"
        )
    return example


def _tfds_source(config: Config, path: str) -> source.Source:
    del path
    return tfds.tfds_source(
        config.data.name,
        config.data.split,
        tuple(config.data.shape),
        crop=config.data.crop,
        condition=config.data.condition,
        data_dir=config.data.dir,
        manual_dir=config.data.manual_dir,
        verify_checksums=config.data.verify_checksums,
    )


def _sklearn_source(config: Config, path: str) -> source.Source:
    del path
    if config.data.name != "digits":
        raise BadInput(f"data.name '{config.data.name}' is not in scikit-learn's bundle; use digits")
    digits = memory.digits(config.data.split)
    shape, stored = tuple(config.data.shape), digits.images.shape[1:]
    if shape != stored and not config.data.crop:
        raise BadInput(f"data.shape {shape} is not the shape of digits; use {stored}, or data.crop=True")
    whole = memory.as_source(digits, "digits", ("train", "test"))
    if shape == stored:
        return whole

    def read(row: int) -> tuple[np.ndarray, source.Label]:
        image, label = whole.read(row)
        return decode.conform(Image.fromarray(image[:, :, 0]), shape, crop=True), label

    return whole._replace(read=read)


def _file_source(
    make: Callable[..., source.Source], others: Callable[[Config], dict[str, Any]] = lambda config: {}
) -> Callable[[Config, str], source.Source]:
    """The source from a path; `others` gives further keywords of `make`."""

    def from_path(config: Config, path: str) -> source.Source:
        if not path:
            kind = config.data.source.partition(":")[0]
            raise BadInput(f"data.source {config.data.source} names no file or folder; use {kind}:PATH")
        return make(path, config.data.split, tuple(config.data.shape), crop=config.data.crop, **others(config))

    return from_path


def _noise_source(config: Config, path: str) -> source.Source:
    del path
    shape = (NOISE_IMAGES, *config.data.shape)
    noise = memory.noise(shape, config.model.num_classes, soft=label_shape(config) is not None)
    return memory.as_source(noise, "noise")


def _shapes_source(config: Config, path: str) -> source.Source:
    del path
    generated = toys.shapes(config.data.split, tuple(config.data.shape), config.data.condition)
    return memory.as_source(generated, "shapes", tuple(toys.SIZES))


SOURCES: dict[str, Callable[[Config, str], source.Source]] = {
    "tfds": _tfds_source,
    "sklearn": _sklearn_source,
    "folder": _file_source(
        files.folder_source,
        lambda config: {
            "numeric": config.data.class_order == "numeric",
            "extensions": config.data.extensions,
            "max_value": config.data.max_value,
        },
    ),
    "npz": _file_source(files.npz_source, lambda config: {"max_value": config.data.max_value}),
    "shapes": _shapes_source,
    "noise": _noise_source,
}


def make_density(config: Config) -> densities.Density:
    """The 2-D law that `data.name` names.

    Raises:
      BadInput: no density has this name.
    """
    return named("data.name", config.data.name, densities.DENSITIES)
