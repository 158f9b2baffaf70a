"""Stepping over unreadable images, and reading a source into memory, against sources written out by hand."""

import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ebm_jax.data import memory
from ebm_jax.data.decode import Unreadable
from ebm_jax.data.source import Source, tolerant
from ebm_jax.types import BadInput


def source_of(length, bad=(), soft=False):
    """Every pixel of row n is n, and its label is the last digit of n."""

    def read(row):
        if row in bad:
            raise Unreadable("cannot be decoded (OSError)")
        digit = row % 10
        return np.full((2, 3, 1), row % 256, np.uint8), np.eye(10)[digit] if soft else digit

    return Source(length, read, lambda row: f"folder/{row}.png", 10)


def rows_read(source):
    return [int(source.read(row)[0][0, 0, 0]) for row in range(source.length)]


def test_an_unreadable_row_reads_the_next_readable_one_around_the_end():
    assert rows_read(tolerant(source_of(8, {2, 3, 7}), 3, print)) == [0, 1, 4, 4, 4, 5, 6, 0]


def test_each_unreadable_image_is_named_and_counted_once():
    lines = []
    source = tolerant(source_of(8, {2, 3, 7}), 5, lines.append)
    rows_read(source)
    rows_read(source)
    assert lines == [
        "folder/2.png cannot be decoded (OSError); skipped, 1 so far, limit 5",
        "folder/3.png cannot be decoded (OSError); skipped, 2 so far, limit 5",
        "folder/7.png cannot be decoded (OSError); skipped, 3 so far, limit 5",
    ]


def test_one_more_than_the_limit_is_refused_each_time_and_named():
    lines = []
    source = tolerant(source_of(8, {2, 3, 7}), 2, lines.append)
    assert [source.read(row)[1] for row in range(7)] == [0, 1, 4, 4, 4, 5, 6]
    message = (
        "folder/7.png cannot be decoded (OSError); 3 unreadable images of 8 so far are more than the limit of 2; "
        "mend or delete the files, or raise data.max_unreadable"
    )
    for _ in range(2):
        with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
            source.read(7)
    assert len(lines) == 2


def test_a_source_with_nothing_readable_is_refused_whatever_the_limit():
    with pytest.raises(BadInput, match=r"none of the 4 images can be read, the first is folder/0\.png"):
        tolerant(source_of(4, range(4)), 100, lambda line: None).read(1)


def test_threads_count_each_unreadable_image_once_and_read_the_same_rows():
    bad, lines = set(range(0, 200, 3)), []
    barrier = threading.Barrier(8, timeout=10)

    def read(row):
        if row == 0:
            barrier.wait()  # all threads meet the first bad row at the same time
        return source_of(200, bad).read(row)

    source = tolerant(source_of(200)._replace(read=read), len(bad), lines.append)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: rows_read(source), range(8)))
    expected = [row if row % 3 else (row + 1) % 200 for row in range(200)]
    assert found == [expected] * 8
    assert len(lines) == len(bad)
    assert re.search("67 so far", lines[-1])


@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
def test_loading_puts_every_image_and_label_in_its_row(length):
    dataset = memory.load(source_of(length), 3)
    np.testing.assert_array_equal(dataset.images[:, 1, 2, 0], np.arange(length) % 256)
    np.testing.assert_array_equal(dataset.labels, np.arange(length) % 10)
    assert (dataset.images.shape[1:], dataset.images.dtype, dataset.labels.dtype) == ((2, 3, 1), np.uint8, np.int32)
    assert dataset.num_classes == 10


def test_loading_keeps_soft_labels():
    dataset = memory.load(source_of(12, soft=True), 2)
    np.testing.assert_array_equal(dataset.labels, np.eye(10)[np.arange(12) % 10])
    assert dataset.labels.dtype == np.float32


def test_an_error_while_loading_reaches_the_caller():
    with pytest.raises(BadInput, match=r"folder/500\.png"):
        memory.load(tolerant(source_of(600, {500}), 0, print), 2)


def test_loading_needs_no_more_memory_than_the_arrays():
    source = source_of(2000)._replace(read=lambda row: (np.full((32, 32, 3), row % 256, np.uint8), 0))
    tracemalloc.start()
    dataset = memory.load(source, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * (dataset.images.nbytes + dataset.labels.nbytes)
