"""TFDS builders that prepare without TensorFlow: the registered ones, reading their archives with NumPy and tarfile.

Each keeps its parent's name, version, URLs, checksums and features, so what it writes is what `tfds.data_source` reads
and what the official builder would have written. Images go in as PIL images: TFDS encodes NumPy arrays with TensorFlow.
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from ebm_jax.types import BadInput

CORRUPT = (EOFError, OSError, zlib.error, tarfile.TarError)


def _read_idx(path: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=offset).reshape(-1, *shape)
    except (*CORRUPT, ValueError) as error:
        raise BadInput(f"{path} is truncated or not the expected gzip file ({error}); fetch it again") from error


class _Files:
    """Where a builder's source files come from (a mixin over a registered builder)."""

    unverified_dir: Path | None = None
    """Take the files from here as they are, instead of from the URLs or manual_dir under TFDS's checksums."""

    def source_urls(self) -> list[str]:
        """Every file that preparing reads."""
        raise NotImplementedError

    def _fetch(self, dl_manager: Any, url: str) -> str:
        if self.unverified_dir is None:
            return os.fspath(dl_manager.download(url))
        path = self.unverified_dir / url.rsplit("/", 1)[-1]
        if not path.exists():
            raise BadInput(f"{path} is missing; put {url} there")
        return os.fspath(path)


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
        paths = {
            split: [self._fetch(dl_manager, self.URL + name) for name in names] for split, names in self.FILES.items()
        }
        return {split: self._examples(*pair) for split, pair in paths.items()}

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


class Cifar10(_Files, cifar.Cifar10, skip_registration=True):
    """CIFAR-10, 32x32x3, from the binary archive."""

    name = "cifar10"

    def source_urls(self) -> list[str]:
        return [self._cifar_info.url]

    def _split_generators(self, dl_manager):
        info, features = self._cifar_info, cast(Any, self.info.features)
        archive = self._fetch(dl_manager, info.url)
        for key, file in zip(info.label_keys, info.label_files, strict=True):
            text = next(self._members(archive, [file])).decode()
            features[key].names = [name for name in text.split("\n") if name]
        return {
            "train": self._examples(archive, "train_", info.train_files),
            "test": self._examples(archive, "test_", info.test_files),
        }

    def _members(self, archive: str, names: list[str]) -> Iterator[bytes]:
        """The contents of the named files of the archive, in the order of the names."""
        try:
            with tarfile.open(archive) as tar:
                for name in names:
                    file = tar.extractfile(self._cifar_info.prefix + name)
                    assert file is not None, f"{name} is a directory"
                    yield file.read()
        except (*CORRUPT, KeyError) as error:
            raise BadInput(f"{archive} is truncated or not the expected archive ({error}); fetch it again") from error

    def _examples(self, archive: str, prefix: str, names: list[str]) -> Iterator:
        index, keys = 0, self._cifar_info.label_keys
        for content in self._members(archive, names):
            rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
            for row in rows:
                record: dict[str, Any] = {key: int(label) for key, label in zip(keys, row[: len(keys)], strict=True)}
                record["id"] = f"{prefix}{index:05d}"
                pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
                record["image"] = Image.fromarray(np.ascontiguousarray(pixels))
                yield index, record
                index += 1


BUILDERS: dict[str, Any] = {builder.name: builder for builder in (Mnist, FashionMnist, Kmnist, Cifar10)}
