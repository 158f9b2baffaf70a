"""Every TFDS set is prepared from its files without TensorFlow or a network, and reads back as their contents."""

import functools
import gzip
import importlib.util
import io
import itertools
import json
import shutil
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as official
from PIL import Image
from tensorflow_datasets.datasets.celeb_a import celeb_a_dataset_builder as celeb_a

from ebm_jax.data import builders, decode, tfds
from ebm_jax.types import BadInput

RNG = np.random.default_rng(0)


def jpeg(height, width):
    """An encoded picture of a coarse random grid."""
    grid = RNG.integers(0, 256, (4, 4, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(grid).resize((width, height)).save(encoded, format="jpeg")
    return encoded.getvalue()


def decoded(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def tar_of(files, mode="w"):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zip_of(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


# Each writer makes a small archive in the official layout and returns {split: [(pixels, class label), ...]}.


def idx(folder):
    written = {}
    for split, prefix, number in (("train", "train", 30), ("test", "t10k", 20)):
        pixels = RNG.integers(0, 256, (number, 28, 28, 1), np.uint8)
        labels = RNG.integers(0, 10, number).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels.tobytes()))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
        written[split] = list(zip(pixels, labels, strict=True))
    return written


def cifar(folder, archive, prefix, train, test, names, key):
    files = {file: "\n".join(f"{file[0]}{i}" for i in range(number)).encode() for file, number in names.items()}
    written = {"train": [], "test": []}
    for split, file in (*(("train", file) for file in train), ("test", test)):
        pixels = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
        labels = RNG.integers(0, list(names.values()), (4, len(names))).astype(np.uint8)
        planes = pixels.transpose(0, 3, 1, 2).reshape(4, -1)  # the archive holds red, then green, then blue
        files[file] = np.concatenate([labels, planes], 1).tobytes()
        written[split] += list(zip(pixels, labels[:, key], strict=True))
    (folder / archive).write_bytes(tar_of({f"{prefix}/{name}": data for name, data in files.items()}, "w:gz"))
    return written


def cifar10(folder):
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    names = {"batches.meta.txt": 10}
    return cifar(folder, "cifar-10-binary.tar.gz", "cifar-10-batches-bin", train, "test_batch.bin", names, 0)


def cifar100(folder):
    names = {"coarse_label_names.txt": 20, "fine_label_names.txt": 100}
    return cifar(folder, "cifar-100-binary.tar.gz", "cifar-100-binary", ["train.bin"], "test.bin", names, 1)


def svhn(folder):
    written = {}
    for split, number in (("train", 7), ("test", 5), ("extra", 3)):
        pixels = RNG.integers(0, 256, (number, 32, 32, 3), np.uint8)
        labels = 1 + np.arange(number) + (10 - number)  # the last is 10: it stands for the digit 0
        content = {"X": pixels.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)}
        scipy.io.savemat(folder / f"{split}_32x32.mat", content, do_compression=True)
        written[split] = list(zip(pixels, [*labels[:-1], 0], strict=True))
    return written


def resized(size, train_archives, folder):
    written = {"train": [], "validation": []}
    val = f"Imagenet{size}_val_npz.zip"
    for archive in (*train_archives, val):
        files = {}
        for part in range(2):
            pixels = RNG.integers(0, 256, (3, size, size, 3), np.uint8)
            labels = RNG.integers(0, 1000, 3)
            content = io.BytesIO()  # labels are counted from 1 there
            np.savez(content, data=pixels.transpose(0, 3, 1, 2).reshape(3, -1), labels=labels + 1)
            files[f"{archive[:-8]}_{part}.npz"] = content.getvalue()
            written["validation" if archive == val else "train"] += list(zip(pixels, labels, strict=True))
        zip_of(folder / archive, files)
    return written


LATENTS = np.array(list(itertools.product(range(3), range(6), (0, 10, 39), (0, 31), (0, 16))))


def dsprites(folder):
    sprites = RNG.integers(0, 2, (len(LATENTS), 64, 64), np.uint8)
    s, size, angle, x, y = LATENTS.T
    values = np.stack([np.ones(len(s)), s + 1, 0.5 + size / 10, angle * 2 * np.pi / 39, x / 31, y / 31], 1)
    with h5py.File(folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5", "w") as file:
        file.create_dataset("imgs", data=sprites, chunks=(50, 16, 16), compression="gzip")
        file["latents/classes"] = np.concatenate([np.zeros((len(s), 1), np.int64), LATENTS], 1)
        file["latents/values"] = values
    return {"train": [(255 * sprite[:, :, None], 0) for sprite in sprites]}


def faces(folder):
    names = [f"{number:06d}.jpg" for number in range(1, 10)]
    encoded = {name: jpeg(218, 178) for name in names}
    attributes = [[1 if (row >> column % 5) & 1 else -1 for column in range(40)] for row in range(9)]
    rows = {
        "list_attr_celeba.txt": [celeb_a.ATTR_HEADINGS, attributes],
        "list_landmarks_align_celeba.txt": [
            celeb_a.LANDMARK_HEADINGS,
            [list(range(row, row + 10)) for row in range(9)],
        ],
        "identity_CelebA.txt": [None, [[100 + row] for row in range(9)]],
        "list_eval_partition.txt": [None, [[row // 3] for row in range(9)]],
    }
    for file, (heading, values) in rows.items():
        lines = [f"{name}  {' '.join(map(str, row))}\n" for name, row in zip(names, values, strict=True)]
        (folder / file).write_text("".join([f"{len(names)}\n{' '.join(heading)}\n" if heading else "", *lines]))
    zip_of(folder / "img_align_celeba.zip", {f"img_align_celeba/{name}": data for name, data in encoded.items()})
    pixels = [decoded(data) for data in encoded.values()]
    splits = {"train": pixels[:3], "validation": pixels[3:6], "test": pixels[6:]}
    return {split: [(image, 0) for image in part] for split, part in splits.items()}


def textures(folder):
    files, written = {}, {}
    kinds = official.builder("dtd", data_dir=str(folder)).info.features["label"].names
    for split, fold in (("train", "train1"), ("test", "test1"), ("validation", "val1")):
        names = {f"{kinds[kind]}/{kinds[kind]}_{fold}.jpg": kind for kind in (3, 46)}
        files[f"dtd/labels/{fold}.txt"] = "".join(f"{name}\n" for name in names).encode()
        encoded = {name: jpeg(30, 40) for name in names}
        files |= {f"dtd/images/{name}": data for name, data in encoded.items()}
        written[split] = [(decoded(encoded[name]), kind) for name, kind in names.items()]
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(tar_of(files))  # no gzip, whatever its name says
    return written


def imagenet(folder):
    here = official.core.tfds_path("datasets/imagenet2012")
    synsets, answers = ((here / file).read_text().split() for file in ("labels.txt", "validation_labels.txt"))
    train = {synset: {f"{synset}_{i}.JPEG": jpeg(30, 40) for i in (5, 6)} for synset in (synsets[7], synsets[999])}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(
        tar_of({f"{synset}.tar": tar_of(files) for synset, files in train.items()})
    )
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3, 4)]
    validation = {name: jpeg(30, 40) for name in names}
    shuffled = {name: validation[name] for name in (names[2], names[0], names[3], names[1])}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(shuffled))
    return {
        "train": [(decoded(data), synsets.index(key)) for key, part in train.items() for data in part.values()],
        "validation": [(decoded(validation[name]), synsets.index(answers[i])) for i, name in enumerate(names)],
    }


WRITERS = {  # name: (writer, the archive of its images)
    "mnist": (idx, "train-images-idx3-ubyte.gz"),
    "fashion_mnist": (idx, "t10k-labels-idx1-ubyte.gz"),
    "kmnist": (idx, "train-labels-idx1-ubyte.gz"),
    "cifar10": (cifar10, "cifar-10-binary.tar.gz"),
    "cifar100": (cifar100, "cifar-100-binary.tar.gz"),
    "svhn_cropped": (svhn, "test_32x32.mat"),
    "imagenet_resized/8x8": (functools.partial(resized, 8, ["Imagenet8_train_npz.zip"]), "Imagenet8_val_npz.zip"),
    "imagenet_resized/16x16": (functools.partial(resized, 16, ["Imagenet16_train_npz.zip"]), "Imagenet16_val_npz.zip"),
    "imagenet_resized/32x32": (functools.partial(resized, 32, ["Imagenet32_train_npz.zip"]), "Imagenet32_val_npz.zip"),
    "imagenet_resized/64x64": (
        functools.partial(resized, 64, [f"Imagenet64_train_part{part}_npz.zip" for part in (1, 2)]),
        "Imagenet64_train_part2_npz.zip",
    ),
    "dsprites": (dsprites, "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5"),
    "celeb_a": (faces, "img_align_celeba.zip"),
    "dtd": (textures, "dtd-r1.0.1.tar.gz"),
    "imagenet2012": (imagenet, "ILSVRC2012_img_train.tar"),
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The function name -> (folder of its source files, what was written into them), each written once."""

    @functools.cache
    def archive(name):
        folder = tmp_path_factory.mktemp(name.replace("/", "_"))
        return folder, WRITERS[name][0](folder)

    return archive


@pytest.fixture(scope="module")
def opened(archives, tmp_path_factory):
    """The function (name, split, shape, condition) -> its source, prepared once."""
    root = tmp_path_factory.mktemp("tfds")

    def open_source(name, split, shape, condition="class", crop=False):
        return source(name, split, shape, root, archives(name)[0], condition, crop)

    open_source.root = root
    return open_source


def source(name, split, shape, data_dir, manual_dir, condition="class", crop=False, verify=False):
    place = {"data_dir": str(data_dir), "manual_dir": str(manual_dir), "verify_checksums": verify}
    return tfds.tfds_source(name, split, shape, crop=crop, condition=condition, **place)


def rows_of(pairs):
    return sorted((np.asarray(pixels).tobytes(), int(label)) for pixels, label in pairs)


def everything(opened_source):
    return [opened_source.read(row) for row in range(opened_source.length)]


def records(opened, name, split):
    """Whole records by TFDS's own reader, with the images as they are stored."""
    decoders = {"image": official.decode.SkipDecoding()}
    root = opened.root / "unverified"
    return list(official.data_source(name, split=split, data_dir=root, download=False, decoders=decoders))


def test_every_builder_has_an_archive_here():
    assert WRITERS.keys() == builders.BUILDERS.keys()


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_read_is_what_the_files_hold_without_tensorflow(name, archives, opened, monkeypatch):
    monkeypatch.setattr(builders.Dsprites, "BLOCK", 100)  # several blocks, the last incomplete
    for split, written in archives(name)[1].items():
        read = opened(name, split, written[0][0].shape)
        assert all(pixels.shape == written[0][0].shape for pixels, _ in everything(read))
        assert rows_of(everything(read)) == rows_of(written), split
    assert "tensorflow" not in sys.modules


def test_the_number_of_classes_is_the_sets(opened):
    expected = {"mnist": 10, "cifar100": 100, "imagenet2012": 1000, "dtd": 47, "celeb_a": 1, "dsprites": 1}
    shapes = {"mnist": (28, 28, 1), "cifar100": (32, 32, 3), "dsprites": (64, 64, 1)}
    for name, number in expected.items():
        assert opened(name, "train", shapes.get(name, (218, 178, 3))).num_classes == number


def test_cifar100_keeps_coarse_labels_class_names_and_ids(archives, opened):
    found = opened("cifar100", "test", (32, 32, 3)).found
    assert found.class_names == tuple(f"f{i}" for i in range(100))
    assert set(found.splits) == {"train", "test"}
    digests = {split: opened("cifar100", split, (32, 32, 3)).found.digest() for split in found.splits}
    assert digests["train"] != digests["test"] == found.digest()
    with tarfile.open(archives("cifar100")[0] / "cifar-100-binary.tar.gz") as tar:
        raw = np.frombuffer(tar.extractfile("cifar-100-binary/test.bin").read(), np.uint8).reshape(4, 3074)
    stored = {record["id"].decode(): record for record in records(opened, "cifar100", "test")}
    assert [stored[f"test_{i:05d}"]["coarse_label"] for i in range(4)] == list(raw[:, 0])
    features = official.builder("cifar100", data_dir=opened.root / "unverified").info.features
    assert features["coarse_label"].names == [f"c{i}" for i in range(20)]
    assert features["label"].names == [f"f{i}" for i in range(100)]


def test_celeb_a_keeps_its_jpeg_bytes_landmarks_identities_and_attributes(archives, opened):
    smiling = opened("celeb_a", "validation", (218, 178, 3), "Smiling")
    with zipfile.ZipFile(archives("celeb_a")[0] / "img_align_celeba.zip") as archive:
        row_of = {archive.read(f"img_align_celeba/{row + 1:06d}.jpg"): row for row in (3, 4, 5)}
    stored = records(opened, "celeb_a", "validation")
    assert {record["image"] for record in stored} == row_of.keys(), "not the bytes of the files"
    column = celeb_a.ATTR_HEADINGS.index("Smiling") % 5
    for index, record in enumerate(stored):
        row = row_of[record["image"]]
        assert record["identity"]["Identity_No"] == 100 + row
        assert [record["landmarks"][key] for key in celeb_a.LANDMARK_HEADINGS] == list(range(row, row + 10))
        assert smiling.read(index)[1] == row >> column & 1
    assert smiling.num_classes == 2
    assert {smiling.read(index)[1] for index in range(3)} == {0, 1}


def test_dsprites_conditions_are_those_of_the_release(opened):
    stored = records(opened, "dsprites", "train")
    sources = {c: opened("dsprites", "train", (64, 64, 1), c) for c in ("shape", "size", "position", "rotation")}
    assert [sources[c].num_classes for c in sources] == [3, 1, 2, 2]
    seen = set()
    for row in range(0, len(stored), 7):
        labels = {c: sources[c].read(row)[1] for c in sources}
        shape, size, angle, x, y = (
            int(stored[row][f"label_{key}"]) for key in ("shape", "scale", "orientation", "x_position", "y_position")
        )
        assert type(labels["shape"]) is int
        assert labels["shape"] == shape
        turn = angle * 2 * np.pi / 39
        for key, values in {
            "size": [0.5 + size / 10],
            "position": [x / 31, y / 31],
            "rotation": [np.cos(turn), np.sin(turn)],
        }.items():
            assert labels[key].dtype == np.float32
            np.testing.assert_allclose(labels[key], values, atol=1e-6)  # float32
        seen.add((shape, size, angle, x, y))
    assert seen <= {tuple(map(int, row)) for row in LATENTS}
    assert {shape for shape, *_ in seen} == {0, 1, 2}


def test_a_sprite_is_stored_as_1_and_shrinks_as_a_picture_of_255(opened):
    stored = decoded(records(opened, "dsprites", "train")[5]["image"])
    assert set(stored.ravel()) == {0, 1}
    small = opened("dsprites", "train", (32, 32, 1), crop=True).read(5)[0]
    np.testing.assert_allclose(small.mean(), 255 * stored.mean(), atol=6)  # bicubic clips at 0 and 255
    assert len(np.unique(small)) > 50


def test_dtd_and_imagenet_keep_the_bytes_of_their_files(archives, opened):
    opened("dtd", "train", (8, 8, 3), crop=True)
    opened("imagenet2012", "train", (8, 8, 3), crop=True)
    with tarfile.open(archives("dtd")[0] / "dtd-r1.0.1.tar.gz") as tar:
        for record in records(opened, "dtd", "train"):
            name = record["file_name"].decode()
            assert record["image"] == tar.extractfile(f"dtd/images/{name}").read()
    with tarfile.open(archives("imagenet2012")[0] / "ILSVRC2012_img_train.tar") as tar:
        for record in records(opened, "imagenet2012", "train"):
            name = record["file_name"].decode()
            with tarfile.open(fileobj=tar.extractfile(f"{name.split('_')[0]}.tar")) as inner:
                assert record["image"] == inner.extractfile(name).read()


def test_imagenets_cmyk_and_png_files_become_rgb_jpegs_of_the_same_colours(archives, tmp_path):
    folder = shutil.copytree(archives("imagenet2012")[0], tmp_path / "source")
    cmyk, png = io.BytesIO(), io.BytesIO()
    Image.new("CMYK", (16, 16), (51, 102, 204, 51)).save(cmyk, format="jpeg")
    Image.new("RGB", (16, 16), (10, 200, 100)).save(png, format="png")
    special = {"n01739381": ("n01739381_1309.JPEG", cmyk), "n02105855": ("n02105855_2933.JPEG", png)}
    inner = {f"{synset}.tar": tar_of({name: data.getvalue()}) for synset, (name, data) in special.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    source("imagenet2012", "train", (16, 16, 3), tmp_path, folder, crop=True)  # prepares it
    place = {
        "data_dir": tmp_path / "unverified",
        "download": False,
        "decoders": {"image": official.decode.SkipDecoding()},
    }
    colours = {}
    for record in official.data_source("imagenet2012", split="train", **place):
        image = Image.open(io.BytesIO(record["image"]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        colours[record["file_name"].decode()] = np.asarray(image).mean((0, 1))
    ink = np.array([51, 102, 204]) / 255
    np.testing.assert_allclose(colours["n01739381_1309.JPEG"], 255 * (1 - ink) * (1 - 51 / 255), atol=4)
    np.testing.assert_allclose(colours["n02105855_2933.JPEG"], [10, 200, 100], atol=3)


@pytest.fixture
def hasty_threads():
    """Threads take turns a thousand times more often, which shows what they must not share."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


def test_rows_are_tfds_own_over_several_shards(archives, tmp_path):
    folder = archives("mnist")[0]
    builder = builders.BUILDERS["mnist"](data_dir=tmp_path / "unverified", file_format="array_record")
    builder.unverified_dir = folder
    config = official.download.DownloadConfig(manual_dir=folder, num_shards=3)
    builder.download_and_prepare(download_config=config)
    assert len(builder.info.splits["train"].filenames) == 3
    reference = official.data_source("mnist", split="train", data_dir=tmp_path / "unverified", download=False)
    read = everything(source("mnist", "train", (28, 28, 1), tmp_path, folder))
    for (pixels, label), record in zip(read, reference, strict=True):
        np.testing.assert_array_equal(pixels, record["image"])
        assert label == record["label"]


def test_threads_that_read_at_once_each_get_their_own_row(opened, hasty_threads):
    opened("mnist", "train", (28, 28, 1))
    builder = official.builder("mnist", data_dir=opened.root / "unverified", file_format="array_record")
    record_at = tfds._records(builder.info.splits["train"].file_instructions)
    alone = [record_at(row) for row in range(30)]
    rows = np.random.default_rng(1).integers(0, 30, 20_000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(record_at, rows, chunksize=100)) == [alone[row] for row in rows]


def test_a_record_is_named_by_its_set_split_and_row(opened):
    assert opened("imagenet_resized/8x8", "train", (8, 8, 3)).name(3) == "imagenet_resized/8x8 train record 3"


def test_an_image_that_cannot_be_decoded_is_unreadable_and_its_neighbours_are_read(archives, tmp_path):
    folder = shutil.copytree(archives("dtd")[0], tmp_path / "source")
    with tarfile.open(folder / "dtd-r1.0.1.tar.gz") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    broken = next(name for name in files if "images" in name and "train1" in name)
    files[broken] = files[broken][: len(files[broken]) // 2]
    (folder / "dtd-r1.0.1.tar.gz").write_bytes(tar_of(files))
    read = source("dtd", "train", (30, 40, 3), tmp_path, folder)
    outcomes = []
    for row in range(2):
        try:
            outcomes.append(read.read(row)[0].shape)
        except decode.Unreadable as error:
            outcomes.append(str(error))
    assert sorted(outcomes, key=str) == [(30, 40, 3), "cannot be decoded (OSError)"]


def refused(*args, **kwargs):
    """The one line that comes in place of a source."""
    with pytest.raises(BadInput) as caught:
        source(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_archive_is_named_and_nothing_is_kept(name, archives, tmp_path):
    folder, written = archives(name)
    broken = shutil.copytree(folder, tmp_path / "broken")
    path = broken / WRITERS[name][1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shape = written["train"][0][0].shape
    line = refused(name, "train", shape, tmp_path / "tfds", broken)
    assert line.startswith(f"{path} is truncated or not the expected file")
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))


@pytest.mark.parametrize("name", ["svhn_cropped", "dsprites", "imagenet_resized/8x8", "dtd", "celeb_a"])
@pytest.mark.parametrize("content", [b"<html>quota exceeded</html>", b""])
def test_a_page_of_html_or_nothing_in_place_of_an_archive_is_named(name, content, archives, tmp_path):
    broken = shutil.copytree(archives(name)[0], tmp_path / "broken")
    path = broken / WRITERS[name][1]
    path.write_bytes(content)
    shape = archives(name)[1]["train"][0][0].shape
    assert refused(name, "train", shape, tmp_path, broken).startswith(f"{path} is truncated or not the expected file")


def test_dsprites_without_h5py_are_one_line_with_the_cure_before_anything_is_read(archives, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "h5py" else real(name, *rest))
    monkeypatch.setattr(builders.Dsprites, "_fetch", None)  # what would download
    line = refused("dsprites", "train", (64, 64, 1), tmp_path / "tfds", archives("dsprites")[0])
    assert line == "dsprites needs h5py; pip install -r requirements-dsprites.txt, or 'ebm_jax[dsprites]'"
    assert not [path for path in (tmp_path / "tfds").rglob("*") if path.is_file()]


def test_a_list_of_celeb_a_that_is_cut_short_is_named(archives, tmp_path):
    broken = shutil.copytree(archives("celeb_a")[0], tmp_path / "broken")
    path = broken / "list_landmarks_align_celeba.txt"
    path.write_text(path.read_text()[:150])
    line = refused("celeb_a", "train", (218, 178, 3), tmp_path, broken)
    assert str(path) in line
    assert "img_align" not in line


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_named_with_where_to_put_it(name, archives, tmp_path):
    folder, written = archives(name)
    partial = shutil.copytree(folder, tmp_path / "partial")
    (partial / WRITERS[name][1]).unlink()
    line = refused(name, "train", written["train"][0][0].shape, tmp_path, partial, verify=True)
    assert line.startswith(f"data.manual_dir {partial} has no {WRITERS[name][1]}; put http")


def test_without_a_network_the_files_to_fetch_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_reachable", lambda url: False)
    line = refused("cifar10", "train", (32, 32, 3), tmp_path, "", verify=True)
    assert "cannot be reached; put cifar-10-binary.tar.gz into a directory and give it as --config.data.manual" in line


@pytest.mark.parametrize(
    ("name", "first", "where"),
    [
        ("celeb_a", "list_eval_partition.txt, img_align_celeba.zip", "mmlab.ie.cuhk.edu.hk/projects/CelebA.html"),
        ("imagenet2012", "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar", "image-net.org"),
    ],
)
def test_what_must_be_fetched_by_hand_is_said_before_any_download(name, first, where, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_reachable", lambda url: True)
    line = refused(name, "train", (64, 64, 3), tmp_path, "", crop=True, verify=True)
    assert f"put {first}" in line
    assert where in line
    assert "--config.data.manual_dir=DIR" in line


@pytest.mark.parametrize("name", WRITERS)
def test_unverified_files_never_pass_for_the_official_set(name, archives, opened):
    folder, written = archives(name)
    shape = written["train"][0][0].shape
    opened(name, "train", shape)  # prepares them, unverified
    line = refused(name, "train", shape, opened.root, folder, verify=True)
    assert "wrong checksum" in line
    assert "--config.data.verify_checksums=False" in line
    assert not list((opened.root / name).rglob("dataset_info.json"))


def test_an_unknown_set_is_refused_with_the_known_ones_and_the_cure(tmp_path):
    line = refused("coco", "train", (32, 32, 3), tmp_path, tmp_path)
    assert "data.name 'coco'" in line
    assert "imagenet_resized/32x32, " in line
    assert "pip install tensorflow" in line
    assert "'imagenet_resized'" in refused("imagenet_resized", "train", (8, 8, 3), tmp_path, tmp_path)


class Dots(official.core.GeneratorBasedBuilder):
    """An official set as far as ebm_jax knows: registered with TFDS and not among our builders."""

    name = "dots_of_a_test"
    VERSION = official.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": official.features.Image(shape=(8, 8, 1)),
            "label": official.features.ClassLabel(num_classes=4),
        }
        return official.core.DatasetInfo(builder=self, features=official.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            yield i, {"image": Image.new("L", (8, 8), 10 * i), "label": i % 4}


def test_data_dir_and_manual_dir_take_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(builders.BUILDERS, "mine", lambda data_dir, file_format: data_dir)
    assert tfds._builder("mine", "~/sets", True, "") == tmp_path / "sets"
    monkeypatch.setitem(builders.BUILDERS, "mine", lambda data_dir, file_format: SimpleNamespace(data_path=data_dir))
    monkeypatch.setattr(tfds, "_check_files", lambda name, builder, manual: found.append(manual))
    monkeypatch.setattr(official.download, "DownloadConfig", lambda **_: stop())
    found = []
    with pytest.raises(ZeroDivisionError):
        tfds._prepare("mine", tfds._builder("mine", "~/sets", True, ""), "~/by_hand", True)
    assert found == [tmp_path / "by_hand"]


def stop():
    raise ZeroDivisionError


def test_with_tensorflow_any_registered_set_is_read_through_its_own_builder(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    read = source("dots_of_a_test", "train", (8, 8, 1), tmp_path, "", verify=True)
    assert sorted((int(pixels.max()), label) for pixels, label in everything(read)) == [
        (10 * i, i % 4) for i in range(6)
    ]
    assert "'coco2' is not a TFDS set" in refused("coco2", "train", (8, 8, 1), tmp_path, "", verify=True)


def test_a_set_that_lies_there_in_another_format_is_named(archives, tmp_path):
    folder = archives("mnist")[0]
    source("mnist", "train", (28, 28, 1), tmp_path, folder)  # prepares it
    (data_path,) = (tmp_path / "unverified" / "mnist").iterdir()
    info = json.loads((data_path / "dataset_info.json").read_text())
    (data_path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert "another format than array_record" in refused("mnist", "train", (28, 28, 1), tmp_path, folder)


@pytest.mark.parametrize(
    ("name", "split", "shape", "condition", "line"),
    [
        ("mnist", "val", (28, 28, 1), "class", "data.split 'val' is not a split of mnist; use one of train, test"),
        ("mnist", "train", (28, 28, 1), "size", "data.condition 'size' is not a label of mnist; use one of class"),
        ("dsprites", "train", (64, 64, 1), "colour", "use one of class, shape, size, position, rotation"),
        ("celeb_a", "train", (218, 178, 3), "Sad", "use one of class, 5_o_Clock_Shadow, Arched_Eyebrows"),
        (
            "cifar10",
            "train",
            (28, 28, 3),
            "class",
            "data.shape (28, 28, 3) is not the shape of cifar10; use (32, 32, 3)",
        ),
    ],
)
def test_what_a_set_has_not_is_refused_with_what_it_has(name, split, shape, condition, line, opened):
    with pytest.raises(BadInput) as caught:
        opened(name, split, shape, condition)
    assert line in str(caught.value)


def test_damaged_records_are_named(archives, tmp_path):
    folder = archives("mnist")[0]
    read = source("mnist", "train", (28, 28, 1), tmp_path, folder)
    (data_path,) = (tmp_path / "unverified" / "mnist").iterdir()
    record = next(data_path.glob("*train.array_record*"))
    content = record.read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        record.write_bytes(damaged)
        line = refused("mnist", "train", (28, 28, 1), tmp_path, folder)
        assert line.startswith(f"{data_path} is damaged")
        assert line.endswith("; delete it and prepare again")
    with pytest.raises(BadInput, match="is damaged"):
        everything(read)


@pytest.mark.slow
def test_the_real_fashion_mnist_is_prepared_under_its_official_checksums(shared_data, tmp_path):
    folder = shared_data / "fashion_mnist"
    read = source("fashion_mnist", "test", (28, 28, 1), tmp_path, folder, verify=True)
    pixels = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    expected = zip(np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28, 1), labels, strict=True)
    assert rows_of(everything(read)) == rows_of(expected)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_set_of_more_than_8_bits_is_refused_because_nobody_says_what_is_white(kind):
    features = {"image": official.features.Image(shape=(8, 8, 1), dtype=kind, encoding_format="png")}
    with pytest.raises(BadInput, match=rf"stores images of {np.dtype(kind)}, whose white is not known here; save"):
        tfds._check_shape("own", features, (8, 8, 1), crop=False)
