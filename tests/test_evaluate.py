"""Evaluating a run: what an evaluator is given is the run's own data and samples, and says where they are from."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_train import command, files

import run
from ebm_jax import assemble, checks, evaluators, trained
from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import card
from ebm_jax.evaluators.common import Outcome, Subject, Value, sha256
from ebm_jax.storage.workdir import read_config
from ebm_jax.types import BadInput


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    learn = {"loss__label_weight": 1.0, "buffer__relabel_prob": 0.5, "optim__learning_rate": 0.01}  # as test_tasks.py:
    assert run.main(command(folder, model__num_classes=10, optim__ema_decay=0.0, **learn)) == 0  # compiled once
    return folder


def subject(workdir, **changes):
    config, mesh = read_config(workdir).copy_and_resolve_references().unlock(), parallel.device_mesh()
    config.eval.num_samples, config.eval.batch_size = 20, 16
    for key, value in changes.items():
        group, name = key.split("__")
        setattr(config[group], name, value)
    checks.check_evaluation(config, mesh.size)
    found = trained.restore_ensemble(workdir, config, mesh)
    return Subject(config, found.params, mesh, found.step, workdir)


def test_the_data_are_the_runs_own_with_their_labels_whatever_the_model_is_conditioned_on(workdir):
    for num_classes in (10, 1):
        of_run = subject(workdir)
        of_run.config.model.num_classes = num_classes
        for split in ("train", "test"):
            found, expected = of_run.data(split), memory.digits(split)
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.labels, expected.labels)
            assert of_run.data(split) is found
            assert sha256(expected.images) in of_run.described(split)


def test_members_from_other_runs_lie_on_all_devices_as_the_runs_own_do(workdir):
    alone, both = (jax.tree.leaves(subject(workdir, sample__with_runs=runs).params) for runs in ("", str(workdir)))
    for one, pair in zip(alone, both, strict=True):
        assert len(pair.sharding.device_set) == 8
        np.testing.assert_array_equal(pair, np.stack([one, one]))


def test_the_hash_of_a_set_changes_with_one_pixel_and_with_the_shape():
    images = memory.digits("test").images
    changed = images.copy()
    changed[7, 3, 3, 0] ^= 1
    hashes = {sha256(images), sha256(changed), sha256(images.reshape(-1)), sha256(images[::-1])}
    assert len(hashes) == 4
    assert sha256(images[::-1][::-1]) == sha256(images)


@pytest.mark.slow
def test_fresh_samples_are_chains_of_the_sampling_steps_whatever_the_size_of_a_batch(workdir):
    of_run = subject(workdir)
    images, labels, origin = of_run.samples
    assert origin == "fresh chains of 3 steps of langevin from uniform noise, the last 1 without noise"
    assert images.shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20, "every batch has a key of its own"
    noise = np.random.default_rng(0).uniform(size=images.shape).astype(np.float32)
    energy_fn = of_run.energy_fn(jnp.asarray(labels))
    assert energy_fn(jnp.asarray(images)).mean() < energy_fn(jnp.asarray(noise)).mean()
    np.testing.assert_array_equal(subject(workdir).samples.images, images)
    assert (subject(workdir, eval__seed=1).samples.images != images).any()


def test_samples_of_the_buffer_are_its_decoded_chains_with_their_labels_and_say_so(workdir):
    images, labels, origin = subject(workdir, eval__samples="buffer").samples
    assert origin.startswith("THE TRAINING BUFFER, not fresh chains: 20 of its 64 chains")
    config, mesh = read_config(workdir), parallel.device_mesh()
    buffer = trained.restore(workdir, assemble.abstract_state(config, mesh)).state.memory
    chains = np.asarray(buffer.images)[:, :64].reshape(64, 8, 8, 1)
    rows = [np.flatnonzero((chains == image).all((1, 2, 3))) for image in images]
    assert all(len(found) == 1 for found in rows)
    assert len({int(found[0]) for found in rows}) == 20
    np.testing.assert_array_equal(labels, np.asarray(buffer.labels)[np.concatenate(rows)])


@pytest.mark.slow
def test_samples_by_turns_are_of_one_member_a_round_and_say_so(workdir):
    """Two snapshots; a buffer that a round moves whole, so that a chain's rounds are known."""
    buffered = {"sample__buffer_capacity": 24, "sample__restart_prob": 0.0, "eval__batch_size": 24}

    def drawn(**changes):
        return subject(workdir, eval__num_samples=24, **buffered, **changes).samples

    turns = {"sample__snapshots": 2, "sample__ensemble": "turns"}
    newest, first, second = drawn(sample__rounds=1), drawn(sample__rounds=1, **turns), drawn(sample__rounds=2, **turns)
    mean, twice = drawn(sample__rounds=1, sample__snapshots=2), drawn(sample__rounds=2)
    np.testing.assert_allclose(first.images, newest.images, atol=1e-5)  # round 0 is member 0, the newest
    np.testing.assert_array_equal(first.labels, newest.labels)
    assert np.abs(mean.images - newest.images).max() > 1e-5
    assert np.abs(second.images - twice.images).max() > 1e-5, "round 1 is the older member's"
    assert (
        "2 rounds, each of 24 of them and 3 steps of langevin under the energy of one member, by turns" in second.origin
    )
    assert second.origin.endswith("2.0 on average, 2 at least")
    assert "under the energy, the last 1 without noise" in twice.origin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval__samples": "buffer", "eval__num_samples": 65},
            "more than the 64 chains of the training buffer; use at",
        ),
        ({"sample__ensemble": "turns"}, "sample.ensemble turns needs a sampling buffer; set sample.buffer_capacity"),
        ({"sample__buffer_capacity": 16}, "16 must hold eval.num_samples 20 and be divisible by 8 devices; use 24"),
        (
            {"sample__buffer_capacity": 64, "eval__samples": "buffer"},
            "eval.samples buffer judges the training buffer, and sample.buffer_capacity 64 asks for a sampling buffer",
        ),
        ({"sample__labels": "10"}, "label 10 is out of range"),
        ({"data__source": "density"}, "is a 2-D density"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_with_the_cure(workdir, changes, message):
    with pytest.raises(BadInput, match=message):
        subject(workdir, **changes)


def test_a_function_of_energies_is_mapped_over_any_number_of_images(workdir):
    of_run, images = subject(workdir, eval__batch_size=13), memory.digits("test").images[:37].astype(np.float32) / 255
    labels = np.arange(37, dtype=np.int32) % 10
    found = of_run.map(lambda energy_of, x, y: {"u": energy_of(x, y), "first": x[:, 0, 0, 0]}, images, labels)
    expected = of_run.energy_fn(jnp.asarray(labels))(jnp.asarray(images))
    np.testing.assert_allclose(found["u"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["first"], images[:, 0, 0, 0])


def mean_of_samples(of_run):
    """An evaluator whose number is known."""
    images = of_run.samples.images
    values = {
        "mean": Value(float(images.mean()), 0.0123),
        "row / column": Value(math.inf),
        "row / other": Value(2.0, 0),
    }
    return Outcome(values, {"of": "all pixels"}, {"grid": lambda path: Image.new("L", (60, 60)).save(path)})


def of_the_data(of_run):
    return Outcome({"n": Value(len(of_run.data("test").images))}, {}, {})


def refuse(of_run):
    raise BadInput("the moon is full; wait")


@pytest.fixture
def known_evaluators(monkeypatch):
    known = {"mean": mean_of_samples, "data": of_the_data, "refuse": refuse}
    monkeypatch.setattr("ebm_jax.evaluate.EVALUATORS", known)  # imports it, before its source is another
    monkeypatch.setattr(evaluators, "EVALUATORS", known)


def evaluated(workdir, capsys, metrics, status=0, **changes):
    """(the new folder, what was printed) of the command."""
    before = set((workdir / "evaluation").glob("*"))
    words = {"eval__metrics": metrics, "eval__num_samples": 20, "eval__batch_size": 16} | changes
    capsys.readouterr()
    assert run.main(command(workdir, "evaluate", **words)) == status
    (folder,) = set((workdir / "evaluation").glob("*")) - before
    return folder, capsys.readouterr()


def test_json_card_and_table_have_the_numbers_and_how_they_came_about(workdir, capsys, known_evaluators):
    earlier, _ = evaluated(workdir, capsys, "data")
    kept = files(earlier)
    folder, printed = evaluated(workdir, capsys, "mean,data,mean", sample__weights="raw")
    assert folder.name == "000006_1"
    assert files(earlier) == kept
    content, text = json.loads((folder / "evaluation.json").read_text()), (folder / "card.md").read_text()
    mean = content["metrics"]["mean"]
    expected = subject(workdir, sample__weights="raw").samples.images.mean()
    assert abs(mean["values"]["mean"]["value"] - expected) < 1e-5
    assert mean["values"]["mean"]["standard_error"] == 0.0123
    assert mean["values"]["row / column"]["value"] == "inf"
    assert mean["pictures"] == ["mean_grid.png"]
    assert Image.open(folder / "mean_grid.png").size == (60, 60)
    assert set(content["metrics"]["data"]["protocol"]) == {"split test"}, "samples played no part"
    assert content["protocol"]["checkpoint"] == "step 6, raw weights of the last step, one model"
    assert "--config.sample.weights=raw" in content["protocol"]["command"]
    facts = ["20, fresh chains of 3 steps", "last 1 without noise", sha256(memory.digits("test").images), "raw weights"]
    facts += [content["protocol"]["versions"], content["protocol"]["code"], f"| mean | {expected:.3f} | 0.012 |"]
    for fact in [*facts, "| row | inf | 2 ± 0 |", "![grid](mean_grid.png)", "all pixels", "**seed**: 0", "**time**"]:
        assert fact in text, fact
    assert f"{expected:.3f}" in printed.out
    assert "BUFFER" not in text + printed.out + json.dumps(content)


def test_evaluating_the_buffer_is_labelled_so_in_json_card_and_table(workdir, capsys, known_evaluators):
    folder, printed = evaluated(workdir, capsys, "mean,data", eval__samples="buffer")
    content = json.loads((folder / "evaluation.json").read_text())
    assert "THE TRAINING BUFFER, not fresh chains" in content["metrics"]["mean"]["protocol"]["samples"]
    text = (folder / "card.md").read_text()
    assert "## mean (TRAINING BUFFER, not fresh chains)" in text
    assert "## data\n" in text
    assert "mean (TRAINING BUFFER, not fresh chains)" in printed.out


def test_a_metric_that_fails_costs_no_other_and_the_status_says_so(workdir, capsys, known_evaluators):
    folder, printed = evaluated(workdir, capsys, "mean,refuse,data", status=2)
    content = json.loads((folder / "evaluation.json").read_text())
    assert set(content["metrics"]) == {"mean", "data"}
    assert content["failed"] == {"refuse": "the moon is full; wait"}
    assert "## Not measured" in (folder / "card.md").read_text()
    last = printed.err.splitlines()[-1]
    assert last.startswith("run.py: refuse could not be measured: the moon is full; wait; all else is in ")


def test_an_interrupt_keeps_what_was_measured_before(workdir, capsys, known_evaluators, monkeypatch):
    def interrupt(of_run):
        raise KeyboardInterrupt

    monkeypatch.setitem(evaluators.EVALUATORS, "refuse", interrupt)
    before = set((workdir / "evaluation").glob("*"))
    with pytest.raises(KeyboardInterrupt):
        run.main(command(workdir, "evaluate", eval__metrics="data,refuse"))
    (folder,) = set((workdir / "evaluation").glob("*")) - before
    assert set(json.loads((folder / "evaluation.json").read_text())["metrics"]) == {"data"}


BAD = {
    "an unknown metric": ({"eval__metrics": "odo"}, "eval.metrics 'odo' is unknown; use one of"),
    "no metric": ({"eval__metrics": ","}, "eval.metrics ',' names none"),
    "an unknown split": ({"eval__split": "tset"}, "use one of train, test"),
    "an unknown reference": ({"eval__reference_split": "tset"}, "use one of train, test"),
    "samples of the moon": ({"eval__samples": "moon"}, "eval.samples 'moon' is unknown; use one of fresh, buffer"),
    "turns from noise": ({"sample__ensemble": "turns"}, "sample.ensemble turns needs a sampling buffer"),
    "another run": ({"chain__num_steps": 7}, "only --config.sample and --config.eval keys may change"),
    "too many samples": ({"eval__num_samples": 10**8}, "at most 10,000,000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_touched(workdir, case, capsys):
    changes, expected = BAD[case]
    before = files(workdir)
    assert run.main(command(workdir, "evaluate", **changes)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert files(workdir) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Value(0.123456, 0.0123), ("0.123", "0.012")),
        (Value(123.456, 12.3), ("123", "12")),
        (Value(1.0, 0.0), ("1", "0")),
        (Value(0.123456), ("0.1235", "")),
        (Value(60_000), ("60,000", "")),
        (Value(math.nan, 0.1), ("nan", "0.1")),
    ],
)
def test_a_number_is_shown_to_the_second_digit_of_its_standard_error(value, expected):
    assert card.shown(value) == expected
