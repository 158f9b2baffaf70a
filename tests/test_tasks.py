"""Every task of --mode=sample, on a small conditional run, writes what the functions of the package give."""

import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from PIL import Image
from test_train import command, files

import ebm_jax
import run
from configs import digits_contrastive as digits
from ebm_jax import assemble, cli
from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.labels import numbered, parse_labels, sample_labels
from ebm_jax.models import energy, observations
from ebm_jax.report import pictures
from ebm_jax.report.pictures import Row
from ebm_jax.sampling import replay
from ebm_jax.sampling.hmc import Phase, leapfrog
from ebm_jax.sampling.kernel import point
from ebm_jax.storage.workdir import claim, read_config
from ebm_jax.tasks import common, compose
from ebm_jax.tasks.film import frame_steps
from ebm_jax.tasks.inpaint import known_pixels
from ebm_jax.tasks.observed import likelihood_weight
from ebm_jax.types import BadInput


def sampled(workdir, task="generate", number=0, **changes):
    """The arrays that the command writes; with a picture beside them."""
    before = set((workdir / "samples").glob("*.npz"))
    assert run.main(command(workdir, "sample", sample__task=task, **changes)) == 0
    (path,) = set((workdir / "samples").glob("*.npz")) - before
    assert path.stem.startswith("0" if task == "generate" else task)
    assert Image.open(path.with_suffix(".png")).size[0] > 50
    return dict(np.load(path))


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each picture that is drawn meanwhile, by name, the positional ones as `args`."""
    calls = []
    for name in ("write_grid", "write_rows"):
        real = getattr(pictures, name)

        def noted(*args, real=real, **rest):
            calls.append({"args": args[1:], **rest})
            real(*args, **rest)

        monkeypatch.setattr(pictures, name, noted)
    return calls


def energies(workdir):
    config, params = ebm_jax.load(workdir)
    energy_fn = ebm_jax.make_energy_fn(config)
    return lambda images, labels: energy_fn(params, jnp.asarray(images), jnp.asarray(labels))


@pytest.mark.whole
def test_labels_asked_for_come_in_turn(workdir):
    arrays = sampled(workdir, sample__labels="7,2")
    np.testing.assert_array_equal(arrays["labels"], [7, 2] * 8)
    np.testing.assert_allclose(arrays["energies"], energies(workdir)(arrays["images"], arrays["labels"]), atol=1e-5)


def test_the_steps_of_a_films_frames_end_at_the_last_step_of_the_chain():
    config = changed(digits.get_config(), sample__film__every=10, sample__descent_steps=15, sample__num_steps=20)
    assert frame_steps(config, 5) == [0, 10, 20, 30, 35]
    assert frame_steps(config, 6) == [0, 10, 20, 30, 35, 35], "a last stage brings images into their range"


@pytest.mark.whole
def test_a_command_names_every_file_that_it_wrote_and_one_command_to_go_on_with(workdir, capsys):
    for task, mode in (("generate", "sample"), ("film", "evaluate")):
        before = set((workdir / "samples").glob("*"))
        assert run.main(command(workdir, "sample", sample__task=task)) == 0
        *_, written, following = capsys.readouterr().out.splitlines()
        new = set((workdir / "samples").glob("*")) - before
        assert {path.suffix for path in new} == {".png", ".npz"} | ({".gif"} if task == "film" else set())
        assert set(written.removeprefix("wrote ").replace(" and ", ", ").split(", ")) == {str(path) for path in new}
        words = shlex.split(following.partition(": ")[2])
        assert cli.parse(words[words.index("ebm_jax") :]).mode == mode


@pytest.mark.slow
def test_a_film_goes_from_noise_to_the_end_of_the_chain(workdir):
    arrays = sampled(workdir, "film", sample__film__every=2)
    frames = arrays["frames"]
    assert frames.shape == (3, 16, 8, 8, 1), "the start, after 2 steps and after the 3rd, the last"
    assert 0.2 < frames[0].std() < 0.4, "uniform noise has 0.29"
    last = energies(workdir)(frames[-1], arrays["labels"])
    assert (last < energies(workdir)(frames[0], arrays["labels"])).all()
    gif = Image.open(next((workdir / "samples").glob("film*.gif")))
    assert gif.n_frames == 3
    np.testing.assert_allclose(frames[-1], sampled(workdir)["images"], atol=1e-5)


@pytest.mark.slow
def test_a_transition_starts_at_test_images_and_goes_to_the_class_that_was_asked_for(workdir):
    arrays = sampled(workdir, "transition", sample__labels="4")
    test = memory.digits("test").images / np.float32(255)
    assert all((image == test).all((1, 2, 3)).any() for image in arrays["images"])
    np.testing.assert_array_equal(arrays["target_labels"], 4)
    start, end = (energies(workdir)(arrays[name], arrays["target_labels"]) for name in ("images", "moved"))
    assert (end < start).all()
    turned = sampled(workdir, "transition")
    np.testing.assert_array_equal(turned["target_labels"], (turned["labels"] + 1) % 10)


@pytest.mark.whole
def test_composition_of_two_labels_lowers_the_sum_of_their_energies(workdir):
    images = sampled(workdir, "compose", sample__labels="1+3")["images"]
    noise = np.random.default_rng(0).uniform(size=images.shape)
    u, ones = energies(workdir), np.ones(16, int)
    assert (u(images, ones) + u(images, 3 * ones)).mean() < (u(noise, ones) + u(noise, 3 * ones)).mean()
    other = sampled(
        workdir, "compose", sample__labels="1", sample__with_runs=workdir, sample__compose__with_labels="3"
    )["images"]
    np.testing.assert_allclose(other, images, atol=1e-5)


def test_a_composed_image_is_told_with_all_the_classes_that_it_is_asked_for():
    names = ["cat", "dog", "owl"]
    own = [lambda places: places % 2, lambda places: 2 + 0 * places]
    found = compose.asked_classes(lambda labels: [names[label] for label in labels], own, 3)
    assert found == ["cat + owl", "dog + owl", "cat + owl"]
    assert compose.asked_classes(lambda labels: [], own, 3) == [], "they have no names"


@pytest.mark.parametrize("mask", ["lower", "upper", "left", "right", "centre", "random"])
def test_every_mask_hides_about_what_its_name_says(mask):
    config = digits.get_config()
    config.sample.inpaint.mask = mask
    known = known_pixels(config)
    assert known.shape == (8, 8, 1)
    share = {"centre": 0.75}.get(mask, 0.5)
    assert abs(known.mean() - share) < (0.2 if mask == "random" else 1e-9)
    y, x = np.argwhere(~known[:, :, 0]).mean(0) - 3.5
    away = {"lower": y, "upper": -y, "left": -x, "right": x}.get(mask)
    assert away is None or away > 1
    if mask == "centre":
        assert abs(y) + abs(x) < 1e-9
        assert known[[0, -1]].all()


def test_inpainting_keeps_known_pixels_bit_for_bit_and_says_its_error_beside_that_of_the_mean_image(
    workdir, capsys, drawn
):
    capsys.readouterr()
    arrays = sampled(workdir, "inpaint")
    said, unknown = capsys.readouterr().out, ~np.broadcast_to(arrays["known"], arrays["images"].shape)
    mean = memory.digits("train").images.astype(np.float64).mean(0) / 255
    of_mean, of_filled = (np.square(guess - arrays["images"])[unknown].mean() for guess in (mean, arrays["filled"]))
    assert f"mean squared error there {of_filled:.4f}, of the training set's mean image {of_mean:.4f}\n" in said
    known = np.broadcast_to(arrays["known"], arrays["images"].shape)
    np.testing.assert_array_equal(arrays["filled"][known], arrays["images"][known])
    assert np.abs(arrays["filled"] - arrays["images"])[~known].mean() > 0.1, "what is hidden is not known"
    ((rows, title),) = (call["args"] for call in drawn)
    what = "16 images of test, filled in where they are hidden (50%); the first 12"
    assert title.startswith(f"{workdir.name}, step 6: {what}\n")
    assert title.endswith(
        "chain steps, the last 1 without noise; start: noise where hidden; "
        "mean squared errors of all hidden pixels; EMA weights"
    )
    original, hatched, filled = rows.values()
    assert (
        list(rows)[2]
        == f"filled in: mean squared error {of_filled:.4f}; of the training set's mean image {of_mean:.4f}"
    )
    np.testing.assert_array_equal(hatched.hidden, ~arrays["known"][:, :, 0])
    assert original.captions == [str(label) for label in arrays["labels"][: len(original.captions)]]
    np.testing.assert_array_equal(filled.images, arrays["filled"][: len(filled.images)])


@pytest.mark.parametrize(("task", "of_one"), [("inpaint", "filled"), ("restore", "restored")])
def test_the_mean_of_several_chains_stands_beside_one_of_them_with_its_error(workdir, capsys, task, of_one):
    assert not {"chains", "mean"} & set(sampled(workdir, task))
    capsys.readouterr()
    arrays = sampled(workdir, task, sample__mean_of=3)
    chains, images = arrays["chains"], arrays["images"]
    assert chains.shape == (3, *images.shape)
    assert all(np.abs(chains[i] - chains[j]).max() > 0.01 for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_array_equal(arrays[of_one], chains[0])
    np.testing.assert_allclose(arrays["mean"], (chains[0] + chains[1] + chains[2]) / 3, atol=1e-6)
    counted = ~np.broadcast_to(arrays.get("known", np.zeros((), bool)), images.shape)
    error = np.square(arrays["mean"] - images)[counted].mean()
    assert f", of the mean of 3 chains {error:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("corruption", ["salt_and_pepper", "noise", "blur"])
def test_restoration_starts_from_damage_of_the_stated_amount_and_shows_its_errors(workdir, corruption, drawn):
    amount = {"salt_and_pepper": 0.3, "noise": 0.1, "blur": 1.0}[corruption]
    arrays = sampled(workdir, "restore", sample__restore__corruption=corruption, sample__restore__amount=amount)
    difference = arrays["observed"] - arrays["images"]
    assert np.abs(difference).max() > 0
    if corruption == "salt_and_pepper":
        assert abs((arrays["observed"] == 1).mean() - (arrays["images"] == 1).mean() - 0.15) < 0.08
    if corruption == "noise":
        inside = (arrays["images"] > 0.35) & (arrays["images"] < 0.65)
        assert abs(difference[inside].std() - amount) < 0.03
    assert np.isfinite(arrays["restored"]).all()
    ((rows, _),) = (call["args"] for call in drawn)
    before, after = (np.square(arrays[name] - arrays["images"]).mean() for name in ("observed", "restored"))
    assert f"observed ({corruption.replace('_', ' ')}); the start: mean squared error {before:.4f}" in rows
    assert f"restored: mean squared error {after:.4f}" in rows
    assert (len(rows) == 4) == (corruption == "salt_and_pepper"), "a median filter beside it"


@pytest.mark.slow
def test_super_resolution_starts_from_block_means_and_holds_on_to_them(workdir):
    blocks = {}
    for strength in (0.0, 1.0):
        arrays = sampled(workdir, "super_resolve", sample__strength=strength)
        means = arrays["images"].reshape(16, 4, 2, 4, 2, 1).mean((2, 4))
        np.testing.assert_allclose(arrays["observed"], means, atol=1e-6)
        blocks[strength] = np.square(arrays["restored"].reshape((*means.shape[:2], 2, 4, 2, 1)).mean((2, 4)) - means)
    assert blocks[1.0].mean() < 0.5 * blocks[0.0].mean() + 1e-4


def test_classification_is_by_the_lowest_energy_and_wrong_ones_are_shown_with_both_energies(workdir, capsys, drawn):
    arrays = sampled(workdir, "classify", sample__num_images=10_000, sample__batch_size=100)
    test = memory.digits("test")
    config, params = ebm_jax.load(workdir)
    of_class = energy.class_energies(assemble.make_apply(config), params, 10)
    expected = np.asarray(of_class(jnp.asarray(test.images / 255, jnp.float32)))
    np.testing.assert_array_equal(arrays["labels"], test.labels)
    spread = np.ptp(expected, 1).mean()
    excess = expected[np.arange(359), arrays["predicted"]] - expected.min(1)
    assert excess.max() < 0.01 * spread, "rounding, where another number of images is evaluated at once"
    accuracy = (arrays["predicted"] == test.labels).mean()
    assert f"accuracy {accuracy:.4f} on 359 images" in capsys.readouterr().out
    ((call),) = drawn
    images, true, said = call["args"]
    wrong = np.flatnonzero(arrays["predicted"] != test.labels)
    assert f"{len(wrong)} of 359 images of test classified wrongly" in call["title"]
    np.testing.assert_allclose(images, test.images[wrong[: len(images)]] / 255, atol=1e-6)
    for word, captions, labels in (("true", true, test.labels), ("said", said, arrays["predicted"])):
        assert len(captions) == len(images) > 1
        for row, caption in zip(wrong, captions, strict=False):
            name, energy_of = caption.split(": ")
            assert name == f"{word} {labels[row]}"
            assert float(energy_of) == pytest.approx(expected[row, labels[row]], abs=float(0.01 * spread))


def test_neighbours_are_the_training_images_nearest_to_the_samples_that_generate_writes(workdir):
    arrays = sampled(workdir, "neighbours", sample__neighbours__number=2)
    np.testing.assert_array_equal(arrays["images"], sampled(workdir)["images"])
    train = (memory.digits("train").images / np.float32(255)).reshape(-1, 64)
    distances = np.linalg.norm(arrays["images"].reshape(16, 1, 64) - train, axis=-1)
    np.testing.assert_allclose(arrays["distances"], np.sort(distances, 1)[:, :2], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_sampling_buffer_goes_on_bit_for_bit_and_never_from_zero(workdir, capsys):
    other = {"sample__buffer_capacity": 32, "sample__batch_size": 16}
    once = sampled(workdir, **other, sample__rounds=4)
    checkpoints = workdir / "sampling_buffer_32"
    checkpoints.rename(workdir / "aside")
    capsys.readouterr()
    sampled(workdir, **other, sample__rounds=2)
    assert "32 chains, 0 rounds so far" in capsys.readouterr().out
    twice = sampled(workdir, **other, sample__rounds=2)
    assert "32 chains, 2 rounds so far" in capsys.readouterr().out
    for name in ("images", "labels", "energies"):
        np.testing.assert_array_equal(once[name], twice[name])


@pytest.mark.slow
def test_a_damaged_sampling_buffer_costs_the_last_command_not_the_buffer(workdir, capsys):
    other = {"sample__buffer_capacity": 16, "sample__batch_size": 16, "sample__rounds": 1}
    for _ in range(2):
        sampled(workdir, **other)
    for path in (workdir / "sampling_buffer_16" / "2").glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[:-50])
    capsys.readouterr()
    sampled(workdir, **other)
    captured = capsys.readouterr()
    assert "skipped a damaged sampling buffer, round 2" in captured.err
    assert "16 chains, 1 rounds so far" in captured.out
    assert (workdir / "damaged_sampling_buffer_16" / "2_0").exists()


@pytest.mark.slow
def test_members_share_one_buffer_at_their_mean_or_in_turns(workdir):
    """Two snapshots; a single round of each alone, then both ways together, from buffers of the same noise."""
    words = {"sample__buffer_capacity": 48, "sample__num_images": 48, "sample__batch_size": 48, "sample__rounds": 1}
    ended = {}
    for name, changes in {
        "newest": {},
        "mean": {"sample__snapshots": 2},
        "turns": {"sample__snapshots": 2, "sample__ensemble": "turns"},
    }.items():
        ended[name] = sampled(workdir, **words, **changes)["images"]
        (workdir / "sampling_buffer_48").rename(workdir / f"{name}_aside")
    np.testing.assert_allclose(ended["turns"], ended["newest"], atol=1e-5)  # round 0 is member 0, the newest
    assert np.abs(ended["mean"] - ended["newest"]).max() > 1e-5


def test_a_run_opened_in_research_code_has_the_energies_samples_and_data_of_the_command(workdir):
    of_run = ebm_jax.open_run(str(workdir), mesh=parallel.device_mesh())
    config, params = ebm_jax.load(workdir)
    assert isinstance(of_run, ebm_jax.TrainedRun)
    assert (of_run.config, of_run.step, of_run.folder, of_run.skipped) == (config, 6, workdir, {})
    jax.tree.map(np.testing.assert_array_equal, of_run.params, params)
    found, written = of_run.samples(jax.random.key(config.sample.seed)), sampled(workdir)
    for name, values in found._asdict().items():
        np.testing.assert_array_equal(values, written[name])
    expected = energies(workdir)(found.images, found.labels)
    for values in (
        of_run.energy_of(*found[:2]),
        of_run.energy_fn(jnp.asarray(found.labels))(jnp.asarray(found.images)),
    ):
        np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_array_equal(of_run.data("test").images, memory.digits("test").images)
    with pytest.raises(BadInput, match="label 10 is out of range"):
        of_run.energy_fn(jnp.array([10]))(jnp.zeros((1, 8, 8, 1)))


def test_another_chain_starts_from_the_noise_of_the_samples_and_another_energy_has_the_places(workdir):
    of_run, key = ebm_jax.open_run(workdir), jax.random.key(0)
    config = of_run.config.copy_and_resolve_references().unlock()
    config.sample.num_images, config.sample.batch_size = 10, 4
    of_run = of_run._replace(config=config)
    ends = of_run.chains(key)
    np.testing.assert_allclose(ends, of_run.samples(key).images, atol=1e-5)
    at_places = of_run.chains(
        key,
        lambda key, x, energy_fn, stages: (x, energy_fn(x)),
        energy_of=lambda params, places: lambda x: params * places,
        params=jnp.float32(2.0),
    )
    np.testing.assert_array_equal(at_places[1], 2 * np.arange(10))
    assert 0.2 < at_places[0].std() < 0.4, "uniform noise has 0.29"
    assert len(np.unique(at_places[0].reshape(10, -1), axis=0)) == 10, "every batch has a key of its own"


OWN_TASK = """
import numpy as np
from ebm_jax.tasks.common import Result
from ebm_jax.types import BadInput

class Darkest:
    @staticmethod
    def check(config):
        if config.sample.num_images == 7:
            raise BadInput("sample.num_images 7 is too few for the darkest; use 8")

    @staticmethod
    def run(run, key):
        samples = run.samples(key)
        row = samples.images.sum((1, 2, 3)).argmin()
        draw = lambda path: path.with_suffix(".png").write_bytes(b"a picture")
        return Result({"darkest": samples.images[row]}, draw, f"the darkest of {len(samples.images)}")
"""


@pytest.mark.whole
def test_a_task_of_the_users_own_runs_by_its_import_path(workdir, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    assert run.main(command(workdir, "sample", sample__task="own_task:Darkest")) == 0
    assert "the darkest of 16\n" in capsys.readouterr().out
    written = workdir / "samples" / "own_task-Darkest_000006_0"
    assert written.with_suffix(".png").read_bytes() == b"a picture"
    images = sampled(workdir)["images"]
    np.testing.assert_array_equal(np.load(written.with_suffix(".npz"))["darkest"], min(images, key=lambda x: x.sum()))
    for words, message in {
        ("own_task:Darkest", 7): "sample.num_images 7 is too few for the darkest; use 8",
        (
            "own_task:Result",
            8,
        ): "sample.task 'own_task:Result' has no function check; give an object with check(config)",
        ("own_task:Brightest", 8): "is not in own_task",
        ("no_such_module:Task", 8): "sample.task 'no_such_module:Task' cannot be imported",
    }.items():
        task, number = words
        assert run.main(command(workdir, "sample", sample__task=task, sample__num_images=number)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
def test_one_gradient_of_any_kernel_removes_the_share_strength_of_the_misfit(kernel):
    config = digits.get_config().copy_and_resolve_references().unlock()
    config.chain.kernel, config.chain.step_size, config.sample.strength = kernel, 0.02, 0.25
    x, observed = jnp.full((1, 8, 8, 1), 0.3), jnp.full((1, 8, 8, 1), 0.5)
    weight = likelihood_weight(config)
    energy_fn = observations.gaussian_likelihood(observations.identity, weight=weight, observed=observed)
    at = point(x, energy_fn)
    leap_from_rest = leapfrog(Phase(at, jnp.zeros_like(x)), energy_fn, 0.02, 1).at.x
    moved = leap_from_rest if kernel == "hmc" else x - 0.02 * at.grad
    np.testing.assert_allclose((observed - moved) / (observed - x), 0.75, rtol=1e-5)


def test_a_picture_of_rows_says_in_its_first_line_how_many_of_the_images_it_shows(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(pictures, "write_rows", lambda path, rows, title: titles.append((title, len(rows["a"].images))))
    for number in (12, 13):
        common.rows_of({"a": np.zeros((number, 8, 8, 1)), "b": Row(np.zeros((3, 8, 8, 1)))}, "what\nhow")(tmp_path)
    assert titles == [("what\nhow", 12), ("what; the first 12\nhow", 12)]


BAD = {
    "a label out of range": ({"sample__labels": "3,10"}, "label 10 is out of range; use 0 to 9"),
    "no label": ({"sample__labels": "cat"}, "sample.labels 'cat' is no class; use numbers from 0 to 9"),
    "a vector for a class": ({"sample__labels": "0.5 0.5"}, "has a label of 2 numbers; this model's have 1"),
    "a sum to generate": ({"sample__labels": "1+3"}, "that is sample.task=compose"),
    "one energy to compose": ({"sample__task": "compose", "sample__labels": "1"}, "has one energy only"),
    "labels of no run": (
        {"sample__task": "compose", "sample__labels": "1", "sample__compose__with_labels": "1+2"},
        "has 2 parts for 0 runs",
    ),
    "unknown mask": (
        {"sample__task": "inpaint", "sample__inpaint__mask": "lowr"},
        "sample.inpaint.mask 'lowr' is unknown",
    ),
    "no mask file": (
        {"sample__task": "inpaint", "sample__inpaint__mask": "/no/such.npy"},
        "/no/such.npy cannot be read",
    ),
    "factor": ({"sample__task": "super_resolve", "sample__super_resolve__factor": 3}, "3"),
    "gray images to colourise": ({"sample__task": "colourise"}, "needs images of 3 channels; digits has 1"),
    "turns without a buffer": ({"sample__ensemble": "turns"}, "needs a sampling buffer"),
    "a buffer for a film": ({"sample__task": "film", "sample__buffer_capacity": 64}, "not film; use 0"),
    "a buffer below the images": ({"sample__buffer_capacity": 8}, "sample.buffer_capacity 8 must hold"),
    "too many snapshots": ({"sample__snapshots": 7}, "has 2 valid checkpoints, not 7"),
    "no such run": ({"sample__with_runs": "/no/such"}, "/no/such is not the folder of a run"),
    "unknown task": ({"sample__task": "generat"}, "did you mean generate?"),
    "no strength": ({"sample__strength": 2.0}, "sample.strength 2.0 is out of range"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_touched(workdir, case, capsys):
    changes, expected = BAD[case]
    before = files(workdir)
    assert run.main(command(workdir, "sample", **changes)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert files(workdir) == before


def test_a_mask_of_the_wrong_shape_or_type_is_named(tmp_path):
    config = digits.get_config()
    for mask in (np.ones((8, 7), bool), np.ones((8, 8))):
        np.save(tmp_path / "mask.npy", mask)
        config.sample.inpaint.mask = str(tmp_path / "mask.npy")
        with pytest.raises(BadInput, match=r"it must be bool \(8, 8\)"):
            known_pixels(config)


def test_a_member_of_another_architecture_is_named(workdir, tmp_path, capsys):
    wider, other = read_config(workdir).copy_and_resolve_references(), tmp_path / "wider"
    wider.model.width = 8
    claim(other, wider)
    assert run.main(command(workdir, "sample", sample__with_runs=other)) == 2
    error = capsys.readouterr().err
    assert "cannot be a member of this ensemble: model.width is 8 there and 4 here" in error


def test_labels_are_parsed_as_classes_or_as_vectors():
    config = digits.get_config()
    config.model.num_classes, config.sample.labels = 10, "3, 5+1"
    first, second = parse_labels(config, "sample.labels")
    np.testing.assert_array_equal(first, [3, 5])
    np.testing.assert_array_equal(second, [1])
    config.model.num_classes, config.data.condition, config.sample.labels = 2, "position", "0.5 0.25,1 0"
    np.testing.assert_array_equal(parse_labels(config, "sample.labels")[0], [[0.5, 0.25], [1.0, 0.0]])
    np.testing.assert_array_equal(sample_labels(config, jnp.arange(3)), [[0.5, 0.25], [1, 0], [0.5, 0.25]])


@pytest.mark.parametrize("text", ["3", "dog", "0,3", "1+0", "0.5 0.5"])
def test_a_class_of_a_model_without_classes_is_refused_as_such_also_where_its_data_have_names(text):
    config = changed(digits.get_config(), model__num_classes=1, sample__labels=text)
    with pytest.raises(BadInput, match=f"sample.labels '{re.escape(text)}' asks for a class, .* leave the labels out"):
        sample_labels(numbered(config, ("cat", "dog")), jnp.arange(3))
    for allowed in ("", "0", "0, 0"):
        np.testing.assert_array_equal(sample_labels(changed(config, sample__labels=allowed), jnp.arange(3)), 0)


@pytest.mark.slow
def test_buffered_sampling_from_research_code_moves_all_its_chains(workdir):
    config, params = ebm_jax.load(workdir)
    config = config.copy_and_resolve_references().unlock()
    config.sample.buffer_capacity, config.sample.restart_prob, config.sample.relabel_prob = 8, 0.0, 0.0
    buffer = ebm_jax.init_sampling_buffer(config, jax.random.key(0))
    sample_fn = jax.jit(ebm_jax.make_buffered_sample_fn(config))
    images, labels, after = sample_fn(params, jax.random.key(1), buffer, jnp.arange(8))
    assert after.rounds == 1
    assert sorted(labels.tolist()) == list(range(8))
    u = energies(workdir)
    assert u(images, labels).mean() < u(replay.as_images(buffer.chains.images, (8, 8, 1)), labels).mean()
