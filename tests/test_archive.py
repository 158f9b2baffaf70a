"""Saved arrays come back as they were, with their description, or are refused."""

import numpy as np
import pytest

from ebm_jax.storage import archive
from ebm_jax.types import BadInput

ARRAYS = {
    "mean": np.array([0.1, -1e300]),
    "kept": np.arange(6, dtype=np.float32).reshape(2, 3),
    "none": np.empty((0, 2)),
}
WORDS = {"set": "digits train", "weights": "ü 64 hexadecimal digits"}


def test_arrays_and_description_come_back_bit_for_bit(tmp_path):
    digest = archive.write(tmp_path / "a" / "saved.npz", ARRAYS, WORDS)
    found = archive.read(tmp_path / "a" / "saved.npz")
    assert (found.description, found.digest) == (WORDS, digest)
    assert set(found.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def test_digest_changes_with_values_types_shapes_names_and_words_and_not_with_the_order():
    mean = ARRAYS["mean"]
    others = [
        ({"mean": mean + 1e-16, "b": mean}, WORDS),
        ({"mean": np.where(mean > 0, 0.1 + 2e-17, mean), "b": mean.astype(np.complex128)}, WORDS),
        ({"mean": mean[None], "b": mean}, WORDS),
        ({"mean": mean, "c": mean}, WORDS),
        ({"mean": mean, "b": mean}, WORDS | {"set": "digits test"}),
    ]
    first = archive.digest_of({"mean": mean, "b": mean}, WORDS)
    assert first == archive.digest_of({"b": mean, "mean": mean}, dict(reversed(WORDS.items())))
    assert len({first, *(archive.digest_of(*other) for other in others)}) == 6


@pytest.mark.parametrize("kind", ["absent", "cut", "flipped", "words", "pickled", "other", "value"])
def test_anything_else_is_refused_in_one_line_and_only_its_own_file_is_called_damaged(kind, tmp_path):
    path = tmp_path / "saved.npz"
    archive.write(path, ARRAYS, WORDS)
    content = bytearray(path.read_bytes())
    if kind == "absent":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        content[content.index(np.float64(0.1).tobytes())] ^= 1
        path.write_bytes(content)
    elif kind == "words":
        path.write_text("no statistics")
    elif kind == "pickled":
        np.savez(path, description=np.array([None]), sha256=np.array([None]))
    elif kind == "other":
        np.savez(path, mean=ARRAYS["mean"])
    else:  # a valid file in which someone changed a value
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"mean": arrays["mean"] + 1})
    is_ours = kind in ("flipped", "pickled", "value")
    cure = "delete it to have it made anew" if is_ours else "give another path.*"
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(BadInput, match=rf"^.*saved\.npz .*{cure}$") as raised:
        archive.read(path)
    assert is_ours or "delete" not in str(raised.value)
    assert (path.read_bytes() if path.exists() else None) == before


def test_statistics_of_another_program_are_said_to_be_that_and_left_alone(tmp_path):
    np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(
        BadInput, match="is of another program, with mu and sigma of other images or weights; it is left"
    ):
        archive.read(tmp_path / "fid.npz")


class Opened:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (type(self.mark).touch, (self.mark,))


def test_nothing_is_unpickled(tmp_path):
    path, mark = tmp_path / "saved.npz", tmp_path / "mark"
    objects = np.array([Opened(mark)], object)
    np.savez(path, objects=objects, description=np.array("{}"), sha256=np.array(archive.digest_of({}, {})))
    with pytest.raises(BadInput, match=r"^.*saved\.npz .*delete it to have it made anew$"):
        archive.read(path)
    assert not mark.exists()


def test_a_path_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"^.* cannot be written .*give another path$"):
        archive.write(tmp_path / "file" / "saved.npz", ARRAYS, WORDS)
