"""Which folders of a folder of images are splits and classes, and which images are held out."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import changed
from PIL import Image

from configs import digits_contrastive as digits
from ebm_jax.data import files, layout, sources
from ebm_jax.types import BadInput

SHAPE = (8, 8, 1)
E_COMPOSED, E_APART = "caf\u00e9", "cafe\u0301"  # one word in Unicode's forms NFC and NFD


def fill(root, *names):
    """A gray image in each file; a name that ends in / is an empty folder."""
    for number, name in enumerate(names):
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number % 256, np.uint8)).save(root / name)
    return root


def found(root, split="train", **options):
    source = files.folder_source(root, split, SHAPE, crop=False, **options)
    rows = range(source.length)
    return source, {os.path.relpath(source.name(row), root): int(source.read(row)[1]) for row in rows}


@pytest.mark.parametrize(
    ("training", "testing"),
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "test"), ("train", "Testing")],
)
def test_splits_are_known_by_their_usual_names_in_any_case_and_never_become_classes(tmp_path, training, testing):
    for split in (training, testing, "Dev"):
        fill(tmp_path / split, *(f"{name}/0.png" for name in "abc"))
    for split, folder in (("train", training), ("test", testing), ("validation", "Dev"), (testing, testing)):
        source, labels = found(tmp_path, split)
        assert labels == {f"{folder}/{name}/0.png": label for label, name in enumerate("abc")}
        assert source.found.class_names == ("a", "b", "c")
        assert source.found.splits == ("test", "train", "validation")


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["val/a/0.png", "test/a/0.png"], "train", "has the folders test and val but no folder for data.split 'train'"),
        (["Test/0.png", "0.png"], "train", "has the folder Test but no folder for data.split 'train'"),
        (["Train/0.png", "training/0.png"], "train", "has the folders Train and training, which name one split"),
        (["images/0.png", "masks/0.png"], "train", "like images and what belongs to them, not like classes; use"),
        (["Images/0.png", "labels/"], "train", "has the folders Images and labels, which look like images"),
        (["data/train/a/0.png", "data/Test/a/0.png"], "train", "training would see the test images; use folder:"),
        (["cat/train/0.png", "cat/val/0.png"], "train", "/cat has the folders train and val, so training would see"),
        (["cat/0.png", "dog/0.png"], "test", "use data.split=train, or begin a run with data.holdout=0.1"),
        (["val/a/0.png", "Dev/a/0.png"], "valid", "has the folders Dev and val, which name one split"),
        (["cat/0.png", "dog/", "fox/0.png"], "train", "/dog has no images; put some there, or delete the folder: it"),
        (["cat/0.png", "dog/", "fox/0.png"], "train", "it would count as class 1 of 0 to 2"),
        (
            [f"{E_COMPOSED}/0.png", f"{E_APART}/0.png"],
            "train",
            "two folders named café, in Unicode's forms NFC and NFD",
        ),
        (["cat\x1b[2J/", "dog/0.png"], "train", r"cat\x1b[2J has no images"),
    ],
)
def test_what_is_ambiguous_is_refused_in_one_line_with_the_cure(tmp_path, names, split, message):
    fill(tmp_path, *names)
    with pytest.raises(BadInput) as raised:
        found(tmp_path, split)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()


def test_the_exact_name_of_a_split_says_which_of_several_is_meant(tmp_path):
    fill(tmp_path, "train/0.png", "training/1.png")
    assert set(found(tmp_path)[1]) == {"train/0.png"}
    assert set(found(tmp_path, "training")[1]) == {"training/1.png"}


def test_numbered_classes_sort_by_value_and_older_runs_keep_the_order_of_strings(tmp_path):
    names = [str(number) for number in range(12)]
    fill(tmp_path, *(f"{name}/0.png" for name in names))
    source, labels = found(tmp_path)
    assert source.found.class_names == tuple(names)
    assert labels == {f"{name}/0.png": int(name) for name in names}
    older, _ = found(tmp_path, numeric=False)
    assert older.found.class_names == tuple(sorted(names))
    assert [int(older.read(row)[1]) for row in range(12)] == list(range(12))


def test_numbers_inside_names_count_too_and_names_without_any_keep_their_order(tmp_path):
    fill(
        tmp_path, *(f"{name}/0.png" for name in ("class10", "class2", "Zebra", "a", "a b", "v1.10", "v1.9", "01", "1"))
    )
    assert found(tmp_path)[0].found.class_names == (
        *("01", "1", "Zebra", "a", "a b"),
        *("class2", "class10", "v1.9", "v1.10"),
    )


def test_a_class_keeps_its_label_when_one_split_writes_its_name_as_a_mac_does(tmp_path):
    fill(tmp_path, f"train/{E_COMPOSED}/0.png", "train/a/0.png", f"test/{E_APART}/0.png")
    source, labels = found(tmp_path, "test")
    assert source.found.class_names == ("a", E_COMPOSED)
    assert labels == {f"test/{E_APART}/0.png": 1}


def test_one_level_too_deep_is_said_and_the_classes_are_named_where_their_number_does_not_fit(tmp_path):
    root = fill(tmp_path, *(f"pets/{name}/0.png" for name in ("cat", "dog")))
    (note,) = found(root)[0].found.notes
    assert f"2 folders of {root / 'pets'}, which is the only class; if they are the classes, use folder:" in note
    config = changed(digits.get_config(), data__source=f"folder:{root}", data__shape=SHAPE, model__num_classes=2)
    with pytest.raises(BadInput, match="whose classes are pets, all images lie one level deeper, in 2 folders"):
        sources.make_source(config)
    assert found(root / "pets")[0].found.notes == ()


def test_the_digest_follows_the_data_to_another_place_and_sees_any_other_name_size_or_label(tmp_path):
    names = [f"{name}/{number}.png" for name in ("ant", E_COMPOSED) for number in range(3)]
    first = found(fill(tmp_path / "a", *names))[0].found.digest()
    moved = fill(tmp_path / "elsewhere" / "train", *(unicodedata.normalize("NFD", name) for name in names))
    fill(moved, "ant/.hidden.png")
    (moved / "ant" / "notes.txt").write_text("passed over")
    assert found(moved.parent)[0].found.digest() == first
    changes = {
        "renamed": lambda root: (root / "ant" / "0.png").rename(root / "ant" / "9.png"),
        "added": lambda root: fill(root, "ant/3.png"),
        "gone": lambda root: (root / "ant" / "0.png").unlink(),
        "larger": lambda root: (root / "ant" / "0.png").write_bytes((root / "ant" / "0.png").read_bytes() + b"\0"),
        "another class": lambda root: (root / "ant").rename(root / "zoo"),
    }
    for name, change in changes.items():
        change(shutil.copytree(tmp_path / "a", tmp_path / name, dirs_exist_ok=True) and tmp_path / name)
        assert found(tmp_path / name)[0].found.digest() != first, name
    fill(tmp_path / "labels", "train/b/0.png", "test/b/0.png")
    before = found(tmp_path / "labels", "test")[0].found.digest()
    fill(tmp_path / "labels", "train/a/0.png")
    assert found(tmp_path / "labels", "test")[0].found.digest() != before, "b has the label 1 now"


def config_of(source, split, share=0.3):
    return changed(digits.get_config(), data__source=source, data__shape=SHAPE, data__holdout=share, data__split=split)


def names_in(root, split):
    source = sources.make_source(config_of(f"folder:{root}", split))
    return {os.path.relpath(source.name(row), root) for row in range(source.length)}


def test_images_held_out_depend_on_their_names_alone_so_that_none_ever_changes_sides(tmp_path):
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(40)]
    train, test = (names_in(fill(tmp_path / "a", *names), split) for split in ("train", "test"))
    assert train | test == set(names)
    assert not train & test
    assert abs(len(test) - 24) < 4 * np.sqrt(80 * 0.3 * 0.7), "a share of 0.3, within four standard errors"
    fill(tmp_path / "b", *names[:60], *(f"fox/{number}.png" for number in range(9)))
    (tmp_path / "b" / "fox").rename(tmp_path / "b" / "ant")
    for split, before in (("train", train), ("test", test)):
        assert names_in(tmp_path / "b", split) & set(names) == before & set(names[:60])
    config = config_of(f"folder:{tmp_path / 'a'}", "test")
    assert sources.make_source(config).found.splits == ("test", "train")
    assert (
        sources.make_source(config).found.notes[0]
        == f"{len(test)} of 80 images are kept back as the split test (data.holdout 0.3)"
    )


def test_rows_of_an_array_are_held_out_by_their_numbers(tmp_path):
    for length in (50, 80):
        np.savez(
            tmp_path / f"{length}.npz",
            images=np.arange(length, dtype=np.uint8)[:, None, None] + np.zeros(SHAPE[:2], np.uint8),
        )
    parts = {
        (length, split): [int(source.read(row)[0][0, 0, 0]) for row in range(source.length)]
        for length in (50, 80)
        for split in ("train", "test")
        for source in [sources.make_source(config_of(f"npz:{tmp_path / f'{length}.npz'}", split))]
    }
    assert sorted(parts[50, "train"] + parts[50, "test"]) == list(range(50))
    assert parts[50, "test"] == [row for row in parts[80, "test"] if row < 50]


def test_nothing_is_held_out_where_there_is_a_test_split_or_nothing_to_hold_out(tmp_path):
    fill(tmp_path, "train/0.png", "Test/0.png")
    for split, name in (("train", "train/0.png"), ("test", "Test/0.png")):
        assert names_in(tmp_path, split) == {name}
        source = sources.make_source(config_of(f"folder:{tmp_path}", split))
        assert source.found.notes[-1] == "data.holdout 0.3 keeps nothing back, because there is a split test"
    with pytest.raises(BadInput, match=r"data\.holdout 0\.3 keeps [01] of 1 images back; use a share between, or 0"):
        sources.make_source(config_of(f"folder:{fill(tmp_path / 'one', '0.png')}", "train"))
    assert sources.make_source(config_of(f"folder:{tmp_path}", "train", 0.0)).length == 1


def test_split_of_knows_no_other_word():
    assert [layout.split_of(name) for name in ("cat", "tests", "trains", "", "devil")] == [""] * 5
