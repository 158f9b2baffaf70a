"""A person's own images as sources: a folder of image files, or one .npz of arrays."""

import hashlib
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ebm_jax.data import decode, layout, levels
from ebm_jax.data.source import Found, Label, Source, class_sizes, digest_of
from ebm_jax.distributed import parallel
from ebm_jax.kinds import printable, shown
from ebm_jax.paths import expanded
from ebm_jax.types import BadInput, Shape

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif")
EXTENSIONS += (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi")
LABELS = ("label", "y", "target", "targets", "class", "classes")  # names that labels have where there is no usual one
LONGEST_ENDING = 12  # characters of an ending to show
REASON = 200  # characters of another library's error; zipfile quotes whole files
LARGEST_FILE = 2**30  # bytes; PIL opens at most 179 million pixels
LARGEST_LABEL = np.iinfo(np.int32).max  # of a class or a value; refuses infinity too


class _Folder(NamedTuple):
    """What a split's folder holds."""

    root: Path
    files: list[tuple[str, int]]
    """(Path from `root`, label) of each image."""
    class_names: tuple[str, ...]
    """Empty: there are no class folders."""
    notes: tuple[str, ...]
    passed_over: tuple[tuple[str, int], ...]


def folder_source(
    path: str | Path,
    split: str,
    shape: Shape,
    *,
    crop: bool,
    numeric: bool = True,
    extensions: str = "",
    max_value: float = 0.0,
) -> Source:
    """The image files below ROOT, the folder of `split` in PATH, or PATH if it has no such folders (data/layout.py).

    With class folders (ROOT/CLASS/**/image) the label is the place of the folder's name among the class names. The
    training split gives these names if it exists, so that all splits agree. With images directly in ROOT every label is
    0. Images are sorted by class, then by the names along the path, as Python sorts strings. The source passes over
    hidden files and folders, links to folders inside a class, files with another extension, and anything that is no
    file, such as a pipe; it counts them. A link to nothing counts as an image that cannot be read.

    Args:
      shape: (height, width, channels) of the images.
      crop: as for `decode.decode`.
      numeric: as for `layout.classes`.
      extensions: those of `EXTENSIONS` to take, apart by commas; empty: all.
      max_value: as for `levels.deep_of`; some images are looked at, and `read` checks every image.

    Raises:
      BadInput: no such folder, no images in it or in one of its class folders, images beside class folders, a class
        that the training split does not have; what `layout` and `levels.deep_of` refuse.
    """
    base = expanded(path, "data.source")
    try:
        folder, splits = _labelled_files(base, split, numeric, _endings(extensions)), layout.splits(base)
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read ({error.strerror}); mend that") from error
    root, files, names, notes, passed_over = folder

    def name(row: int) -> str:
        return printable(os.fsencode(root / files[row][0]).decode("utf-8", "backslashreplace"))

    looks = levels.looks(lambda row: _encoded(root / files[row][0]), len(files))
    deep = levels.deep_of(looks, max_value, printable(str(root)))

    def read(row: int) -> tuple[np.ndarray, Label]:
        encoded, ending = _encoded(root / files[row][0])
        try:
            return decode.decode(encoded, shape, crop, deep=deep, ending=ending), files[row][1]
        except decode.OutOfRange as error:
            raise BadInput(f"{name(row)} {error}") from error

    sizes = np.bincount([label for _, label in files], minlength=len(names)).tolist()
    found = Found(
        names,
        tuple(sizes),
        passed_over=passed_over + _pages(looks),
        values=looks.values,
        measured=looks.count,
        splits=splits,
        notes=notes + levels.note_of(looks, max_value),
        digest=lambda: _digest(folder),
        id_of=lambda row: files[row][0],
    )
    return Source(len(files), read, name, len(names) or 1, found)


def _endings(extensions: str) -> tuple[str, ...]:
    """The values of `data.extensions`.

    Raises:
      BadInput: files of one of them cannot be read.
    """
    asked = tuple(word.strip().lower() for word in extensions.split(",") if word.strip())
    for word in asked:
        if word not in EXTENSIONS:
            raise BadInput(f"data.extensions {shown(word)} cannot be read; use some of {', '.join(EXTENSIONS)}")
    return asked or EXTENSIONS


def _encoded(path: Path) -> tuple[bytes, str]:
    """The bytes of an image's file, and the ending of its name."""
    try:
        size = os.stat(path).st_size
        if size > LARGEST_FILE:
            raise decode.Unreadable(f"has {size:,} bytes, more than any image that can be read")
        return path.read_bytes(), path.suffix.lower()
    except OSError as error:
        raise decode.Unreadable(f"cannot be read ({error.strerror})") from error


def _pages(looks: levels.Looks) -> tuple[tuple[str, int], ...]:
    return ((f"further pages or frames of {looks.count:,} images looked at", looks.pages),) if looks.pages else ()


def _digest(folder: _Folder) -> str:
    """A SHA-256 of each image's path from the folder, label and size in bytes, in their order; it opens no file."""
    digest = hashlib.sha256()
    for file, label in folder.files:
        try:
            size = os.stat(folder.root / file).st_size
        except OSError:  # a link to nothing
            size = -1
        digest.update(f"{layout.composed(file)}\0{label} {size}\0".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _labelled_files(base: Path, split: str, numeric: bool, endings: tuple[str, ...]) -> _Folder:
    root, over = layout.split_folder(base, split), Counter()
    found = _class_images(root, numeric, endings, over)
    if not found:
        files = [(name, 0) for name in _top_level(root, endings, over)]
        if not files:
            raise BadInput(f"{root} has no images{_left_out(over)}; put files ending in {', '.join(endings)} there")
        return _Folder(root, files, (), (), tuple(over.items()))
    train = layout.class_folder(base, root)
    label_of = {name: label for label, name in enumerate(layout.classes(train, numeric=numeric))}
    for unknown in [name for name in found if name not in label_of]:
        raise BadInput(
            f"{printable(str(root / unknown))} is no class of {printable(str(train))}; rename it to one, or take it "
            "away"
        )
    labelled = [(file, label_of[name]) for name, inside in found.items() for file in inside]
    note = layout.depth_note(root, list(found), [file for file, _ in labelled])
    _top_level(root, endings, over)
    return _Folder(root, labelled, tuple(label_of), (note,) if note else (), tuple(over.items()))


def _left_out(over: Counter[str]) -> str:
    """What was passed over, in words, in brackets."""
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in over.items())})" if over else ""


def _class_images(root: Path, numeric: bool, endings: tuple[str, ...], over: Counter[str]) -> dict[str, list[str]]:
    """Each class of `root`, in order, with its images as sorted paths from `root`; {} if there are none.

    Beside images, a folder without images does not count. Elsewhere it is an error: to skip it would shift the labels.
    It adds to `over` what is passed over.
    """
    folder_of = layout.classes(root, numeric=numeric)
    found, left_out = {}, {}
    for name, folder in folder_of.items():
        left_out[name] = Counter()
        found[name] = _below(root, folder, endings, left_out[name])
        over.update(left_out[name])
    if _top_level(root, endings, Counter()):
        for name in filter(found.get, found):
            raise BadInput(
                f"{root} has images and the class folder {printable(name)} side by side; keep only one of the two"
            )
        return {}
    layout.check_classes(root, list(folder_of.values()))
    for place, (name, inside) in enumerate(found.items()):
        if not inside:
            raise BadInput(
                f"{printable(str(root / folder_of[name]))} has no images{_left_out(left_out[name])}; put some there, "
                f"or delete the folder: it would count as class {place} of 0 to {len(found) - 1}"
            )
    return found


def _top_level(root: Path, endings: tuple[str, ...], over: Counter[str]) -> list[str]:
    files = [name for name in sorted(os.listdir(root)) if not os.path.isdir(root / name)]
    return [name for name in files if not _is_passed_over(root / name, endings, over)]


def _below(root: Path, folder: str, endings: tuple[str, ...], over: Counter[str]) -> list[str]:
    """The images at any depth below `root`/`folder`, as paths from `root`."""
    found = []
    for parent, subfolders, names in os.walk(root / folder, onerror=_raise):
        over["hidden"] += sum(map(_is_hidden, subfolders))
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        over["linked folders"] += sum(os.path.islink(os.path.join(parent, name)) for name in subfolders)
        prefix = os.path.relpath(parent, root)
        taken = [name for name in names if not _is_passed_over(Path(parent, name), endings, over)]
        found += [os.path.join(prefix, name) for name in taken]
    for reason in [reason for reason, count in over.items() if not count]:
        del over[reason]
    return sorted(found, key=lambda file: file.split(os.sep))


def _raise(error: OSError) -> None:
    raise error


def _is_passed_over(path: Path, endings: tuple[str, ...], over: Counter[str]) -> bool:
    """Whether a file is no image to take; it adds the reason to `over`."""
    ending = printable(path.suffix.lower())[:LONGEST_ENDING]
    if _is_hidden(path.name):
        over["hidden"] += 1
    elif not path.name.lower().endswith(endings):
        over[f"ending in {ending}" if ending else "without an ending"] += 1
    elif not _can_be_opened(path):
        over["pipes and devices"] += 1
    else:
        return False
    return True


def _can_be_opened(path: Path) -> bool:
    """Whether the path is a file, or a link to nothing; opening a pipe might wait for ever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return os.path.islink(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def npz_source(path: str | Path, split: str, shape: Shape, *, crop: bool, max_value: float = 0.0) -> Source:
    """The arrays of an .npz file, named `images` and `labels`, or x_train, y_train, x_test, y_test as in Keras.

    Images are uint8, or floats from 0 to 1, or numbers from 0 to `max_value`; the last two are rounded to 256 levels.
    They are [n, h, w], or [n, h, w, c] with 1 or 3 channels; gray becomes colour, or colour gray, if `shape` asks for
    it. Labels are integers [n], or floats [n, k] for soft labels, under their usual name or the one of `LABELS` that
    fits; without labels every label is 0. `images` and `labels` are the split "train". Nothing is unpickled.

    Args:
      shape: (height, width, channels) of the images.
      crop: True: take images of any size, as `decode.fit` does; False: refuse any other height and width.
      max_value: as for `levels.white_of`.

    Raises:
      BadInput: not such a file, no arrays for `split`, or arrays of another shape, type or range.
    """
    path = expanded(path, "data.source")
    with _open_npz(path) as file:
        arrays = _npz(path, file, split)
    stack, labels, name = arrays.images, arrays.labels, f"{path}: {arrays.images_name}"
    height, width = stack.shape[1:3]
    if not crop and (height, width) != tuple(shape[:2]):
        raise BadInput(
            f"data.shape {tuple(shape)} does not fit {path}, whose images are {height}x{width}; use that, or "
            "data.crop=True, which takes images of any size"
        )
    values = float(stack.min()), float(stack.max())
    white = levels.white_of(name, *values, stack.dtype, max_value)

    def read(row: int) -> tuple[np.ndarray, Label]:
        image = stack[row]
        if image.dtype != np.uint8:
            image = levels.as_levels(image, white)
        if image.shape != tuple(shape):
            image = decode.conform(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image), shape, crop)
        return image, labels[row]

    found = Found(
        class_sizes=class_sizes(labels, arrays.num_classes),
        values=values,
        measured=len(stack),
        splits=arrays.splits,
        notes=arrays.notes,
        digest=lambda: digest_of(stack, labels),
    )
    return Source(len(stack), read, lambda row: f"{name}[{row}]", arrays.num_classes, found)


class _Npz(NamedTuple):
    """What an .npz file holds of a split."""

    images_name: str
    images: np.ndarray
    """Numbers [n, h, w, c]."""
    labels: np.ndarray
    """[n] or [n, k]; 0 where there are none."""
    num_classes: int
    """Of all splits together."""
    splits: tuple[str, ...]
    notes: tuple[str, ...]


def _npz(path: Path, file: Any, split: str) -> _Npz:
    images_name, labels_name = _names(path, file, split)
    splits = tuple(name.removeprefix("x_") for name in file.files if name.startswith("x_")) or ("train",)
    images = _checked_images(f"{path}: {images_name}", _array(path, file, images_name))
    of_splits = {
        name: _checked_labels(f"{path}: {name}", _array(path, file, name))
        for name in file.files
        if name in (labels_name, "y_train", "y_test")
    }
    if labels_name not in of_splits:
        labels_name, found = _other_labels(path, file, len(images))
        of_splits |= found
    labels = of_splits[labels_name] if labels_name else np.zeros(len(images), np.int32)
    if len(labels) != len(images):
        raise BadInput(f"{path}: {labels_name} has {len(labels)} labels for {len(images)} images; save one for each")
    unused = [name for name in file.files if name not in (images_name, *of_splits) and name[:2] not in ("x_", "y_")]
    num_classes = max(map(_num_classes, of_splits.values()), default=1)
    notes = *_notes(labels_name, unused), *_empty_classes(list(of_splits.values()))
    return _Npz(images_name, images, labels, num_classes, splits, notes)


def _other_labels(path: Path, file: Any, length: int) -> tuple[str, dict[str, np.ndarray]]:
    """The labels under a name of LABELS, by that name; "" and nothing if there are none.

    Raises:
      BadInput: two arrays may be the labels.
    """
    fitting = {}
    for name in [name for name in file.files if name in LABELS]:
        try:
            labels = _checked_labels(name, _array(path, file, name))
        except BadInput:  # a target that is no class, such as a float
            continue
        if len(labels) == length:
            fitting[name] = labels
    if len(fitting) > 1:
        raise BadInput(f"{path} has {' and '.join(fitting)}, which all may be the labels; save these under labels")
    return next(iter(fitting), ""), fitting


def _empty_classes(labels: list[np.ndarray]) -> tuple[str, ...]:
    """What to do where classes are counted from 1, in words; () where they are counted from 0."""
    low = min((int(some.min()) for some in labels if some.ndim == 1 and len(some)), default=0)
    if not low:
        return ()
    return (f"labels begin at {low}, so no image has a class below it; save labels - {low} to count from 0",)


def _notes(labels_name: str, unused: list[str]) -> tuple[str, ...]:
    """The arrays of an .npz file that a person might expect elsewhere, in words."""
    labels = [f"labels are the array {labels_name}"] if labels_name in LABELS else []
    others = [f"arrays that are not used: {', '.join(shown(name) for name in unused)}"] if unused else []
    return (*labels, *others)


def _open_npz(path: Path) -> Any:
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist; give the .npz file of your images") from error
    except Exception as error:  # NumPy and zipfile each raise their own
        raise BadInput(f"{path} is no .npz file that can be read ({type(error).__name__}); save it again") from error
    if isinstance(file, np.ndarray):
        raise BadInput(f"{path} is a single array; save it as images in an .npz file, with np.savez(path, images=...)")
    return file


def _names(path: Path, file: Any, split: str) -> tuple[str, str]:
    """The names of the split's images and labels; the file may have no array of labels."""
    if f"x_{split}" in file:
        return f"x_{split}", f"y_{split}"
    if "images" not in file:
        found = ", ".join(file.files) or "nothing"
        raise BadInput(f"{path} has {found} but neither images nor x_{split}; save the images under one of those names")
    if split != "train":
        raise BadInput(
            f"data.split '{split}' is not in {path}, whose images are the split train; save them as x_{split}, or "
            "begin a run with data.holdout=0.1, which keeps a tenth of the images back as the split test"
        )
    return "images", "labels"


def _array(path: Path, file: Any, name: str) -> np.ndarray:
    size = sum(entry.file_size for entry in file.zip.infolist() if entry.filename.removesuffix(".npy") == name)
    if size > parallel.host_memory():
        raise BadInput(f"{path}: {name} takes {size:,} bytes, more than the memory here; use a folder of images")
    try:
        array = file[name]
    except Exception as error:  # a pickled object, a damaged archive: NumPy, zipfile and zlib each raise their own
        reason = printable(f"{type(error).__name__}: {error}")[:REASON]
        raise BadInput(f"{path}: {name} cannot be read ({reason}); save it again as plain numbers") from error
    if not isinstance(array, np.ndarray):  # another file in the archive, as bytes
        raise BadInput(f"{path}: {name} is no array; save it again as plain numbers")
    return array


def _checked_images(name: str, array: np.ndarray) -> np.ndarray:
    """The images as [n, h, w, c], of numbers."""
    stack = array[..., None] if array.ndim == 3 else array
    if stack.ndim != 4 or stack.shape[3] not in decode.MODES or 0 in stack.shape:
        raise BadInput(f"{name} has the shape {array.shape}; save [n, h, w], or [n, h, w, c] with c 1 or 3")
    if stack.dtype.kind not in "iuf":
        raise BadInput(f"{name} has the type {stack.dtype}; save uint8, or floats from 0 to 1")
    return stack


def _checked_labels(name: str, array: np.ndarray) -> np.ndarray:
    """The labels as integers [n] or floats [n, k]; Keras's CIFAR has integers [n, 1]."""
    labels = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    kinds = {1: "iu", 2: "f"}  # NumPy's kinds: signed and unsigned integers; floats
    if labels.dtype.kind not in kinds.get(labels.ndim, "") or 0 in labels.shape[1:]:
        raise BadInput(f"{name} is {array.dtype} {array.shape}; save integers [n], or floats [n, k] for soft labels")
    low, high = labels.min(initial=0), labels.max(initial=0)
    if not (low >= 0 and high <= LARGEST_LABEL):
        raise BadInput(f"{name} ranges from {low} to {high}; save numbers from 0 on")
    return labels


def _num_classes(labels: np.ndarray) -> int:
    return int(labels.max(initial=0)) + 1 if labels.ndim == 1 else labels.shape[1]
