"""TFDS builders that prepare without TensorFlow: the registered builders, but reading with NumPy, PIL and others.

Each keeps its parent's name, version, URLs, checksums and features. So it writes what the official builder would have
written, and `tfds.data_source` can read it. An image goes in as the bytes of its file, which TFDS stores unchanged, or
as a PIL image, which TFDS stores as PNG; TFDS would encode a NumPy array with TensorFlow.
"""

import contextlib
import dataclasses
import functools
import gzip
import importlib.util
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder
from tensorflow_datasets.image_classification import cifar, dtd, mnist

from ebm_jax.data import decode
from ebm_jax.types import BadInput

LARGEST_MEMBER = 2**30  # bytes of one file inside of a source file; the largest of these sets is a hundredth of it
CORRUPT = (EOFError, OSError, LookupError, ValueError, struct.error, zlib.error, tarfile.TarError, zipfile.BadZipFile)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Name the file in the error if it cannot be read."""
    try:
        yield
    except BadInput:
        raise
    except CORRUPT as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} is truncated or not the expected file ({reason}); fetch it again") from error


@contextlib.contextmanager
def _tar(path: str) -> Iterator[Callable[[str], bytes]]:
    """The function from a file's name in the archive to its content."""
    with _reading(path), tarfile.open(path) as tar:
        members = {member.name: member for member in tar if member.isfile()}

        def content(name: str) -> bytes:
            _require_small(members[name].size)
            return cast(Any, tar.extractfile(members[name])).read()

        yield content


def _require_small(size: int) -> None:
    if size > LARGEST_MEMBER:
        raise ValueError(f"a part unpacks to {size:,} bytes or more, of which at most {LARGEST_MEMBER:,} are read")


def _read_idx(path: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    with _reading(path), gzip.open(path) as file:
        content = file.read(LARGEST_MEMBER + 1)
        _require_small(len(content))
        return np.frombuffer(content, np.uint8, offset=offset).reshape(-1, *shape)


def _as_jpeg(encoded: bytes) -> io.BytesIO:
    """The image as an RGB JPEG of quality 100, as `tfds.core.utils.jpeg_cmyk_to_rgb` and `png_to_jpeg` make it."""
    jpeg = io.BytesIO()
    with decode.opened(encoded) as image:
        image.convert("RGB").save(jpeg, format="jpeg", quality=100)
    jpeg.seek(0)
    return jpeg


class _Files:
    """A mixin over a registered builder that finds its source files."""

    name: str
    _generate_examples: Any  # the registered builder's, if it gets every open file as an argument

    by_hand = False
    """Whether the user must put the files into manual_dir, because they cannot be downloaded."""

    unverified_dir: Path | None = None
    """Take the files from here unchecked; None: from the URLs or manual_dir, under TFDS's checksums."""

    @functools.cached_property
    def url_infos(self) -> dict[str, Any]:
        """Size, checksum and file name by URL; TFDS would look for them beside the subclass, which has none."""
        official = cast(Any, tfds.builder_cls(self.name)).url_infos
        return {
            url: dataclasses.replace(info, filename=info.filename or url.rsplit("/", 1)[-1])
            for url, info in official.items()
        }

    def source_urls(self) -> list[str]:
        """The URL of every file that preparing reads."""
        return list(self.url_infos)

    def source_file(self, url: str) -> str:
        """The name of the file of `url` in manual_dir."""
        return self.url_infos[url].filename

    def _fetch(self, dl_manager: Any, url: str) -> str:
        if self.unverified_dir is None:
            return os.fspath(dl_manager.download(url))
        return os.fspath(self.unverified_dir / self.source_file(url))

    def _fetch_all(self, dl_manager: Any) -> dict[str, str]:
        """Paths by file name."""
        return {self.source_file(url): self._fetch(dl_manager, url) for url in self.source_urls()}


class _Idx(_Files):
    """The four gzip files of MNIST and its relatives."""

    URL: str

    FILES: ClassVar = {
        "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
    }

    def source_urls(self) -> list[str]:
        return [self.URL + name for names in self.FILES.values() for name in names]

    def _split_generators(self, dl_manager):
        paths = self._fetch_all(dl_manager)
        return {split: self._examples(*(paths[name] for name in names)) for split, names in self.FILES.items()}

    def _examples(self, images: str, labels: str) -> Iterator:
        pixels, classes = _read_idx(images, 16, (28, 28)), _read_idx(labels, 8, ())
        if len(pixels) != len(classes):
            raise BadInput(
                f"{images} has {len(pixels)} images but {labels} has {len(classes)} labels; fetch both again"
            )
        for index, (image, label) in enumerate(zip(pixels, classes, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


class Mnist(_Idx, mnist.MNIST, skip_registration=True):
    """Handwritten digits, 28x28x1."""

    name = "mnist"


class FashionMnist(_Idx, mnist.FashionMNIST, skip_registration=True):
    """Articles of clothing, 28x28x1."""

    name = "fashion_mnist"


class Kmnist(_Idx, mnist.KMNIST, skip_registration=True):
    """Cursive Japanese characters, 28x28x1."""

    name = "kmnist"


class _Cifar(_Files):
    """The binary archive of CIFAR."""

    info: Any
    _cifar_info: cifar.CifarInfo

    def source_urls(self) -> list[str]:
        return [self._cifar_info.url]

    def _split_generators(self, dl_manager):
        info = self._cifar_info
        archive = self._fetch(dl_manager, info.url)
        with _tar(archive) as content:
            for key, file in zip(info.label_keys, info.label_files, strict=True):
                names = content(info.prefix + file).decode().split("\n")
                self.info.features[key].names = [name for name in names if name]
        return {
            "train": self._examples(archive, "train_", info.train_files),
            "test": self._examples(archive, "test_", info.test_files),
        }

    def _examples(self, archive: str, prefix: str, names: list[str]) -> Iterator:
        keys = self._cifar_info.label_keys
        with _tar(archive) as content:
            files = b"".join(content(self._cifar_info.prefix + name) for name in names)
            rows = np.frombuffer(files, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
        for index, row in enumerate(rows):
            record: dict[str, Any] = {key: int(label) for key, label in zip(keys, row[: len(keys)], strict=True)}
            pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
            image = Image.fromarray(np.ascontiguousarray(pixels))
            yield index, {**record, "id": f"{prefix}{index:05d}", "image": image}


class Cifar10(_Cifar, cifar.Cifar10, skip_registration=True):
    """CIFAR-10, 32x32x3."""

    name = "cifar10"


class Cifar100(_Cifar, cifar.Cifar100, skip_registration=True):
    """CIFAR-100, 32x32x3; `label` is the fine one of 100, `coarse_label` one of 20."""

    name = "cifar100"


class SvhnCropped(_Files, tfds.builder_cls("svhn_cropped"), skip_registration=True):
    """Street View house numbers, 32x32x3; a whole split (extra: 1.6 GB) lies in memory while it is prepared."""

    name = "svhn_cropped"

    def _split_generators(self, dl_manager):
        paths = self._fetch_all(dl_manager)
        return {split: self._examples(paths[f"{split}_32x32.mat"], split) for split in ("train", "test", "extra")}

    def _examples(self, path: str, split: str) -> Iterator:
        import scipy.io
        from scipy.io.matlab import MatReadError

        with _reading(path):
            try:
                content = scipy.io.loadmat(path, variable_names=("X", "y"))
            except (MatReadError, TypeError, NotImplementedError) as error:  # raised for other files
                raise ValueError(error) from error
            images, labels = np.moveaxis(content["X"], -1, 0), content["y"].ravel()
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                image = Image.fromarray(np.ascontiguousarray(image))
                yield index, {"image": image, "label": int(label) % 10, "id": f"{split}_{index:06d}"}  # SVHN: 10 is a 0


class ImagenetResized(_Files, tfds.builder_cls("imagenet_resized"), skip_registration=True):
    """Downsampled ImageNet; one of a split's npz files lies in memory while it is prepared (32x32: 0.8 GB)."""

    name = "imagenet_resized"

    builder_config: Any

    def source_urls(self) -> list[str]:
        return [url for url in self.url_infos if f"/Imagenet{self.builder_config.size}_" in url]

    def _split_generators(self, dl_manager):
        paths = self._fetch_all(dl_manager)
        return {
            split: self._examples([path for file, path in paths.items() if mark in file])
            for split, mark in (("train", "_train_"), ("validation", "_val_"))
        }

    def _examples(self, paths: list[str]) -> Iterator:
        for path in paths:
            with _reading(path), open(path, "rb") as file:
                members = tfds.download.iter_archive(file, tfds.download.ExtractMethod.ZIP)
                for key, record in self._generate_examples(members):
                    yield key, {**record, "image": Image.fromarray(np.ascontiguousarray(record["image"]))}


class Dsprites(_Files, tfds.builder_cls("dsprites"), skip_registration=True):
    """White shapes by their latents, 64x64x1, with pixels 0 or 1."""

    name = "dsprites"

    LATENTS = ("shape", "scale", "orientation", "x_position", "y_position")
    BLOCK = 16_384  # rows read at once, 64 MiB; the official builder reads one by one, over 100 times slower

    def _split_generators(self, dl_manager):
        if importlib.util.find_spec("h5py") is None:
            raise BadInput("dsprites needs h5py; pip install -r requirements-dsprites.txt, or 'ebm_jax[dsprites]'")
        return {"train": self._examples(self._fetch(dl_manager, *self.source_urls()))}

    def _examples(self, path: str) -> Iterator:
        import h5py

        with _reading(path), h5py.File(path) as file:
            columns: list[Any] = [file[name] for name in ("imgs", "latents/classes", "latents/values")]
            for start in range(0, len(columns[0]), self.BLOCK):
                block = (column[start : start + self.BLOCK] for column in columns)
                for index, row in enumerate(zip(*block, strict=True), start):
                    yield index, self._record(*row)

    def _record(self, image: np.ndarray, classes: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        labels = {f"label_{name}": int(label) for name, label in zip(self.LATENTS, classes[1:], strict=True)}
        floats = {f"value_{name}": float(value) for name, value in zip(self.LATENTS, values[1:], strict=True)}
        return {"image": Image.fromarray(image), **labels, **floats}


class _ZipImages:
    """The files of a zip by base name; each is read on access."""

    def __init__(self, path: str):
        self.path = path
        with _reading(path):
            self.zip = zipfile.ZipFile(path)
        self.members = {os.path.basename(name): name for name in self.zip.namelist()}

    def __getitem__(self, name: str) -> bytes:
        with _reading(self.path):
            _require_small(self.zip.getinfo(self.members[name]).file_size)
            return self.zip.read(self.members[name])


class CelebA(_Files, tfds.builder_cls("celeb_a"), skip_registration=True):
    """Aligned faces, 218x178x3, with 40 attributes; the JPEG files as they are."""

    name = "celeb_a"
    by_hand = True  # Google Drive refuses a file that was fetched too often that day

    LISTS: ClassVar = {
        "list_eval_partition": "list_eval_partition.txt",
        "list_attr_celeba": "list_attr_celeba.txt",
        "landmarks_celeba": "list_landmarks_align_celeba.txt",
        "identity_celeba": "identity_CelebA.txt",
    }

    def _split_generators(self, dl_manager):
        paths = self._fetch_all(dl_manager)
        lists = {key: paths[file] for key, file in self.LISTS.items()}
        images = _ZipImages(paths["img_align_celeba.zip"])
        splits = ("train", "validation", "test")
        return {split: self._examples(partition, lists, images) for partition, split in enumerate(splits)}

    def _examples(self, partition: int, lists: dict[str, str], images: _ZipImages) -> Iterator:
        with _reading("one of " + ", ".join(lists.values())):
            yield from self._generate_examples(partition, lists, images)


class Dtd(_Files, dtd.Dtd, skip_registration=True):
    """Describable textures of 47 kinds and many sizes, the first fold; the JPEG files as they are."""

    name = "dtd"

    def _split_generators(self, dl_manager):
        archive = self._fetch(dl_manager, *self.source_urls())
        folds = {"train": "train1", "test": "test1", "validation": "val1"}
        return {split: self._examples(archive, fold) for split, fold in folds.items()}

    def _examples(self, archive: str, fold: str) -> Iterator:
        with _tar(archive) as content:
            for name in content(f"dtd/labels/{fold}.txt").decode().split():
                image = content(f"dtd/images/{name}")
                yield name, {"file_name": name, "image": image, "label": os.path.dirname(name)}


class Imagenet2012(_Files, tfds.builder_cls("imagenet2012"), skip_registration=True):
    """ImageNet of 1,000 classes and many sizes, training and validation; the JPEG files as they are, but for 23."""

    name = "imagenet2012"
    by_hand = True

    def _split_generators(self, dl_manager):
        paths = self._fetch_all(dl_manager)
        validation = paths["ILSVRC2012_img_val.tar"]
        return {
            "train": self._examples(paths["ILSVRC2012_img_train.tar"]),
            "validation": self._examples(validation, validation_labels=_validation_labels(validation)),
        }

    def _examples(self, path: str, **labels: Any) -> Iterator:
        with _reading(path), open(path, "rb") as file:
            members = tfds.download.iter_archive(file, tfds.download.ExtractMethod.TAR)
            yield from self._generate_examples(members, **labels)

    def _fix_image(self, image_fname: str, image: Any) -> Any:
        """Convert the CMYK files and the PNG named JPEG to RGB JPEG; keep the others as they are."""
        official = imagenet2012_dataset_builder
        return _as_jpeg(image.read()) if image_fname in official.CMYK_IMAGES + official.PNG_IMAGES else image


def _validation_labels(path: str) -> dict[str, str]:
    """Synset by file name: TFDS lists the synsets in the order of the sorted names."""
    synsets = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    with _reading(path), tarfile.open(path) as tar:
        return dict(zip(sorted(tar.getnames()), synsets, strict=False))


_ALL: tuple[Any, ...] = (
    Mnist,
    FashionMnist,
    Kmnist,
    Cifar10,
    Cifar100,
    SvhnCropped,
    ImagenetResized,
    Dsprites,
    CelebA,
    Dtd,
    Imagenet2012,
)

BUILDERS: dict[str, Callable[..., Any]] = {
    f"{builder.name}/{config}" if config else builder.name: functools.partial(builder, config=config)
    for builder in _ALL
    for config in builder.builder_configs or [None]
}
