"""Energies to give away: what a saved folder holds, what it refuses, and those that come with the package."""

import json
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ebm_jax
from ebm_jax import publishing, shipped, trust
from ebm_jax.data.densities import DENSITIES
from ebm_jax.main import main
from ebm_jax.models import energy
from ebm_jax.samplers import make_density_report
from ebm_jax.schema import with_values
from ebm_jax.storage import published
from ebm_jax.storage.published import WEIGHTS
from ebm_jax.types import BadInput

IMAGES = np.random.default_rng(0).random((16, 8, 8, 1)).astype(np.float32)
QUICK = {"model.width": 4, "chain.num_steps": 2, "sample.num_steps": 2, "sample.quiet_steps": 1, "buffer.capacity": 16}
SECRET = "/home/somebody/photos"
PROTOCOL = {
    "seed": "7",
    "command": f"run.py --workdir={SECRET}/mine --config.eval.dir={SECRET} --config.sample.labels=1/2",
    "energy": "U / T of and/or, http://a.b/c/d",
}
NAMES = shipped.energy_names()
MIB = 2**20


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, of somebody who keeps the data in a place of his own."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    changes = QUICK | {"data.dir": SECRET, "eval.classifier_distance.dir": SECRET}
    ebm_jax.fit("small", IMAGES, method="contrastive", steps=2, folder=folder, changes=changes)
    return ebm_jax.open_run(folder, trusted=True)


@pytest.fixture
def saved(run, tmp_path):
    return run.save(tmp_path / "given", license="mit", notes="Photos of \x1b[31m mine.")


def test_a_saved_energy_is_the_same_function_under_every_door(run, saved):
    expected = run.energy(IMAGES)
    np.testing.assert_array_equal(saved.energy(IMAGES), expected)
    assert saved.step == run.step == 2
    config, params = ebm_jax.load(saved.folder)
    np.testing.assert_array_equal(ebm_jax.make_energy_fn(config)(params, IMAGES), expected)
    key = jax.random.key(0)
    np.testing.assert_array_equal(saved.sample(key, 3), run.sample(jax.random.clone(key), 3))
    assert main(["run.py", "--mode=sample", f"--workdir={saved.folder}", "--config.sample.num_images=2"]) == 0
    assert len(list((saved.folder / "samples").glob("*.npz"))) == 1


def test_save_at_the_door_writes_a_run_as_its_own_method_does_and_takes_back_what_load_gave(run, saved, tmp_path):
    words = {"license": "mit", "notes": "Photos of \x1b[31m mine."}
    kept = ebm_jax.save(run, tmp_path / "door" / "given", **words).folder
    assert {path.name for path in kept.iterdir()} == {path.name for path in saved.folder.iterdir()}
    for path in kept.iterdir():  # safetensors writes what it says beside the arrays in any order
        same = published.read if path.name == WEIGHTS else lambda folder, name=path.name: (folder / name).read_bytes()
        jax.tree.map(np.testing.assert_array_equal, same(kept), same(saved.folder))
    pair = ebm_jax.load(kept)
    again = ebm_jax.save(pair, tmp_path / "pair", dtype="float16")
    np.testing.assert_allclose(again.energy(IMAGES), run.energy(IMAGES), rtol=1e-2, atol=1e-2)
    assert again.config.to_dict() == pair[0].to_dict()
    assert "trained elsewhere" in (again.folder / "README.md").read_text()
    two = ebm_jax.save((pair[0], ebm_jax.stack([pair[1], pair[1]])), tmp_path / "two")
    np.testing.assert_allclose(two.energy(IMAGES), run.energy(IMAGES), rtol=1e-6)


def test_save_refuses_what_is_no_trained_energy_and_leaves_nothing(run, tmp_path):
    for given, words in (
        ((len, run.params), "trained is a function, .* give a run, as ebm_jax.fit"),
        ("runs/mine", "trained is str, .* the pair .config, params. of ebm_jax.load"),
        ((run.config,), "trained is tuple"),
        ((run.config, None), "params are of another network"),
        (("digits", run.params), "the config gives str"),
    ):
        with pytest.raises(BadInput, match=words) as refused:
            ebm_jax.save(given, tmp_path / "given")
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 10), ("bfloat16", 7)])
def test_shorter_types_round_every_weight_once(run, tmp_path, dtype, bits):
    short = run.save(tmp_path / dtype, dtype=dtype)
    for mine, there in zip(jax.tree.leaves(run.params), jax.tree.leaves(short.params), strict=True):
        assert there.dtype == jnp.float32
        np.testing.assert_allclose(there, mine, rtol=2.0 ** -(bits + 1), atol=2.0**-25)
    assert any((jax.tree.leaves(run.params)[i] != leaf).any() for i, leaf in enumerate(jax.tree.leaves(short.params)))
    full = (run.save(tmp_path / "full").folder / WEIGHTS).stat().st_size
    assert (short.folder / WEIGHTS).stat().st_size < 0.6 * full


def test_the_second_energies_and_samples_of_a_run_compile_nothing_but_of_own_code_all(saved, monkeypatch, caplog):
    def compiled(*calls):
        caplog.clear()
        with jax.log_compiles():
            found = [call() for call in calls]
        return found, [record for record in caplog.records if record.getMessage().startswith("Compiling")]

    keys = jax.random.split(jax.random.key(0), 2)
    _, first = compiled(lambda: saved.energy(IMAGES), lambda: saved.sample(keys[0], 3))
    (energies, _), again = compiled(lambda: saved.energy(1 - IMAGES), lambda: saved.sample(keys[1], 3))
    assert len(first) > 1
    assert again == []
    np.testing.assert_array_equal(ebm_jax.open_run(saved.folder).energy(1 - IMAGES), energies)
    monkeypatch.setattr(trust, "is_ours", lambda config: False)
    assert compiled(lambda: saved.energy(IMAGES))[1]


@pytest.mark.parametrize(
    ("key", "value"), [("model.name", "lab:Net"), ("model.name", "python:Net-0"), ("method.name", "lab:METHOD")]
)
def test_a_program_of_code_from_outside_is_not_kept(saved, key, value):
    assert trust.is_ours(saved.config)
    assert not trust.is_ours(with_values(saved.config, {key: value}))


def test_the_file_is_plain_safetensors_by_the_names_of_the_network(run, saved):
    arrays = load_file(saved.folder / WEIGHTS)
    leaves = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(run.params)}
    assert arrays.keys() == leaves.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, leaves[name])
    with safe_open(saved.folder / WEIGHTS, "np") as file:
        facts = {"format": "ebm_jax", "step": "2", "members": "1", "weights": "ema", "license": "mit"}
        assert facts.items() <= file.metadata().items()


def test_nothing_of_the_machine_goes_with_it_and_the_card_says_what_it_is(run, tmp_path):
    versions = json.loads((run.folder / "versions.json").read_text())
    versions[0]["arguments"] = [f"--workdir={SECRET}"]
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    (copy / "versions.json").write_text(json.dumps(versions))
    saved = run._replace(folder=copy).save(tmp_path / "given", license="mit", notes="Photos of \x1b[31m mine.")
    (kept,) = json.loads((saved.folder / "versions.json").read_text())
    assert kept == {key: value for key, value in versions[0].items() if key != "arguments"}
    names = {path.name for path in saved.folder.iterdir()}
    assert names == {"README.md", "config.json", "data.json", "versions.json", WEIGHTS}
    for path in saved.folder.iterdir():
        content = path.read_bytes()
        assert SECRET.encode() not in content
        assert str(run.folder.parent).encode() not in content
    card = (saved.folder / "README.md").read_text()
    assert f"{sum(leaf.size for leaf in jax.tree.leaves(run.params)):,} parameters" in card
    assert "16 images" in card
    assert "exp(-U(x)) / Z" in card
    assert "\nmodel.width=4\n" in card
    assert "Not measured." in card
    assert r"Photos of \x1b[31m mine." in card, "a terminal obeys no name from outside"


@pytest.mark.parametrize("license", ["mit", "", "my own: see 'x' #1", "\x1b[31m\n---"])
def test_hubs_read_what_the_card_says_of_itself(run, tmp_path, license):
    hub = pytest.importorskip("huggingface_hub", reason="requirements-dev.txt has it")
    told = hub.ModelCard.load(run.save(tmp_path / "given", license=license).folder / "README.md").data.to_dict()
    assert told.pop("license", "") == license
    assert told == {
        "library_name": "ebm_jax",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["energy-based-model", "jax", "contrastive"],
    }


def test_what_a_hub_gives_back_opens_links_of_its_cache_and_all(saved, tmp_path):
    """snapshot_download gives a folder of links to files that are named by their hashes, with the repository's own."""
    blobs, snapshot = tmp_path / "models--me--mine" / "blobs", tmp_path / "models--me--mine" / "snapshots" / "0a1b2c"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate([*saved.folder.iterdir()]):
        shutil.copy(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    np.testing.assert_array_equal(ebm_jax.open_run(snapshot).energy(IMAGES), saved.energy(IMAGES))


def test_the_newest_evaluation_of_the_step_is_on_the_card(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    for step, number, value in ((2, 0, 1.5), (2, 10, 2.75), (2, 9, 3.5), (1, 11, 4.5)):
        made = copy / "evaluation" / f"{step:06d}_{number}"
        made.mkdir(parents=True)
        metric = {"values": {"distance": {"value": value, "standard_error": 0.25}}, "protocol": {"judge": "a friend"}}
        (made / "evaluation.json").write_text(json.dumps({"protocol": PROTOCOL, "metrics": {"taste": metric}}))
    given = ebm_jax.open_run(copy, trusted=True).save(tmp_path / "given")
    card = (given.folder / "README.md").read_text()
    assert "### taste\n\n| value | | standard error |\n|---|---|---|\n| distance | 2.75 | 0.25 |" in card
    assert "- judge: a friend" in card
    assert "- seed: 7" in card
    assert "- command: run.py --workdir=mine --config.eval.dir=photos --config.sample.labels=1/2" in card
    assert "- energy: U / T of and/or, http://a.b/c/d" in card
    assert SECRET not in (given.folder / "evaluation.json").read_text() + card
    again = given.save(tmp_path / "again").folder
    assert (again / "README.md").read_text() == card.replace('"given"', '"again"')


def test_an_ensemble_is_saved_whole(run, tmp_path):
    two = run._replace(params=energy.stack([run.params, jax.tree.map(lambda leaf: leaf + 0.1, run.params)]))
    kept = two.save(tmp_path / "two")
    np.testing.assert_array_equal(kept.energy(IMAGES), two.energy(IMAGES))
    assert "2 of them" in (kept.folder / "README.md").read_text()
    assert energy.num_members(ebm_jax.load(kept.folder)[1]) == 2


@pytest.mark.parametrize(
    ("dtype", "scale", "words"),
    [
        ("float64", 1, "dtype float64 is unknown; use one of float32, bfloat16, float16"),
        ("float16", 1e9, "not finite as float16"),
        ("float32", np.nan, "not finite as float32"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(run, tmp_path, dtype, scale, words):
    other = run._replace(params=jax.tree.map(lambda leaf: leaf * scale, run.params))
    with pytest.raises(BadInput, match=words):
        other.save(tmp_path / "given", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(run, saved, tmp_path):
    for taken in (saved.folder, run.folder):
        with pytest.raises(BadInput, match="exists already"):
            run.save(taken)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="cannot be written"):
        run.save(tmp_path / "file" / "inside")
    assert (tmp_path / "file").read_text() == "mine"


def test_other_weights_than_the_folders_are_refused(saved):
    raw, best = saved.config.unlock().copy_and_resolve_references(), None
    raw.sample.weights = "raw"
    with pytest.raises(BadInput, match=r"sample\.weights is ema, not raw"):
        ebm_jax.open_run(saved.folder, raw)
    best = saved.config.unlock().copy_and_resolve_references()
    best.sample.checkpoint = "best"
    with pytest.raises(BadInput, match=r"sample\.checkpoint is newest, not best"):
        ebm_jax.open_run(saved.folder, best)
    with pytest.raises(BadInput, match="snapshots is 1, not 2"):
        ebm_jax.load(saved.folder, snapshots=2)


def test_training_does_not_go_on_in_it(saved, capsys):
    before = {path.name: path.read_bytes() for path in saved.folder.iterdir()}
    assert main(["run.py", "--config=digits_contrastive", f"--workdir={saved.folder}"]) == 2
    error = capsys.readouterr().err
    assert "without what training goes on from" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in saved.folder.iterdir()} == before


class Shouts:
    def __reduce__(self):
        return (print, ("executed",))


def of_another_network(path):
    arrays = load_file(path)
    with safe_open(path, "np") as file:
        save_file(
            {name: np.zeros((2, *array.shape), np.float32) for name, array in arrays.items()}, path, file.metadata()
        )


def of_a_stranger(path):
    save_file(load_file(path), path, {"format": "pt"})


def doubled(path):
    with safe_open(path, "np") as file:
        facts = file.metadata()
    save_file({name: array.astype(np.float64) for name, array in load_file(path).items()}, path, facts)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is damaged, or not from ebm_jax"),
        (lambda path: path.write_bytes(b""), "is damaged, or not from ebm_jax"),
        (lambda path: path.write_bytes(pickle.dumps(Shouts())), "is damaged, or not from ebm_jax"),
        (of_a_stranger, "its format is pt, not ebm_jax"),
        (doubled, "types F64, not one of F32, BF16, F16"),
        (of_another_network, "is of another network than its config.json"),
    ],
)
def test_a_damaged_file_is_one_line(saved, damage, words, capsys):
    damage(saved.folder / WEIGHTS)
    with pytest.raises(BadInput, match=words) as raised:
        ebm_jax.load(saved.folder)
    assert "\n" not in str(raised.value)
    assert "executed" not in capsys.readouterr().out


def test_a_name_is_an_energy_of_the_package_unless_a_folder_has_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ebm_jax.open_run("two_moons").folder == shipped.energies() / "two_moons"
    with pytest.raises(BadInput, match="did you mean two_moons"):
        ebm_jax.load("two_mons")
    with pytest.raises(BadInput, match=r"runs/two_moons is not the folder of a run"):
        ebm_jax.load("runs/two_moons")
    (tmp_path / "two_moons").mkdir()
    with pytest.raises(BadInput, match=r"give \./two_moons, or work in another folder"):
        ebm_jax.load("two_moons")


@pytest.mark.whole
def test_the_command_works_on_a_copy_of_an_energy_of_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["run.py", "sample", "--energy=two_moons", "--config.sample.num_images=2", "--config.sample.num_steps=2"]
    for number in (1, 2):
        assert main(words) == 0
        assert len(list(tmp_path.glob("runs/two_moons-shipped/samples/*.npz"))) == number
    assert "earlier version" not in capsys.readouterr().err
    weights = shipped.energies() / "two_moons" / WEIGHTS
    assert (tmp_path / "runs" / "two_moons-shipped" / WEIGHTS).read_bytes() == weights.read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample", "--energy=two_mons"], "did you mean two_moons?"),
        (["sample", "--energy=../energies/two_moons"], "is unknown; use one of"),
        (["train", "--energy=two_moons"], "--energy 'two_moons' is for sample, export, evaluate, not for train"),
        (["sample", "--energy=two_moons", "--config=digits"], "has its own config"),
        (["sample", "--energy=two_moons", "--workdir=taken"], "holds something else than the energy two_moons"),
        (["sample", "--energy=two_moons", "--workdir=taken/file/inside"], "cannot be written"),
        (["sample", "--energy=two_moons", "--config.chain.step_size=3"], "only --config.sample keys may change"),
    ],
)
def test_a_wrong_energy_on_the_command_line_is_one_line_and_nothing_is_written(
    words, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert main(["run.py", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "file"]


def test_the_package_has_its_energies_small_with_cards_and_nothing_of_a_machine():
    from tools.energies import RECIPES

    assert set(NAMES) == RECIPES.keys()
    files = [path for path in shipped.energies().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4 * MIB
    for path in files:
        if path.suffix in (".md", ".json"):
            assert not re.search(r"/(tmp|home|work|root|Users)/", path.read_text()), path
    for name in NAMES:
        folder = shipped.energies() / name
        assert (folder / "README.md").read_text() == publishing.card(folder)
        assert "license: apache-2.0" in publishing.card(folder)
        assert ("pipeline_tag:" in publishing.card(folder)) == (name not in DENSITIES)
        assert "Not measured." not in publishing.card(folder)
        assert (folder / publishing.PICTURE).exists()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "rings" else pytest.mark.whole) for name in sorted(DENSITIES)]
)
def test_the_numbers_on_a_density_s_card_come_out_again_and_stand_on_the_page(name):
    config, params = ebm_jax.load(name)
    report = make_density_report(config)(params)[0]
    values = json.loads((shipped.energies() / name / "evaluation.json").read_text())["metrics"]["density"]["values"]
    for key, words in publishing.DIVERGENCE.items():
        assert float(getattr(report, key)) == pytest.approx(values[words]["value"], abs=2e-5), key
    divergence = values[publishing.DIVERGENCE["kl"]]["value"]
    assert divergence < 0.03
    assert re.search(rf"`{name}`.* {divergence:.4f} nats \|\n", (ROOT / "docs" / "energies.md").read_text())


@pytest.mark.whole
@pytest.mark.optimised
def test_the_numbers_on_the_cards_of_the_shapes_come_out_again():
    from tools.energies import SHAPES, composed

    again = composed(*map(ebm_jax.open_run, SHAPES))
    for name in SHAPES:
        metrics = json.loads((shipped.energies() / name / "evaluation.json").read_text())["metrics"]
        assert metrics["composition"]["values"].keys() == again.keys()
        for key, value in metrics["composition"]["values"].items():
            limit = max(3 * value["standard_error"], 0.01)  # of 300 samples; a share of 1 has no error
            assert again[key]["value"] == pytest.approx(value["value"], abs=limit), key


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DENSITIES])
def test_an_energy_of_images_gives_energies(name):
    run = ebm_jax.open_run(name)
    images = np.random.default_rng(1).random((2, *run.config.data.shape)).astype(np.float32)
    assert np.isfinite(run.energy(images)).all()


def test_labels_of_energies_are_classes_by_number_or_by_name_for_all_images_or_one_an_image():
    run = ebm_jax.open_run("fashion_mnist")
    images = np.random.default_rng(1).random((2, 28, 28, 1)).astype(np.float32)
    sneaker, boot = (run.energy(images, np.full(2, label)) for label in (7, 9))
    assert (np.abs(sneaker - boot) > 1e-3).all(), "the case would say nothing"
    for given in (7, "Sneaker", [7, 7], ["Sneaker", 7]):
        np.testing.assert_array_equal(run.energy(images, given), sneaker)
    np.testing.assert_array_equal(run.energy(images, ["Sneaker", "Ankle boot"]), [sneaker[0], boot[1]])
    with pytest.raises(BadInput, match=r"labels 'Sneeker' is no class; .* .did you mean Sneaker"):
        run.energy(images, "Sneeker")
    with pytest.raises(BadInput, match=r"labels of shape \(3,\) for 2 images"):
        run.energy(images, [1, 2, 3])
    with pytest.raises(BadInput, match="the classes have no names; use numbers"):
        run._replace(class_names=()).energy(images, "Sneaker")


@pytest.mark.whole
@pytest.mark.optimised
def test_the_numbers_on_the_card_of_the_digits_come_out_again(tmp_path):
    again_as_on_the_card("digits", tmp_path)


@pytest.mark.slow
@pytest.mark.optimised
def test_the_numbers_on_the_card_of_fashion_mnist_come_out_again(tmp_path):
    again_as_on_the_card("fashion_mnist", tmp_path)


def again_as_on_the_card(name, tmp_path):
    copy = tmp_path / name
    shutil.copytree(shipped.energies() / name, copy)
    assert main(["run.py", "--mode=evaluate", f"--workdir={copy}", "--config.eval.metrics=classifier_distance"]) == 0
    new = json.loads(next(copy.glob("evaluation/*/evaluation.json")).read_text())["metrics"]["classifier_distance"]
    old = json.loads((copy / "evaluation.json").read_text())["metrics"]["classifier_distance"]
    assert new["values"].keys() == old["values"].keys()
    for key, value in old["values"].items():
        limit = 3 * value["standard_error"] if value["standard_error"] else 0.05 * abs(value["value"])
        assert new["values"][key]["value"] == pytest.approx(value["value"], abs=limit), key


def test_the_readme_names_them():
    text = (ROOT / "README.md").read_text() + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for name in NAMES:
        assert f"`{name}`" in text, name
