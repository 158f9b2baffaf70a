"""TFDS's data sets as sources of images; `builders` prepares them without TensorFlow where it can."""

import bisect
import contextlib
import functools
import hashlib
import importlib.util
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import requests

from ebm_jax.data import decode
from ebm_jax.data.memory import check_split
from ebm_jax.data.source import Found, Label, Source
from ebm_jax.paths import expanded
from ebm_jax.types import BadInput, Shape


class Condition(NamedTuple):
    """How a record gives the label of an image."""

    features: tuple[str, ...]
    """The record's features that `label` takes; "a/b" is b within a."""
    label: Callable[..., Label]
    num_classes: int
    class_names: tuple[str, ...] = ()


def _vector(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


CONDITIONS: dict[str, Condition] = {  # dSprites' as in the release, data.py:430-443, but shapes count from 0
    "shape": Condition(("label_shape",), int, 3, ("square", "ellipse", "heart")),
    "size": Condition(("value_scale",), _vector, 1),
    "position": Condition(("value_x_position", "value_y_position"), _vector, 2),
    "rotation": Condition(("value_orientation",), lambda angle: _vector(np.cos(angle), np.sin(angle)), 2),
}

GAIN = {"dsprites": 255}  # black is 0 and white is 1: google-research/task_adaptation data/dsprites.py, preprocess_fn


def tfds_source(
    name: str,
    split: str,
    shape: Shape,
    *,
    crop: bool,
    condition: str,
    data_dir: str,
    manual_dir: str,
    verify_checksums: bool,
) -> Source:
    """The images of one split of a TFDS set; prepares the set first if needed, and keeps no record in memory.

    TFDS stores dSprites as 0 and 1, as its authors do; we read 0 and 255. The release takes the stored values for
    values in [0, 1] too (data.py:429-471).

    Args:
      name: one of `ebm_jax.data.builders.BUILDERS`, which need no TensorFlow; or any set of TFDS where it is installed.
      shape: (height, width, channels) of the images; `crop` brings images to it, else they must have it.
      condition: what the label is. "class": the record's `label`, or 0 where it has none. For dSprites "shape"
        (0 square, 1 ellipse, 2 heart), and as float32 vectors "size" [1] in 0.5..1, "position" [2] (x, y) in 0..1 and
        "rotation" [2] (cos, sin). For CelebA one of the 40 attributes, such as "Smiling": 0 no, 1 yes.
      data_dir: TFDS's directory; empty is TFDS's own default.
      manual_dir: take the source files from here and verify TFDS's checksums; empty: download them.
      verify_checksums: False: take whatever files lie in `manual_dir`, and prepare them in `data_dir`/unverified, so
        that they never pass for the official data.

    Raises:
      BadInput: unknown name, split or condition; no network and no files, a wrong checksum, a truncated file; images of
        another shape; damaged records, which `read` may raise too.
    """
    builder = _builder(name, data_dir, verify_checksums, manual_dir)
    features = dict(builder.info.features.items())
    _check_shape(name, features, shape, crop)
    _condition(name, features, condition)
    _prepare(name, builder, manual_dir, verify_checksums)
    chosen = _condition(name, features, condition)  # once more: the names of classes may come with the files
    check_split(name, split, list(builder.info.splits))
    parse = _parser(features, chosen.features)
    with _intact(builder):
        record_at = _records(builder.info.splits[split].file_instructions)
    length = builder.info.splits[split].num_examples

    def read(row: int) -> tuple[np.ndarray, Label]:
        with _intact(builder):
            encoded, *values = parse(record_at(row))
        return decode.decode(encoded, shape, crop, GAIN.get(name, 1)), chosen.label(*values)

    with _intact(builder):
        record_at(length - 1)  # finds a truncated copy now, not hours later
    words = f"{builder.info.full_name} {split} {condition} {length} {'official' if verify_checksums else 'unverified'}"
    found = Found(
        chosen.class_names,
        splits=tuple(builder.info.splits),
        digest=lambda: hashlib.sha256(words.encode()).hexdigest(),  # data.dir may differ from host to host
    )
    return Source(length, read, lambda row: f"{name} {split} record {row}", chosen.num_classes, found)


def _builder(name: str, data_dir: str, verify_checksums: bool, manual_dir: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.constants import DATA_DIR

    from ebm_jax.data.builders import BUILDERS

    if not verify_checksums and not manual_dir:
        raise BadInput("data.verify_checksums=False needs data.manual_dir, the directory of the unverified files")
    root = expanded(data_dir or DATA_DIR, "data.dir")
    place: dict[str, Any] = {
        "data_dir": root if verify_checksums else root / "unverified",
        "file_format": "array_record",  # TFDS's only format to read in any order without TensorFlow
    }
    known = f"data.name '{name}' is not a TFDS set that is known here; use one of {', '.join(BUILDERS)}"
    if name not in BUILDERS and importlib.util.find_spec("tensorflow") is None:
        raise BadInput(f"{known}, or pip install tensorflow to prepare TFDS's other sets")
    try:
        return BUILDERS.get(name, functools.partial(tfds.builder, name))(**place)
    except tfds.core.DatasetNotFoundError as error:
        raise BadInput(f"{known}, or another of tensorflow.org/datasets/catalog") from error
    except ValueError as error:
        raise BadInput(
            f"{name} in data.dir {root} cannot be used ({_first_line(error)}); for a set that lies there in another "
            "format than array_record, give another data.dir"
        ) from error


def _prepare(name: str, builder: Any, manual_dir: str, verify_checksums: bool) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    from ebm_jax.data.builders import BUILDERS

    if builder.data_path.exists():
        return
    manual = expanded(manual_dir, "data.manual_dir") if manual_dir else None
    if name in BUILDERS:
        _check_files(name, builder, manual)
        builder.unverified_dir = None if verify_checksums else manual
    download = tfds.download.DownloadConfig(manual_dir=manual, force_checksums_validation=verify_checksums)
    try:
        builder.download_and_prepare(download_config=download)
    except BadInput:
        raise
    except NonMatchingChecksumError as error:
        raise BadInput(
            f"{_first_line(error)} Fetch it again, or use it as it is with --config.data.manual_dir=DIR "
            "--config.data.verify_checksums=False"
        ) from error
    except (OSError, ValueError, LookupError, AssertionError) as error:  # TFDS's, for files unlike the features
        raise BadInput(
            f"{name} cannot be prepared in {builder.data_path} ({_first_line(error)}); "
            "check the disk's free space and the source files"
        ) from error


def _check_files(name: str, builder: Any, manual: Path | None) -> None:
    """Refuse if the manual directory lacks a source file or, without one, the first file cannot be downloaded."""
    files = {builder.source_file(url): url for url in builder.source_urls()}
    if manual is not None:
        missing = [file for file in files if not (manual / file).is_file()]
        if missing:
            raise BadInput(f"data.manual_dir {manual} has no {missing[0]}; put {files[missing[0]]} there")
        return
    put = f"put {', '.join(files)} into a directory and give it as --config.data.manual_dir=DIR"
    if builder.by_hand:
        raise BadInput(f"{name} must be fetched by hand from {builder.info.homepage}; {put}")
    url = next(iter(files.values()))
    if not _reachable(url):
        raise BadInput(f"{name} is not in {builder.data_path} and {url} cannot be reached; {put}")


def _reachable(url: str) -> bool:
    """Try once and briefly: without a network TFDS itself retries for minutes."""
    try:
        return requests.head(url, timeout=10, allow_redirects=True).ok
    except requests.RequestException:
        return False


def _condition(name: str, features: dict[str, Any], condition: str) -> Condition:
    label = features.get("label")
    conditions = {
        "class": Condition(("label",), int, label.num_classes, tuple(label.names))
        if label
        else Condition((), lambda: 0, 1),
        **{key: value for key, value in CONDITIONS.items() if features.keys() >= set(value.features)},
        **{
            key: Condition((f"attributes/{key}",), int, 2, (f"not {key}", key))
            for key in features.get("attributes", {})
        },
    }
    if condition not in conditions:
        raise BadInput(f"data.condition '{condition}' is not a label of {name}; use one of {', '.join(conditions)}")
    return conditions[condition]


def _check_shape(name: str, features: dict[str, Any], shape: Shape, crop: bool) -> None:
    if "image" not in features:
        raise BadInput(f"data.name '{name}' is not a set of images; its features are {', '.join(features)}")
    kind = features["image"].np_dtype
    if kind != np.uint8:
        raise BadInput(
            f"data.name '{name}' stores images of {np.dtype(kind)}, whose white is not known here; save them as an "
            ".npz and use data.source=npz:PATH with data.max_value"
        )
    stored = features["image"].shape
    if not crop and None not in stored and stored != tuple(shape):
        raise BadInput(f"data.shape {tuple(shape)} is not the shape of {name}; use {stored}, or data.crop=True")


def _parser(features: dict[str, Any], names: tuple[str, ...]) -> Callable[[bytes], list[Any]]:
    """The function from a record's bytes to the still encoded image and the named features; it decodes no others.

    `tfds.decode.PartialDecoding` needs TensorFlow, but features deserialise on their own.
    """
    import tensorflow_datasets as tfds

    paths = ("image", *names)
    wanted: dict[str, Any] = {}
    for path in paths:
        *parents, last = path.split("/")
        inner = wanted
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = _at(features, path)
    subset = tfds.features.FeaturesDict(wanted)

    def parse(record: bytes) -> list[Any]:
        values = subset.deserialize_example_np(record, decoders={"image": tfds.decode.SkipDecoding()})
        return [_at(values, path) for path in paths]

    return parse


def _at(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree


def _records(shards: Any) -> Callable[[int], bytes]:
    """The function from a row to the bytes of its record; several threads may call it at once.

    A seek in a reader without threads of its own takes 10 µs and needs a lock. `tfds.data_source` has a thread pool
    read each record, takes 300 µs, and so halves the speed of reading small images.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    ends = list(itertools.accumulate(shard.take for shard in shards))
    options = "readahead_buffer_size:0,max_parallelism:0"

    @functools.cache
    def reader_of(index: int) -> tuple[Any, threading.Lock]:
        path = str(shards[index].filename)
        return ArrayRecordReader(path, options=options, file_reader_buffer_size=32768), threading.Lock()

    def record_at(row: int) -> bytes:
        index = bisect.bisect_right(ends, row)
        reader, lock = reader_of(index)
        with lock:
            reader.seek(row - ends[index] + shards[index].take)
            return reader.read()

    return record_at


@contextlib.contextmanager
def _intact(builder: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # array_record and protobuf each raise their own
        raise BadInput(f"{builder.data_path} is damaged ({_first_line(error)}); delete it and prepare again") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
