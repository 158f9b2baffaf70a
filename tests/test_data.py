"""Batches, and preparation of real data sets without TensorFlow or a network."""

import gzip
import shutil
import sys

import numpy as np
import pytest

from ebm_jax.io import data
from ebm_jax.types import BadInput

FASHION = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz")


@pytest.fixture(scope="module")
def small_idx(tmp_path_factory):
    """MNIST-shaped files of 30 training and 20 test images, with no official checksum."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for prefix, number in (("train", 30), ("t10k", 20)):
        images = rng.integers(0, 256, (number, 28, 28), np.uint8)
        labels = rng.integers(0, 10, number).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    return folder


def original(folder, prefix):
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
    return np.frombuffer(images, np.uint8).reshape(-1, 28, 28, 1), np.frombuffer(labels, np.uint8)


def sorted_rows(images, labels):
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], 1).astype(np.int32)
    return rows[np.lexsort(rows.T)]


def test_an_epoch_is_every_image_once_and_the_next_epoch_another_order():
    epochs = [np.concatenate([data.batch_rows(3, 10 * epoch + step, 8, 83) for step in range(10)]) for epoch in (0, 1)]
    for rows in epochs:
        assert len(set(rows)) == 80, "an epoch repeats an image"
    assert (epochs[0] != epochs[1]).any()


def test_batches_are_a_function_of_seed_and_step_alone():
    rows = data.batch_rows(0, 7, 16, 100)
    data.batch_rows(0, 50, 16, 100)
    data.batch_rows(1, 7, 16, 100)
    np.testing.assert_array_equal(data.batch_rows(0, 7, 16, 100), rows)
    assert (data.batch_rows(1, 7, 16, 100) != rows).any()


def test_processes_share_the_global_batch_in_order():
    digits = data.digits("train")
    whole = data.make_batches(digits, 5, 24)(11)
    parts = [data.make_batches(digits, 5, 24, process, 3)(11) for process in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)


def test_images_keep_their_labels():
    digits = data.digits("train")
    label_of = {image.tobytes(): label for image, label in zip(digits.images, digits.labels, strict=True)}
    batch = data.make_batches(digits, 0, 64)(30)
    assert [label_of[np.asarray(image).tobytes()] for image in batch.images] == list(batch.labels)


def test_digits_are_scikit_learns_and_train_and_test_are_disjoint():
    from sklearn.datasets import load_digits

    train, test = data.digits("train"), data.digits("test")
    assert len(train.images) + len(test.images) == 1797
    np.testing.assert_allclose(test.images[0, :, :, 0] * (16 / 255), load_digits().images[4], atol=0.5 * 16 / 255)
    assert test.labels[0] == load_digits().target[4]


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(BadInput, match=r"train.batch_size 2000 is larger than the data set of 1438 images"):
        data.make_batches(data.digits("train"), 0, 2000)


def test_prepared_records_are_the_source_files_without_tensorflow(small_idx, tmp_path):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        dataset = data.tfds_images("mnist", split, str(tmp_path), str(small_idx), verify_checksums=False)
        assert dataset.num_classes == 10
        images, labels = original(small_idx, prefix)
        np.testing.assert_array_equal(sorted_rows(dataset.images, dataset.labels), sorted_rows(images, labels))
    assert "tensorflow" not in sys.modules


def test_unverified_files_never_pass_for_the_official_set(small_idx, tmp_path):
    data.prepare_tfds("mnist", str(tmp_path), str(small_idx), verify_checksums=False)
    assert not (tmp_path / "mnist").exists()
    with pytest.raises(BadInput, match="wrong checksum"):
        data.prepare_tfds("mnist", str(tmp_path), str(small_idx), verify_checksums=True)


def test_a_truncated_archive_is_named_and_nothing_is_kept(small_idx, tmp_path):
    broken = shutil.copytree(small_idx, tmp_path / "broken")
    path = broken / FASHION[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match=f"{FASHION[0]} is truncated"):
        data.prepare_tfds("mnist", str(tmp_path / "tfds"), str(broken), verify_checksums=False)
    dataset = data.tfds_images("mnist", "train", str(tmp_path / "tfds"), str(small_idx), verify_checksums=False)
    assert len(dataset.images) == 30


def test_a_missing_file_is_named_with_where_to_put_it(small_idx, tmp_path):
    partial = shutil.copytree(small_idx, tmp_path / "partial")
    (partial / FASHION[1]).unlink()
    with pytest.raises(BadInput, match=f"partial has no {FASHION[1]}; put https://.*{FASHION[1]} there"):
        data.prepare_tfds("mnist", str(tmp_path), str(partial), verify_checksums=True)


def test_without_a_network_the_files_to_fetch_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_reachable", lambda url: False)
    with pytest.raises(
        BadInput, match=r"put cifar-10-binary\.tar\.gz into a directory and give it as --config\.data\.manual_dir"
    ):
        data.prepare_tfds("cifar10", str(tmp_path), "", verify_checksums=True)


def test_damaged_records_are_named(small_idx, tmp_path):
    builder = data.prepare_tfds("mnist", str(tmp_path), str(small_idx), verify_checksums=False)
    record = next(builder.data_path.glob("*train.array_record*"))
    content = record.read_bytes()
    record.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"is damaged .*; delete it and prepare again"):
        data.tfds_images("mnist", "train", str(tmp_path), str(small_idx), verify_checksums=False)


def test_the_real_fashion_mnist_is_prepared_under_its_official_checksums(shared_data, tmp_path):
    source = shared_data / "fashion_mnist"
    dataset = data.tfds_images("fashion_mnist", "test", str(tmp_path), str(source))
    images, labels = original(source, "t10k")
    np.testing.assert_array_equal(sorted_rows(dataset.images, dataset.labels), sorted_rows(images, labels))


def test_a_cifar_archive_is_read_in_channel_order_with_its_class_names(tmp_path):
    import io
    import tarfile

    rng = np.random.default_rng(1)
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    rows = {name: rng.integers(0, 10, (4, 3073), np.uint8) for name in names}
    files = {name: row.tobytes() for name, row in rows.items()} | {
        "batches.meta.txt": b"\n".join(b"abcdefghij"[i : i + 1] for i in range(10))
    }
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    dataset = data.tfds_images("cifar10", "train", str(tmp_path / "tfds"), str(tmp_path), verify_checksums=False)
    flat = np.concatenate([rows[name] for name in names[:5]])
    images = np.stack([flat[:, 1 + 1024 * c : 1 + 1024 * (c + 1)].reshape(-1, 32, 32) for c in range(3)], -1)
    np.testing.assert_array_equal(sorted_rows(dataset.images, dataset.labels), sorted_rows(images, flat[:, 0]))
