"""`eval.during`: looks at the classifier distance of a run that trains change nothing, and choose its best state."""

import json

import jax
import numpy as np
import pytest
from conftest import changed
from test_configs import config_of
from test_train import bits, command, final_state, rows

import run
from ebm_jax import opening, program, schema, train, trained
from ebm_jax.assemble import init_params
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import during, samples
from ebm_jax.pixels import quantised
from ebm_jax.report import reporter
from ebm_jax.storage import checkpoint
from ebm_jax.storage.workdir import read_config
from ebm_jax.types import BadInput

QUICK = {"eval__during_samples": 140, "eval__classifier_distance__steps": 2, "eval__splits": 2}


def evaluations(workdir):
    return [json.loads(line) for line in (workdir / reporter.EVALUATION).read_text().splitlines()]


@pytest.mark.whole
def test_a_run_with_looks_has_the_same_bits_goes_on_and_keeps_the_best_state(tmp_path, capsys):
    plain, looked, resumed = (tmp_path / name for name in ("plain", "looked", "resumed"))
    assert run.main(command(plain)) == 0
    assert run.main(command(looked, eval__during=2, **QUICK)) == 0
    said = capsys.readouterr().out
    assert run.main(command(resumed, train__num_steps=3, eval__during=2, **QUICK)) == 0
    assert [row["step"] for row in evaluations(resumed)] == [2, 3]
    assert run.main(command(resumed, eval__during=2, **QUICK)) == 0
    for workdir in (looked, resumed):
        for a, b in zip(bits(final_state(plain).state), bits(final_state(workdir).state), strict=True):
            np.testing.assert_array_equal(a, b)
        assert [row["loss"] for row in rows(workdir)] == [row["loss"] for row in rows(plain)]
    assert not (plain / reporter.EVALUATION).exists()
    assert not (plain / checkpoint.BEST).exists()
    found = evaluations(looked)
    assert [row["step"] for row in found] == [2, 4, 6]
    assert found == [row for row in evaluations(resumed) if row["step"] != 3]
    assert found[0].keys() == {"step"} | {
        f"{name}{error}" for name in ("classifier_distance", "classifier_score") for error in ("", "_error")
    } | {"class_coverage"}
    told = [line for line in said.splitlines() if line.startswith("step ") and "fresh samples" in line]
    assert len(told) == 3, "one a look; a slow phase has lines of its own"
    for workdir in (looked, resumed):
        best = min(evaluations(workdir), key=lambda row: row[during.DISTANCE])["step"]
        assert opening.open_run(workdir).step == 6
        config = changed(read_config(workdir), sample__checkpoint="best")
        assert opening.open_run(workdir, config).step == best
    with pytest.raises(BadInput, match=r"^.*plain has no best checkpoint; train with eval.during=500, or .*$"):
        opening.open_run(plain, changed(read_config(plain), sample__checkpoint="best"))


def of_digits(**changes):
    values = (
        {
            "model__width": 4,
            "sample__num_steps": 2,
            "sample__quiet_steps": 1,
            "eval__batch_size": 64,
            "data__source": "sklearn",
        }
        | QUICK
        | changes
    )
    return changed(schema.dry_run(config_of("digits_contrastive")), **values)


@pytest.mark.whole
def test_a_report_is_a_function_of_the_weights_on_samples_that_no_final_number_uses(tmp_path, monkeypatch):
    config, seen = of_digits(model__num_classes=10), []
    monkeypatch.setattr(during, "quantised", lambda images: seen.append(images) or quantised(images))
    report_of = during.make_reporter(config, parallel.device_mesh(), tmp_path)
    weights = [init_params(config, jax.random.key(seed)) for seed in (0, 1)]
    first, other, again = (report_of(weights[which]) for which in (0, 1, 0))
    assert first == again
    assert first != other
    assert 0 <= first["agreement"] <= 1
    assert first["agreement_error"] == pytest.approx((first["agreement"] * (1 - first["agreement"]) / 140) ** 0.5)
    assert seen[0].shape == (140, 8, 8, 1)
    of_run = trained.TrainedRun(
        changed(config, eval__num_samples=140), weights[0], parallel.device_mesh(), 0, tmp_path, {}
    )
    final = samples.draw(of_run, lambda words: None)
    assert not any((one == final.images).all((1, 2, 3)).any() for one in seen[0]), "other chains than a final number's"


def test_the_smallest_number_so_far_forgets_the_steps_that_a_rescue_leaves_behind(tmp_path, capsys):
    with reporter.Reporter(tmp_path, 0, 9) as watcher:
        assert watcher.smallest("distance") == np.inf
        for step, number in ((2, 8.0), (4, 5.0), (6, 7.0)):
            watcher.evaluation(step, {"distance": number}, f"distance {number}")
        assert watcher.smallest("distance") == 5.0
        watcher.go_back(3)
        assert watcher.smallest("distance") == 8.0
    assert "step 4: distance 5.0" in capsys.readouterr().out


def test_the_best_state_replaces_the_one_before_also_at_an_earlier_step(tmp_path):
    state, warnings = {"a": jax.numpy.arange(3.0)}, []
    for step in (4, 6, 5):  # a rescue went back to step 4 or before
        checkpoint.keep_best(tmp_path, step, {"a": state["a"] + step}, warnings.append)
    with checkpoint.open_manager(tmp_path, directory=checkpoint.BEST) as manager:
        assert manager.all_steps() == [5]
        found = checkpoint.restore_newest(manager, state)
    np.testing.assert_array_equal(found.state["a"], state["a"] + 5)
    assert (tmp_path / "rolled_back_best" / "6_0").is_dir(), "nothing is lost"
    assert warnings == []


def test_a_look_that_fails_costs_the_run_nothing_but_a_warning(tmp_path, monkeypatch, capsys):
    def fails(params):
        raise BadInput("features are not finite")

    monkeypatch.setattr(during, "make_reporter", lambda config, mesh, folder: fails)
    config, mesh = of_digits(eval__during=5), parallel.device_mesh(jax.devices()[:1])
    with reporter.Reporter(tmp_path, 0, 9) as watcher:
        train._evaluation(config, mesh, tmp_path, watcher)(5, program.make_state(config, mesh))
    assert capsys.readouterr().err == "step 5 is not judged: features are not finite\n"
    assert not (tmp_path / reporter.EVALUATION).exists()
    assert not (tmp_path / checkpoint.BEST).exists()


def test_a_best_state_that_cannot_be_kept_costs_a_warning(tmp_path):
    (tmp_path / checkpoint.BEST).write_text("mine")
    warnings = []
    checkpoint.keep_best(tmp_path, 4, {"a": jax.numpy.arange(3.0)}, warnings.append)
    assert [
        line.endswith("cannot be opened (it is a file); move it away, or use another --workdir") for line in warnings
    ] == [True]
    assert (tmp_path / checkpoint.BEST).read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"eval__during_samples": 128}, r"^eval.during_samples 128 are too few for eval.during, .* 129; .*$"),
        ({"eval__splits": 141}, r"^eval.splits 141 is too many for eval.during_samples 140; use at most 140$"),
        ({"data__source": "density"}, r"^eval.during 5 judges images, and .* is a 2-D density.* use eval.during=0$"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line_and_without_looks_nothing_is(changes, line):
    with pytest.raises(BadInput, match=line):
        during.check(of_digits(eval__during=5, **changes))
    during.check(of_digits(**changes))
