"""Streamed batches against the same images in memory."""

import contextlib
import threading
import time

import numpy as np
import pytest
from conftest import FOR_EVER, wait_until

from ebm_jax.data import memory, stream
from ebm_jax.data.decode import Unreadable
from ebm_jax.data.source import Source, tolerant
from ebm_jax.types import BadInput

LENGTH, BATCH = 210, 51  # four batches an epoch and 6 images left over; a batch and a third of it are read in pieces
BAD = (7, 8, 49)


def source_of_noise(soft=False):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (LENGTH, 4, 4, 3), np.uint8), rng.integers(0, 10, LENGTH)
    soft_labels = rng.random((LENGTH, 10))

    def read(row):
        time.sleep(1e-4 * (row % 3))  # so that threads overtake each other
        if row in BAD:
            raise Unreadable("cannot be decoded (OSError)")
        return pixels[row], soft_labels[row] if soft else int(labels[row])

    return Source(LENGTH, read, lambda row: f"folder/{row}.png", 10)


def forgiving(source):
    return tolerant(source, len(BAD), lambda line: None)


def assert_same(streamed, expected):
    for ours, theirs in zip(streamed, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("process", "num_processes"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_streamed_batches_are_those_in_memory_over_three_epochs(process, num_processes, soft):
    in_memory = memory.load(forgiving(source_of_noise(soft)), 2)
    expected = memory.make_batches(in_memory, 5, BATCH, process, num_processes)
    source = forgiving(source_of_noise(soft))
    with stream.open_batches(source, 5, BATCH, 3, process, num_processes) as batches:
        for step in range(12):
            assert_same(batches(step), expected(step))


def test_a_stream_opened_at_any_step_and_one_that_jumps_give_the_same_batches():
    expected = memory.make_batches(memory.load(forgiving(source_of_noise()), 2), 5, BATCH)
    for first in (3, 4, 10_001):
        with stream.open_batches(forgiving(source_of_noise()), 5, BATCH, 2) as batches:
            for step in (first, first + 1, first + 1, 2, first):
                assert_same(batches(step), expected(step))


def noting_rows(read_rows):
    return source_of_noise()._replace(read=lambda row: read_rows.append(row) or (np.zeros((2, 2, 1), np.uint8), 0))


def test_a_process_reads_its_own_share_alone_and_in_order():
    read_rows, share = [], BATCH // 3
    with stream.open_batches(noting_rows(read_rows), 5, BATCH, 1, process=1, num_processes=3) as batches:
        for step in range(8):
            batches(step)
    due = [row for step in range(8) for row in memory.batch_rows(5, step, BATCH, LENGTH)[share : 2 * share]]
    assert read_rows[: 8 * share] == due


def test_reading_stays_at_most_three_batches_ahead():
    read_rows = []
    with stream.open_batches(noting_rows(read_rows), 5, BATCH, 2) as batches:
        batches(0)
        wait_until(lambda: len(read_rows) > BATCH)
        time.sleep(0.2)  # time enough to go on
        assert len(read_rows) <= 3 * BATCH


def test_as_many_images_are_read_at_once_as_there_are_workers():
    workers, first_of_thread = threading.Barrier(3, timeout=FOR_EVER), threading.local()

    def read(row):
        if not hasattr(first_of_thread, "done"):
            first_of_thread.done = workers.wait()  # raises unless three threads are here at once
        return np.zeros((2, 2, 1), np.uint8), 0

    with stream.open_batches(source_of_noise()._replace(read=read), 5, BATCH, 3) as batches:
        batches(0)
    assert not workers.broken


def test_what_a_thread_raises_reaches_the_caller_unchanged_and_again():
    source = tolerant(source_of_noise(), 2, lambda line: None)
    with stream.open_batches(source, 5, BATCH, 3) as batches:
        for _ in range(2):
            with pytest.raises(BadInput, match=r"^folder/\d+\.png cannot be decoded .* limit of 2; mend or") as raised:
                list(map(batches, range(8)))
            assert raised.type is BadInput


@pytest.mark.parametrize("step", [1, 2])
def test_after_an_error_any_step_can_be_asked_for(step):
    source = forgiving(source_of_noise())
    expected = memory.make_batches(memory.load(source, 2), 5, BATCH)
    failing = [memory.batch_rows(5, 1, BATCH, LENGTH)[20]]

    def read(row):
        if row in failing:
            raise BadInput(f"row {failing.pop()}")
        return source.read(row)

    with stream.open_batches(source._replace(read=read), 5, BATCH, 1) as batches:
        assert_same(batches(0), expected(0))
        with pytest.raises(BadInput, match="row"):
            batches(1)
        assert_same(batches(step), expected(step))


def test_a_set_smaller_than_a_batch_is_refused():
    with (
        pytest.raises(BadInput, match=r"train.batch_size 211 is larger than the data set of 210 images"),
        stream.open_batches(source_of_noise(), 5, LENGTH + 1, 2),
    ):
        pass


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def test_threads_end_with_the_context_even_after_a_jump_and_an_error():
    wait_until(lambda: not reading_threads())  # threads of the test before
    with contextlib.suppress(KeyError), stream.open_batches(forgiving(source_of_noise()), 5, BATCH, 4) as batches:
        batches(0)
        assert reading_threads()
        batches(7)
        raise KeyError
    wait_until(lambda: not reading_threads())
