"""A run knows its data again wherever they lie, and says what has changed in them."""

import json

import numpy as np
import pytest
from conftest import changed
from sklearn.datasets import load_digits
from test_layout import SHAPE, fill, found

from configs import digits_contrastive as digits
from ebm_jax import cli, identity, labels, opening
from ebm_jax.data import found as data
from ebm_jax.data import memory, sources
from ebm_jax.data.source import Found, Source
from ebm_jax.prepare import prepare
from ebm_jax.schema import flat, with_values
from ebm_jax.storage import workdir
from ebm_jax.types import BadInput

PETS = ("train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "test/dog/0.png", "test/cat/0.png")
RECORD = data.Record("folder:pets", "train", 3, 2, ("cat", "dog"), (2, 1), digest="a")


def config_of(root, **changes):
    named = {"data__source": f"folder:{root}", "data__shape": SHAPE, "data__name": "pets", "model__num_classes": 2}
    return changed(digits.get_config(), **(named | changes))


def record_of(config):
    return data.record_of(sources.make_source(config), config.data.source, config.data.split)


def begun(folder, config):
    """The folder of a run of this config, before its first step."""
    workdir.claim(folder, config)
    workdir.write_data(folder, data.as_json(identity.continued(folder, config, record_of(config)).records))
    return folder


@pytest.fixture
def pets(tmp_path):
    """A folder of pets, and the folder of a run on it."""
    root = fill(tmp_path / "pets", *PETS)
    return root, begun(tmp_path / "run", config_of(root))


def gone_on(folder, config):
    """Go on as training does: the note, after the folder is claimed and the records are written."""
    workdir.check(folder, config)
    going_on = identity.continued(folder, config, record_of(config))
    workdir.claim(folder, config)
    workdir.write_data(folder, data.as_json(going_on.records))
    return going_on.note


def test_the_line_says_images_classes_values_splits_passed_over_files_and_notes():
    found = Found(
        ("cat\x1b[2J", "dog"),
        (2, 1),
        passed_over=((".txt", 3), ("hidden", 1)),
        values=(0, 255),
        measured=256,
        splits=("train", "validation"),
        notes=("a note",),
    )
    source = Source(1234, lambda row: None, str, 2, found)
    assert data.line(data.record_of(source, "folder:x", "train")) == (
        r"data, split train: 1,234 images, 2 classes (cat\x1b[2J: 2, dog: 1), values 0 to 255 in 256 of them, other "
        "splits: validation, no test split; passed over 4 files (3 .txt, 1 hidden); a note"
    )
    many = RECORD._replace(num_classes=100, class_names=tuple(map(str, range(100))), splits=None, images=1)
    words = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, and 88 more"
    assert data.line(many) == f"data, split train: 1 image, 100 classes ({words}), other splits unknown"


def test_every_source_says_what_it_found(tmp_path, capsys):
    targets = load_digits().target[np.arange(1797) % 5 != 4]
    sizes = [f"{digit}: {(targets == digit).sum()}" for digit in range(10)]
    np.savez(
        tmp_path / "a.npz",
        x_train=np.zeros((9, 8, 8), np.uint8),
        y_train=np.arange(9) % 3,
        x_test=np.zeros((1, 8, 8), np.uint8),
    )
    for changes, words in (
        ({}, f"data, split train: 1,438 images, 10 classes ({', '.join(sizes)}), values"),
        ({}, "values 0 to 255, other splits: test\n"),
        (
            {"data__source": f"npz:{tmp_path / 'a.npz'}"},
            "split train: 9 images, 3 classes, values 0 to 0, other splits: test",
        ),
        ({"data__source": "shapes", "data__condition": "shape", "data__split": "test"}, "3 classes (disc: "),
        ({"data__source": "noise"}, "256 images, 1 class, values 0 to 255, other splits unknown"),
    ):
        prepare(changed(digits.get_config(), train__batch_size=8, buffer__capacity=8, **changes), tmp_path)
        assert words in capsys.readouterr().out


def test_values_of_a_set_that_streams_are_those_of_evenly_spaced_images():
    config = changed(digits.get_config(), data__memory_gib=0.0)
    with sources.open_data(config, pytest.fail) as opened:
        assert opened.record is not None
        assert (opened.record.measured, opened.record.values) == (sources.MEASURED, (0.0, 255.0))


@pytest.mark.parametrize(
    ("new", "words", "relabelled"),
    [
        ({}, [], False),
        ({"source": "folder:elsewhere", "notes": ("a",), "values": (0.0, 1.0)}, [], False),
        ({"images": 15, "digest": "b"}, ["12 images more"], False),
        ({"images": 2, "digest": "b"}, ["1 image fewer"], False),
        ({"digest": "b"}, ["as many images, but not the same ones"], False),
        ({"digest": ""}, [], False),
        ({"class_names": ("ant", "cat")}, ["class dog is now ant", "class cat has the label 1 and had 0"], True),
        ({"class_names": ("cat", "eel")}, ["class dog is now eel"], True),
        ({"class_names": ("dog", "cat")}, ["class cat has the label 1 and had 0"], True),
        ({"class_names": ("cat", "dog", "eel", "fox"), "num_classes": 4}, ["classes eel, fox are new"], True),
        ({"class_names": ("cat",), "num_classes": 1}, ["class dog is gone"], True),
        ({"class_names": (), "num_classes": 3}, ["2 classes are now 3"], True),
        ({"class_names": ()}, [], False),
    ],
)
def test_what_differs_is_said_in_words(new, words, relabelled):
    assert data.changes(RECORD, RECORD._replace(**new)) == words
    assert data.relabels(RECORD, RECORD._replace(**new)) == relabelled


def test_records_come_back_from_json_and_anything_else_is_one_line(tmp_path):
    full = RECORD._replace(passed_over=(("hidden", 2),), values=(0.0, 255.0), splits=("test",), notes=("n",))
    assert data.from_json(data.as_json([RECORD, full])) == [RECORD, full]
    for text in ("{", "[1]", "3", '[{"source": 1}]', "[[]]", '{"a": 1}', '"text"', "[" * 100_000):
        workdir.write_data(tmp_path, text)
        with pytest.raises(BadInput, match=r"data\.json is damaged .*; restore it from a copy, or delete it") as raised:
            identity.records_of(tmp_path)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_run_follows_its_data_to_another_place_under_another_word_and_not_to_other_data(tmp_path, kind):
    def put(place, names=PETS):
        root = fill(tmp_path / place, *names)
        if kind == "folder":
            return f"folder:{root}"
        source, _ = found(root)
        images = np.stack([source.read(row)[0] for row in range(source.length)])
        np.savez(root / "a.npz", images=images, labels=np.arange(len(images)) % 2)
        return f"npz:{root / 'a.npz'}"

    first = put("pets")
    folder = begun(tmp_path / "run", config_of("", data__source=first))
    assert gone_on(folder, config_of("", data__source=first.replace("/pets", "/./run/../pets"))) == ""
    moved = put("moved")
    assert (
        gone_on(folder, config_of("", data__source=moved, data__name="my own")) == f"the run's data lie at {moved} now"
    )
    assert workdir.read_config(folder).data.source == moved
    assert len(identity.records_of(folder)) == 1
    others = put("others", ("train/cat/7.png", "train/dog/7.png", *PETS[1:]))
    with pytest.raises(
        BadInput, match=r"data\.source is .*moved.* there and .*others.* here, and these are other data"
    ):
        gone_on(folder, config_of("", data__source=others))
    with pytest.raises(BadInput, match=r"data\.split is train there and test here"):
        workdir.check(folder, config_of("", data__source=moved, data__split="test"))


def test_added_images_are_told_once_and_a_renamed_class_is_refused_by_a_model_of_classes(pets):
    root, folder = pets
    config = config_of(root)
    assert gone_on(folder, config) == ""
    fill(root, "train/cat/2.png", "train/cat/3.png")
    assert gone_on(folder, config) == "the run's data have changed: 2 images more; it goes on with these"
    assert gone_on(folder, config) == ""
    assert [record.images for record in identity.records_of(folder)] == [3, 5]
    before = (folder / workdir.DATA).read_bytes()
    (root / "train" / "dog").rename(root / "train" / "ant")
    with pytest.raises(BadInput, match="class dog is now ant, class cat has the label 1 and had 0; restore the names"):
        gone_on(folder, config)
    assert (folder / workdir.DATA).read_bytes() == before
    (folder / workdir.DATA).unlink()
    assert "had no data.json; it has one now" in gone_on(folder, config)


def test_an_unconditional_run_is_only_told_of_a_renamed_class(tmp_path):
    root, config = fill(tmp_path / "pets", *PETS), config_of(tmp_path / "pets", model__num_classes=1)
    folder = begun(tmp_path / "run", config)
    (root / "train" / "dog").rename(root / "train" / "ant")
    assert "class dog is now ant" in gone_on(folder, config)


def test_a_run_without_a_record_knows_its_data_by_their_place_alone(pets, tmp_path):
    root, folder = pets
    (folder / workdir.DATA).unlink()
    with pytest.raises(BadInput, match=r"data\.source is .*, and it has no data\.json to compare the data with"):
        gone_on(folder, config_of(fill(tmp_path / "copy", *PETS)))
    assert not (folder / workdir.DATA).exists()
    assert (
        gone_on(folder, config_of(f"{root}/"))
        == f"{folder} had no data.json; it has one now, of the data that are there"
    )
    assert identity.class_names(folder) == ("cat", "dog")


def test_data_that_nobody_can_compare_are_known_by_their_place(pets, tmp_path):
    _, folder = pets
    config = config_of(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="and these are other data: nobody can compare"):
        identity.continued(folder, config, identity.records_of(folder)[0]._replace(digest=""))


def test_a_word_for_the_data_is_no_identity_where_it_chooses_nothing():
    config = digits.get_config()
    for kind, differing in (("folder:a", []), ("noise", []), ("sklearn", ["data.name"]), ("tfds", ["data.name"])):
        a, b = (changed(config, data__source=kind, data__name=name) for name in "ab")
        assert list(workdir.differences(a, b)) == differing
    folder, spelt, other, npz = (
        changed(config, data__source=f"{place}a") for place in ("folder:", "folder:./b/../", "folder:b/", "npz:")
    )
    assert workdir.differences(folder, spelt) == {}
    assert (
        list(workdir.differences(folder, other))
        == list(workdir.differences(folder, npz, anywhere=True))
        == ["data.source"]
    )
    assert workdir.differences(folder, other, anywhere=True) == {}


def test_an_older_run_keeps_the_order_of_its_classes_and_a_new_one_sorts_numbers(tmp_path):
    root = fill(tmp_path / "pets", *(f"{number}/0.png" for number in range(12)))
    config = config_of(root, model__num_classes=12)
    values = flat(config)
    older = [key for key in values if key not in ("data.class_order", "data.holdout")]
    groups = json.loads(json.dumps(with_values(config, {}).to_dict()))
    for key in values.keys() - set(older):
        del groups["data"][key.removeprefix("data.")]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / workdir.CONFIG).write_text(json.dumps(groups))
    for _ in range(2):  # the second time its config.json has the key
        went_on = workdir.as_it_began(folder, config)
        assert went_on.data.class_order == "text"
        assert sources.make_source(went_on).found.class_names == tuple(sorted(map(str, range(12))))
        workdir.check(folder, config)
        workdir.claim(folder, config)
    assert workdir.read_config(folder).data.class_order == "text"
    assert workdir.as_it_began(tmp_path / "new", config).data.class_order == "numeric"
    with pytest.raises(BadInput, match=r"data\.holdout is 0\.0 there and 0\.5 here"):
        workdir.check(folder, with_values(config, {"data.holdout": 0.5}))


def test_sampling_and_evaluating_find_the_data_at_another_place_and_refuse_others(pets, tmp_path):
    _, folder = pets
    copy, others = fill(tmp_path / "copy", *PETS), fill(tmp_path / "others", *PETS[1:])

    def asked(mode, **changes):
        words = [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]
        return cli.parse(["run.py", f"--mode={mode}", f"--workdir={folder}", *words]).config

    for mode in cli.MOVABLE:
        identity.check_place(folder, asked(mode, data__source=f"folder:{copy}", data__name="mine"))
    with pytest.raises(BadInput, match="and these are other data: 1 image fewer"):
        identity.check_place(folder, config_of(others))
    with pytest.raises(BadInput, match=r"data\.holdout is 0\.0 there and 0\.1 here; only"):
        asked("sample", data__source=f"folder:{copy}", data__holdout=0.1)
    with pytest.raises(BadInput, match=r"data\.source is folder:"):
        asked("evaluate", data__source="tfds")
    with pytest.raises(BadInput, match=r"data\.source is folder:"):
        asked("export", data__source=f"folder:{copy}")


def test_a_split_whose_classes_have_other_names_is_refused_and_one_that_is_not_there_is_named_by_its_key(pets):
    root, folder = pets
    config = config_of(root)
    assert identity.source_of(folder, config, "test", "eval.split").length == 2
    for key in ("eval.split", "sample.split"):
        with pytest.raises(BadInput, match=f"^{key} 'dev' needs the folder .*; make it, or use {key}=train$"):
            identity.source_of(folder, config, "dev", key)
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "ant")
    with pytest.raises(BadInput, match=r"has other classes than the run in .*: class dog is now ant"):
        identity.source_of(folder, config, "test", "eval.split")
    assert identity.source_of(folder, changed(config, model__num_classes=1), "test", "eval.split").length == 2


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("cat", "0"),
        ("sea lion, cat", "2,0"),
        ("cat+cafe\u0301", "0+1"),
        ("1", "1"),
        ("2,café", "2,1"),
        ("0.5 0.5", "0.5 0.5"),
        ("", ""),
        ("1,,2", "1,,2"),
    ],
)
def test_classes_are_asked_for_by_name_or_number(text, numbers):
    assert labels.numbered_text(text, ("cat", "café", "sea lion")) == numbers


def test_a_name_of_no_class_is_refused_with_the_names_and_the_nearest(pets):
    root, folder = pets
    config = config_of(root, sample__labels="dog,0")
    assert opening.with_numbers(config, folder).sample.labels == "1,0"
    with pytest.raises(
        BadInput, match=r"'dgo' is no class; use numbers from 0 to 1, or names .* cat, dog \(did you mean"
    ):
        opening.with_numbers(changed(config, sample__labels="dgo"), folder)
    assert labels.numbered(config, ()).sample.labels == "dog,0", "without names the words are judged later"


def test_a_trained_run_keeps_its_data_and_names_the_classes_of_its_samples(one_run):
    (record,) = identity.records_of(one_run)
    digest = memory.as_source(memory.digits("train"), "digits").found.digest
    assert record.class_names == tuple("0123456789")
    assert (record.images, record.values, record.splits, record.digest) == (
        1438,
        (0.0, 255.0),
        ("train", "test"),
        digest(),
    )
    opened = opening.open_run(one_run)
    assert opened.names_of(np.array([3, 0])) == ["3", "0"]
    assert opened._replace(class_names=("a",)).names_of(np.array([3])) == [], "names of other classes"
