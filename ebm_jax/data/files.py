"""A person's own images as sources: a folder of image files, or one .npz of arrays."""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebm_jax.data import decode
from ebm_jax.data.source import Label, Source
from ebm_jax.distributed import parallel
from ebm_jax.paths import expanded
from ebm_jax.types import BadInput, Shape

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
REASON = 200  # characters of another library's error; zipfile quotes whole files
LARGEST_FILE = 2**30  # bytes; PIL opens at most 179 million pixels
LARGEST_LABEL = np.iinfo(np.int32).max  # of a class or a value; refuses infinity too


def folder_source(path: str | Path, split: str, shape: Shape, *, crop: bool) -> Source:
    """The image files below ROOT: PATH/`split`, or PATH if there is no such folder and `split` is "train".

    With class folders (ROOT/CLASS/**/image) the label is the index of the folder's name among the sorted class names.
    PATH/train gives these names if it exists, so that all splits agree. With images directly in ROOT every label is 0.
    Images are sorted by class, then by the names along the path, as Python sorts strings. The source skips hidden files
    and folders, links to folders inside a class, files with an extension that is not in `EXTENSIONS`, and anything that
    is no file, such as a pipe. A link to nothing counts as an image that cannot be read.

    Args:
      shape: (height, width, channels) of the images.
      crop: as for `decode.decode`.

    Raises:
      BadInput: no such folder, no images in it or in one of its class folders, images beside class folders, a class
        that PATH/train does not have.
    """
    try:
        root, files, num_classes = _labelled_files(expanded(path, "data.source"), split)
    except OSError as error:
        raise BadInput(f"{error.filename} cannot be read ({error.strerror}); mend that") from error

    def read(row: int) -> tuple[np.ndarray, Label]:
        file, label = files[row]
        try:
            size = os.stat(root / file).st_size
            if size > LARGEST_FILE:
                raise decode.Unreadable(f"has {size:,} bytes, more than any image that can be read")
            encoded = (root / file).read_bytes()
        except OSError as error:
            raise decode.Unreadable(f"cannot be read ({error.strerror})") from error
        return decode.decode(encoded, shape, crop), label

    def name(row: int) -> str:
        return _printable(os.fsencode(root / files[row][0]).decode("utf-8", "backslashreplace"))

    return Source(len(files), read, name, num_classes)


def _printable(text: str) -> str:
    """The text on one line, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _labelled_files(base: Path, split: str) -> tuple[Path, list[tuple[str, int]], int]:
    """The split's folder, its images as (path from that folder, label), and the number of classes."""
    root = _split_root(base, split)
    found = _class_images(root)
    if not found:
        files = [(name, 0) for name in _top_level(root)]
        if not files:
            raise BadInput(f"{root} has no images; put files ending in {', '.join(EXTENSIONS)} there")
        return root, files, 1
    train = base / "train" if (base / "train").is_dir() else root
    label_of = {name: label for label, name in enumerate(_class_names(train))}
    for unknown in [name for name in found if name not in label_of]:
        raise BadInput(f"{root / unknown} is no class of {train}; rename it to one, or take it away")
    return root, [(file, label_of[name]) for name, inside in found.items() for file in inside], len(label_of)


def _split_root(base: Path, split: str) -> Path:
    if not base.is_dir():
        raise BadInput(f"{base} is not a folder; give the one that holds the images")
    if (base / split).is_dir():
        return base / split
    if split != "train":
        raise BadInput(f"data.split '{split}' needs the folder {base / split}; make it, or use data.split=train")
    return base


def _class_images(root: Path) -> dict[str, list[str]]:
    """Each class folder of `root`, in order, with its images as sorted paths from `root`; {} if there are none.

    Beside images, a folder without images does not count. Elsewhere it is an error: to skip it would shift the labels.
    """
    found = {name: _below(root, name) for name in _class_names(root)}
    if _top_level(root):
        for name in filter(found.get, found):
            raise BadInput(f"{root} has images and the class folder {name} side by side; keep only one of the two")
        return {}
    for name, inside in found.items():
        if not inside:
            raise BadInput(f"{root / name} has no images; put some there, or delete the folder")
    return found


def _class_names(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if (root / name).is_dir() and not _is_hidden(name))


def _top_level(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if _is_image(name) and _can_be_opened(root / name))


def _can_be_opened(path: str | Path) -> bool:
    """Whether the path is a file, or a link to nothing; opening a pipe might wait for ever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return os.path.islink(path)


def _below(root: Path, folder: str) -> list[str]:
    """The images at any depth below `root`/`folder`, as paths from `root`."""
    found = []
    for parent, subfolders, names in os.walk(root / folder, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        prefix = os.path.relpath(parent, root)
        images_here = [name for name in names if _is_image(name) and _can_be_opened(os.path.join(parent, name))]
        found += [os.path.join(prefix, name) for name in images_here]
    return sorted(found, key=lambda file: file.split(os.sep))


def _raise(error: OSError) -> None:
    raise error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def npz_source(path: str | Path, split: str, shape: Shape, *, crop: bool) -> Source:
    """The arrays of an .npz file, named `images` and `labels`, or x_train, y_train, x_test, y_test as in Keras.

    Images are uint8, or floats from 0 to 1, which are rounded to 256 levels. They are [n, h, w], or [n, h, w, c] with 1
    or 3 channels; gray becomes colour, or colour gray, if `shape` asks for it. Labels are integers [n], or floats
    [n, k] for soft labels; without labels every label is 0. `images` and `labels` are the split "train". Nothing is
    unpickled.

    Args:
      shape: (height, width, channels) of the images.
      crop: True: take images of any size, as `decode.fit` does; False: refuse any other height and width.

    Raises:
      BadInput: not such a file, no arrays for `split`, or arrays of another shape, type or range.
    """
    path = expanded(path, "data.source")
    with _open_npz(path) as file:
        images_name, labels_name = _names(path, file, split)
        stack = _checked_images(f"{path}: {images_name}", _array(path, file, images_name))
        of_splits = {
            name: _array(path, file, name) for name in file.files if name in (labels_name, "y_train", "y_test")
        }
    of_splits = {name: _checked_labels(f"{path}: {name}", array) for name, array in of_splits.items()}
    labels = of_splits.get(labels_name, np.zeros(len(stack), np.int32))
    if len(labels) != len(stack):
        raise BadInput(f"{path}: {labels_name} has {len(labels)} labels for {len(stack)} images; save one for each")
    height, width = stack.shape[1:3]
    if not crop and (height, width) != tuple(shape[:2]):
        raise BadInput(f"data.shape {tuple(shape)} does not fit {path}, whose images are {height}x{width}; use that")

    def read(row: int) -> tuple[np.ndarray, Label]:
        image = stack[row]
        if image.dtype != np.uint8:
            image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
        if image.shape != tuple(shape):
            image = decode.conform(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image), shape, crop)
        return image, labels[row]

    num_classes = max(map(_num_classes, of_splits.values()), default=1)
    return Source(len(stack), read, lambda row: f"{path}: {images_name}[{row}]", num_classes)


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
            f"data.split '{split}' is not in {path}, whose images are the split train; save them as x_{split}"
        )
    return "images", "labels"


def _array(path: Path, file: Any, name: str) -> np.ndarray:
    size = sum(entry.file_size for entry in file.zip.infolist() if entry.filename.removesuffix(".npy") == name)
    if size > parallel.host_memory():
        raise BadInput(f"{path}: {name} takes {size:,} bytes, more than the memory here; use a folder of images")
    try:
        array = file[name]
    except Exception as error:  # a pickled object, a damaged archive: NumPy, zipfile and zlib each raise their own
        reason = _printable(f"{type(error).__name__}: {error}")[:REASON]
        raise BadInput(f"{path}: {name} cannot be read ({reason}); save it again as plain numbers") from error
    if not isinstance(array, np.ndarray):  # another file in the archive, as bytes
        raise BadInput(f"{path}: {name} is no array; save it again as plain numbers")
    return array


def _checked_images(name: str, array: np.ndarray) -> np.ndarray:
    """The images as [n, h, w, c], uint8 or floats from 0 to 1."""
    stack = array[..., None] if array.ndim == 3 else array
    if stack.ndim != 4 or stack.shape[3] not in decode.MODES or 0 in stack.shape:
        raise BadInput(f"{name} has the shape {array.shape}; save [n, h, w], or [n, h, w, c] with c 1 or 3")
    if stack.dtype == np.uint8:
        return stack
    if not np.issubdtype(stack.dtype, np.floating):
        raise BadInput(f"{name} has the type {stack.dtype}; save uint8, or floats from 0 to 1")
    low, high = stack.min(), stack.max()
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise BadInput(f"{name} ranges from {low} to {high}; scale it to 0 to 1, or save uint8")
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
