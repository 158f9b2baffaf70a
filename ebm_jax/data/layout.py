"""The layout of a folder of images: which folders are splits, which are classes, and the order of the classes."""

import os
import re
import unicodedata
from pathlib import Path

from ebm_jax.kinds import printable
from ebm_jax.types import BadInput

SPLITS = {  # the names of a split's folder, in any case; the first one is its usual name
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
}
PICTURES = {"images", "image", "imgs", "img"}
THEIR_LABELS = {"masks", "mask", "labels", "annotations", "segmentation", "segmentations", "ground_truth", "gt"}


def split_of(name: str) -> str:
    """The usual name of the split that a folder's name, or a value of `data.split`, means; empty: it means none."""
    lower = name.lower()
    return next((split for split, names in SPLITS.items() if lower in names), "")


def folders(root: Path) -> list[str]:
    """The names of the folders in `root` that are not hidden, as Python sorts strings."""
    return sorted(name for name in os.listdir(root) if not name.startswith(".") and (root / name).is_dir())


def splits(base: Path) -> tuple[str, ...]:
    """The usual names of the splits that `base` has a folder for; "train" alone if it has none."""
    return tuple(sorted(filter(None, set(map(split_of, folders(base)))))) or ("train",)


def split_folder(base: Path, split: str) -> Path:
    """`base`/`split`, or the one folder whose name means this split; `base` for "train" if no folder is a split.

    Raises:
      BadInput: there is no such folder, or several; or some folders are splits, but none is for training.
    """
    if not base.is_dir():
        raise BadInput(f"{base} is not a folder; give the one that holds the images, --config.data.source=folder:PATH")
    if (base / split).is_dir():
        return base / split
    asked, found = split_of(split), [name for name in folders(base) if split_of(name)]
    same = [name for name in found if split_of(name) == asked]
    if len(same) > 1:
        raise BadInput(f"{base} has {_listed(same)}, which name one split; keep one, or use data.split={same[0]}")
    if same:
        return base / same[0]
    if asked != "train":
        use = found[0] if found and "train" not in map(split_of, found) else "train"
        held = ", or begin a run with data.holdout=0.1, which keeps a tenth of the images back as the split test"
        raise BadInput(
            f"data.split '{split}' needs the folder {base / split}; make it, or use data.split={use}"
            f"{held if asked == 'test' else ''}"
        )
    if found:
        raise BadInput(
            f"{base} has {_listed(found)} but no folder for data.split '{split}'; put the training images, or the "
            f"class folders, into {base / 'train'}, or use data.split={found[0]}"
        )
    return base


def class_folder(base: Path, root: Path) -> Path:
    """The folder that gives the classes of all splits: the training split's if there is one, else `root`."""
    found = [name for name in folders(base) if split_of(name) == "train"]
    if (base / "train").is_dir():
        return base / "train"
    return base / found[0] if len(found) == 1 else root


def classes(root: Path, *, numeric: bool) -> dict[str, str]:
    """The class folders of `root` in the order of their labels: a class's name -> its folder's name.

    Names are in Unicode's form NFC, because a Mac may write the same name in another form (NFD).

    Args:
      numeric: True: whole numbers in names sort by their values, 2 before 10. False: as Python sorts strings.

    Raises:
      BadInput: two folders have one name in two forms.
    """
    found: dict[str, str] = {}
    for folder in folders(root):
        name = composed(folder)
        if name in found:
            raise BadInput(
                f"{root} has two folders named {printable(name)}, in Unicode's forms NFC and NFD; move the images of "
                "one into the other"
            )
        found[name] = folder
    return {name: found[name] for name in sorted(found, key=_by_numbers)} if numeric else found


def composed(name: str) -> str:
    """A name in Unicode's form NFC."""
    return unicodedata.normalize("NFC", name)


def _by_numbers(name: str) -> tuple[list[str | int], str]:
    """A key that sorts whole numbers in names by value: texts and numbers by turns, and the name for "1" and "01"."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def check_classes(root: Path, names: list[str]) -> None:
    """Refuse folders that look like no classes: images beside their masks, and splits inside the folders.

    Raises:
      BadInput: with the folders and the cure.
    """
    lower = {name.lower(): name for name in names}
    pictures, labels = PICTURES & lower.keys(), THEIR_LABELS & lower.keys()
    if pictures and labels:
        images = lower[min(pictures)]
        raise BadInput(
            f"{root} has the folders {images} and {lower[min(labels)]}, which look like images and what belongs to "
            f"them, not like classes; use folder:{root / images}, or rename them"
        )
    for name in names:
        inner = [folder for folder in folders(root / name) if split_of(folder)]
        if len(set(map(split_of, inner))) > 1:
            raise BadInput(
                f"{root / name} has {_listed(inner)}, so training would see the test images; use folder:"
                f"{root / name}, or make {root / inner[0]} and {root / inner[1]} with the class folders in each"
            )


def depth_note(root: Path, names: list[str], files: list[str]) -> str:
    """A sentence if all images lie in folders one level below a single class folder; else empty.

    Args:
      files: the paths of all images from `root`.
    """
    below = {file.split(os.sep)[1] for file in files if file.count(os.sep) > 1}
    if len(names) != 1 or len(below) < 2 or any(file.count(os.sep) < 2 for file in files):
        return ""
    return (
        f"all images lie one level deeper, in {len(below)} folders of {root / names[0]}, which is the only class; if "
        f"they are the classes, use folder:{root / names[0]}"
    )


def _listed(names: list[str]) -> str:
    """Folder names in words, such as "the folders val and test"."""
    shown = [printable(name) for name in names]
    return f"the folder {shown[0]}" if len(shown) == 1 else f"the folders {', '.join(shown[:-1])} and {shown[-1]}"
