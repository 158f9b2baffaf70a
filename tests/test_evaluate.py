"""Evaluating a run: an evaluator gets the run's own data and samples, described with where they come from."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from PIL import Image
from test_trackers import events
from test_train import command, files

import run
from ebm_jax import assemble, evaluate, evaluators, identity, opening, program, schema, trained
from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import card, samples
from ebm_jax.evaluators.common import Evaluator, Outcome, Value, described, sha256, unchecked
from ebm_jax.report import trackers
from ebm_jax.storage.workdir import read_config
from ebm_jax.types import BadInput


def opened(workdir, **changes):
    """The run with other values in the groups `sample` and `eval`, and the checks that the verb makes of them."""
    mesh = parallel.device_mesh()
    config = changed(read_config(workdir), **{"eval__num_samples": 20, "eval__batch_size": 16} | changes)
    evaluators.check(config, mesh.size)
    return opening.open_run(workdir, config, mesh)


def drawn(of_run):
    """The samples that the run's evaluation judges."""
    return samples.draw(of_run, lambda words: None)


def test_the_data_are_the_runs_own_with_their_labels_whatever_the_model_is_conditioned_on(workdir):
    for num_classes in (10, 1):
        of_run = opened(workdir)
        of_run.config.model.num_classes = num_classes
        for split in ("train", "test"):
            found, expected = of_run.data(split), memory.digits(split)
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.labels, expected.labels)
            assert sha256(expected.images) in described(of_run.config, split, found.images)


def test_members_from_other_runs_lie_on_all_devices_as_the_runs_own_do(workdir):
    alone, both = (jax.tree.leaves(opened(workdir, sample__with_runs=runs).params) for runs in ("", str(workdir)))
    for one, pair in zip(alone, both, strict=True):
        assert len(pair.sharding.device_set) == 2
        np.testing.assert_array_equal(pair, np.stack([one, one]))


def test_samples_of_chains_without_any_noise_are_not_said_to_end_without_it():
    for changes, end in {
        (): "from uniform noise, the last 100 without noise",
        (("sample.quiet_steps", 0),): "from uniform noise",
        (("chain.kernel", "descent"),): "of descent from uniform noise",
    }.items():
        config = schema.with_values(schema.default_config(), dict(changes))
        assert samples.fresh_origin(config).endswith(end)


def test_the_hash_of_a_set_changes_with_one_pixel_and_with_the_shape():
    images = memory.digits("test").images
    changed = images.copy()
    changed[7, 3, 3, 0] ^= 1
    hashes = {sha256(images), sha256(changed), sha256(images.reshape(-1)), sha256(images[::-1])}
    assert len(hashes) == 4
    assert sha256(images[::-1][::-1]) == sha256(images)


@pytest.mark.slow
def test_fresh_samples_are_chains_of_the_sampling_steps_whatever_the_size_of_a_batch(workdir):
    of_run = opened(workdir)
    images, labels, origin = drawn(of_run)
    assert origin == "fresh chains of 3 steps of langevin from uniform noise, the last 1 without noise"
    assert images.shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20, "every batch has a key of its own"
    noise = np.random.default_rng(0).uniform(size=images.shape).astype(np.float32)
    energy_fn = of_run.energy_fn(jnp.asarray(labels))
    assert energy_fn(jnp.asarray(images)).mean() < energy_fn(jnp.asarray(noise)).mean()
    np.testing.assert_array_equal(drawn(opened(workdir)).images, images)
    assert (drawn(opened(workdir, eval__seed=1)).images != images).any()


def test_samples_of_the_buffer_are_its_decoded_chains_with_their_labels_and_say_so(workdir):
    images, labels, origin = drawn(opened(workdir, eval__samples="buffer"))
    assert origin.startswith("THE TRAINING BUFFER, not fresh chains: 20 of its 64 chains")
    config, mesh = read_config(workdir), parallel.device_mesh()
    memory = opening.restore(workdir, program.abstract_state(config, mesh)).state.memory
    buffer = assemble.make_method(config).chains(memory)
    chains = np.asarray(buffer.images)[:, :64].reshape(64, 8, 8, 1)
    rows = [np.flatnonzero((chains == image).all((1, 2, 3))) for image in images]
    assert all(len(found) == 1 for found in rows)
    assert len({int(found[0]) for found in rows}) == 20
    np.testing.assert_array_equal(labels, np.asarray(buffer.labels)[np.concatenate(rows)])


@pytest.mark.slow
def test_samples_by_turns_are_of_one_member_a_round_and_say_so(workdir):
    """Two snapshots. A round moves the whole buffer, so the number of rounds of every chain is known."""
    buffered = {"sample__buffer_capacity": 24, "sample__restart_prob": 0.0, "eval__batch_size": 24}

    def judged(**changes):
        return drawn(opened(workdir, eval__num_samples=24, **buffered, **changes))

    turns = {"sample__snapshots": 2, "sample__ensemble": "turns"}
    newest, first = judged(sample__rounds=1), judged(sample__rounds=1, **turns)
    second = judged(sample__rounds=2, **turns)
    mean, twice = judged(sample__rounds=1, sample__snapshots=2), judged(sample__rounds=2)
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
        ({"sample__buffer_capacity": 16}, "16 must hold eval.num_samples 20 and be divisible by 2 devices; use 20"),
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
        opened(workdir, **changes)


def test_a_function_of_energies_is_mapped_over_any_number_of_images(workdir):
    of_run, images = opened(workdir), memory.digits("test").images[:37].astype(np.float32) / 255
    labels = np.arange(37, dtype=np.int32) % 10
    found = of_run.map(
        lambda energy_of, x, y: {"u": energy_of(x, y), "first": x[:, 0, 0, 0]}, images, labels, batch_size=13
    )
    expected = of_run.energy_fn(jnp.asarray(labels))(jnp.asarray(images))
    np.testing.assert_allclose(found["u"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["first"], images[:, 0, 0, 0])


def mean_of_samples(of_run, evidence):
    """A measurement with a known number."""
    images = evidence.samples.images
    values = {
        "mean": Value(float(images.mean()), 0.0123),
        "row / column": Value(math.inf),
        "row / other": Value(2.0, 0),
    }
    return Outcome(values, {"of": "all pixels"}, {"grid": lambda path: Image.new("L", (60, 60)).save(path)})


def of_the_data(of_run, evidence):
    return Outcome({"n": Value(len(evidence.data["eval.split"].images))}, {}, {})


def refuse(of_run, evidence):
    raise BadInput("the moon is full; wait")


@pytest.fixture
def known_evaluators(monkeypatch):
    known = {
        "mean": Evaluator(unchecked, mean_of_samples, ("samples",)),
        "data": Evaluator(unchecked, of_the_data, ("eval.split",)),
        "refuse": Evaluator(unchecked, refuse, ()),
    }
    monkeypatch.setattr(evaluators, "EVALUATORS", known)


def evaluated(workdir, capsys, metrics, status=0, **changes):
    """(the new folder, what was printed) of the command."""
    before = set((workdir / "evaluation").glob("*_*"))
    words = {"eval__metrics": metrics, "eval__num_samples": 20, "eval__batch_size": 16} | changes
    capsys.readouterr()
    assert run.main(command(workdir, "evaluate", **words)) == status
    (folder,) = set((workdir / "evaluation").glob("*_*")) - before
    return folder, capsys.readouterr()


def test_json_card_and_table_have_the_numbers_and_how_they_came_about(workdir, capsys, known_evaluators):
    earlier, told = evaluated(workdir, capsys, "data")
    assert f"wrote {earlier / 'card.md'} and {earlier / 'evaluation.json'}\n" in told.out
    kept = files(earlier)
    folder, printed = evaluated(workdir, capsys, "mean,data,mean", sample__weights="raw")
    assert folder.name == "000006_1"
    assert files(earlier) == kept
    content, text = json.loads((folder / "evaluation.json").read_text()), (folder / "card.md").read_text()
    mean = content["metrics"]["mean"]
    expected = drawn(opened(workdir, sample__weights="raw")).images.mean()
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
    for name in ("card.md", "evaluation.json", "mean_grid.png"):
        assert str(folder / name) in printed.out
    assert "BUFFER" not in text + printed.out + json.dumps(content)


def test_tensorboard_gets_an_evaluation_at_its_step_beside_the_run_with_its_pictures_and_its_card(
    workdir, capsys, known_evaluators, tmp_path
):
    of_the_run = sorted(workdir.glob("events*"))
    before = set((workdir / "evaluation").glob("events*"))
    folder, printed = evaluated(workdir, capsys, "mean,refuse,data", status=2)
    (path,) = set((workdir / "evaluation").glob("events*")) - before
    shutil.copy(path, tmp_path)
    found = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    told = ("mean/mean", "mean/row/other", "data/n", "mean/grid", "card/text_summary")
    assert set(found) == {f"evaluation/{name}" for name in told}, "an infinite number cannot be drawn"
    assert {step for step, _ in found.values()} == {6}
    assert found["evaluation/data/n"][1].simple_value == len(memory.digits("test").images)
    assert found["evaluation/mean/grid"][1].image.width == 60
    assert found["evaluation/card/text_summary"][1].tensor.string_val[0].decode() == (folder / "card.md").read_text()
    assert "told tensorboard: evaluation/METRIC/NUMBER at step 6\n" in printed.out
    assert sorted(workdir.glob("events*")) == of_the_run, "whose steps cannot go back"


def test_a_tracker_that_cannot_be_told_costs_a_line_and_no_evaluation(workdir, capsys, known_evaluators, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers, "Events", full)
    folder, printed = evaluated(workdir, capsys, "data")
    assert (folder / "card.md").exists()
    assert printed.err.splitlines() == [
        "tensorboard is not told this evaluation (OSError: No space left on device); all else is written"
    ]


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
    def interrupt(of_run, evidence):
        raise KeyboardInterrupt

    monkeypatch.setitem(evaluators.EVALUATORS, "refuse", Evaluator(unchecked, interrupt, ()))
    before = set((workdir / "evaluation").glob("*_*"))
    with pytest.raises(KeyboardInterrupt):
        run.main(command(workdir, "evaluate", eval__metrics="data,refuse"))
    (folder,) = set((workdir / "evaluation").glob("*_*")) - before
    assert set(json.loads((folder / "evaluation.json").read_text())["metrics"]) == {"data"}


class Counted:
    """A function of the package that notes each call with the split of its config."""

    def __init__(self, monkeypatch, module, name):
        self.calls, self.fn = [], getattr(module, name)
        monkeypatch.setattr(module, name, self)

    def __call__(self, first, *rest):
        config = getattr(first, "config", first)
        self.calls.append(config.data.split)
        return self.fn(first, *rest)


def test_what_no_metric_needs_is_neither_sampled_nor_read_and_what_two_need_is_made_once(
    workdir, capsys, known_evaluators, monkeypatch
):
    sampled = Counted(monkeypatch, samples, "draw")
    read = Counted(monkeypatch, trained.sources, "load_dataset")
    evaluated(workdir, capsys, "data")
    assert (sampled.calls, read.calls) == ([], ["test"])
    both = Evaluator(unchecked, mean_of_samples, ("samples", "eval.split", "eval.reference_split"))
    monkeypatch.setitem(evaluators.EVALUATORS, "both", both)
    folder, _ = evaluated(workdir, capsys, "mean,both,data,mean")
    assert len(sampled.calls) == 1
    assert read.calls == ["test", "test", "train"]
    said = {
        name: set(of["protocol"])
        for name, of in json.loads((folder / "evaluation.json").read_text())["metrics"].items()
    }
    assert said["mean"] == {"samples", "of"}
    assert said["both"] == {"samples", "split test", "split train", "of"}


def test_a_metric_that_did_not_say_that_it_needs_samples_is_told_to(workdir, capsys, known_evaluators, monkeypatch):
    monkeypatch.setitem(evaluators.EVALUATORS, "mean", Evaluator(unchecked, mean_of_samples, ()))
    _, printed = evaluated(workdir, capsys, "mean", status=2)
    assert "add 'samples' to the needs of its Evaluator" in printed.err


def test_a_measurement_that_metrics_share_is_made_once_and_again_where_it_failed(workdir):
    tries = []

    def share(of_run, evidence):
        tries.append(len(evidence.data))
        if len(tries) == 1:
            raise BadInput("not now")
        return "shared"

    one, other = (Evaluator(unchecked, measure, ("eval.split",), share) for measure in (of_the_data, refuse))
    of_run, made = opened(workdir), {}
    with pytest.raises(BadInput, match="not now"):
        evaluate.gathered(of_run, one, one.needs, made)
    found = [evaluate.gathered(of_run, evaluator, evaluator.needs, made) for evaluator in (one, other)]
    assert [evidence.shared for evidence in found] == ["shared", "shared"]
    assert tries == [1, 1]
    assert found[0].data["eval.split"] is found[1].data["eval.split"]


OWN_METRIC = """
from ebm_jax.evaluators.common import Evaluator, Outcome, Value, unchecked
from ebm_jax.types import BadInput

def check(config):
    if config.eval.num_samples == 21:
        raise BadInput("eval.num_samples 21 is out of range for brightness; use another")

def measure(run, evidence):
    draw = lambda path: path.write_bytes(b"a picture")
    values = {"brightness": Value(float(evidence.data["eval.split"].images.mean()))}
    return Outcome(values, {}, {"mine": draw})

BRIGHTNESS = Evaluator(check, measure, ("eval.split",))
MISTAKEN = Evaluator(unchecked, measure, ("test",))
"""


@pytest.mark.whole
def test_a_metric_of_the_users_own_is_measured_by_its_import_path(workdir, capsys, tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(OWN_METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_metric:BRIGHTNESS"
    folder, _ = evaluated(workdir, capsys, f"chains,{name}", eval__chains__number=8, eval__chains__steps=16)
    content = json.loads((folder / "evaluation.json").read_text())
    assert set(content["metrics"]) == {"chains", name}
    assert content["metrics"][name]["values"]["brightness"]["value"] == memory.digits("test").images.mean()
    assert set(content["metrics"][name]["protocol"]) == {"split test"}
    assert content["metrics"][name]["pictures"] == ["own_metric-BRIGHTNESS_mine.png"]
    assert (folder / "own_metric-BRIGHTNESS_mine.png").read_bytes() == b"a picture"
    for words, message in {
        "own_metric:BRIGHTNES": "is not in own_metric",
        "own_metric:check": "is function; give an ebm_jax.evaluators.common.Evaluator",
        "own_metric:MISTAKEN": "needs 'test', which is neither samples nor the key of a split",
        name: "eval.num_samples 21 is out of range for brightness",
    }.items():
        assert run.main(command(workdir, "evaluate", eval__metrics=words, eval__num_samples=21)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


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


def test_a_metric_of_classes_is_refused_for_data_without_them_before_anything_is_sampled(workdir, capsys, monkeypatch):
    found, before = identity.source_of, files(workdir)
    monkeypatch.setattr(identity, "source_of", lambda *which: found(*which)._replace(num_classes=1))
    monkeypatch.setattr(samples, "draw", None)  # it is not called
    changes = {"eval__metrics": "ood,drift", "eval__drift__steps": "2", "eval__num_samples": 200}
    assert run.main(command(workdir, "evaluate", **changes)) == 2
    error = capsys.readouterr().err
    assert "drift needs images of classes, and those of digits have none; leave it out of eval.metrics" in error
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
    assert card.shown(*value) == expected
