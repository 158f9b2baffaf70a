"""What trackers get of a run: groups, descriptions, pictures, each point once; read back from what they wrote."""

import contextlib
import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import run
from ebm_jax.report import scalars, trackers
from ebm_jax.report.reporter import SHOWN, Reporter
from ebm_jax.types import BadInput

METRICS = {"energy_data": 0.1, "loss": 2.0, "chain_movement": 0.3, "own_of_mine": 1.0, "loss_1": 3.0}


def installed(name):
    found = importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not found, reason=f"needs {name}: requirements-{name}.txt")


def events(folder):
    """All TensorBoard events of a folder in the order of writing, purged as TensorBoard purges them."""
    kept = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            body = data[at + 12 : at + 12 + length]
            assert int.from_bytes(data[at + 12 + length : at + 16 + length], "little") == masked_crc32c(body)
            event, at = Event.FromString(body), at + 16 + length
            if event.HasField("session_log"):  # a start: later steps of before are void
                kept = [one for one in kept if one.step < event.step]
            kept.append(event)
    return kept


def points(folder):
    """(tag, step, value) of each scalar, and description by tag."""
    found, words = [], {}
    for event in events(folder):
        for value in event.summary.value:
            words[value.tag] = value.metadata.summary_description
            if value.HasField("simple_value"):
                found.append((value.tag, event.step, round(value.simple_value, 4)))
    return found, words


def records(data):
    """The records of a .wandb file, a LevelDB log after seven bytes: blocks of 32 KiB with pieces of records."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # all of a record, or its last piece
            yield whole
            whole = b""


RESCUED = METRICS | {"loss": 5.0}  # of the step that the rescue below does again
BEFORE, AFTER = [(step, 2.0) for step in range(1, 9)], [*((step, 2.0) for step in range(1, 8)), (8, 5.0)]
"""Steps and losses as they were told until the rescue, and as they are after it."""


def run_that_goes_on(folder, *names):
    """Steps 1 to 6 with a kill after 6, again from 4 to 8; and a rescue from there back to 7."""
    folder.mkdir(exist_ok=True)
    with Reporter(folder, 0, 8, None, names) as written:
        written.hyperparameters({"optim.learning_rate": 0.5, "data.shape": [8, 8, 1], "guard.energy": math.inf})
        for step in range(1, 7):
            written.progress(step, METRICS, every=1)
        written.image("chains", 2, np.zeros((4, 8, 8, 1)))
    with Reporter(folder, 3, 8, None, names) as written:
        for step in range(4, 9):
            written.progress(step, METRICS, every=1)
        written.go_back(7)
        written.event(9, "ill")
        written.progress(8, RESCUED, every=1)
        written.evaluation(8, {"kl": 0.25}, "near the truth")


def tell_evaluation(folder, name):
    """An evaluation of step 8, of a run that was told more."""
    with contextlib.closing(trackers.of_evaluation(name, folder, "000008_0")) as tracker:
        tracker.add_scalar("evaluation/ood/AUROC", 0.75, 8)
        tracker.add_image("evaluation/ood/grid", np.zeros((9, 9, 3), np.uint8), 8, "none")
        tracker.add_text("evaluation/card", "its card", 8)


def test_names_of_an_evaluations_points_have_letters_that_all_trackers_take():
    assert trackers.point_name("ais", "log Z, nats") == "evaluation/ais/log_Z_nats"
    assert trackers.point_name("ood", "AUROC, train", "U(x)") == "evaluation/ood/AUROC_train/U_x"


def test_tensorboard_has_groups_with_descriptions_each_point_once_pictures_with_captions_and_the_config(
    tmp_path, caplog
):
    run_that_goes_on(tmp_path, "tensorboard")
    found, words = points(tmp_path)
    tags = ("energy/energy_data", "optim/loss", "chain/chain_movement", "method/own_of_mine", "time/steps_per_second")
    for tag in tags:
        assert [step for name, step, _ in found if name == tag] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [(step, value) for name, step, value in found if name == "optim/loss"] == AFTER
    assert ("optim/loss_1", 8, 3.0) in found
    assert ("evaluation/kl", 8, 0.25) in found
    assert words["optim/loss"] == "what the optimiser lowers"
    assert words["optim/loss_1"].endswith(", of model 1")
    assert words["pictures/chains"] == "chains from the same fresh noise at every step"
    assert any(tag.startswith("_hparams_") for tag in words)
    assert not caplog.records, "an infinite value of the config is no worry"
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(row["step"], row["loss"]) for row in rows if "event" not in row] == AFTER


def test_every_metric_of_the_package_has_a_group_and_a_description():
    for name in (*SHOWN, "grad_norm", "saturated", "non_finite", "spectral_norm", "log_distance"):
        assert not scalars.tag(name).startswith(f"{scalars.OTHER}/"), name
        assert scalars.description(name)


@pytest.mark.whole
@installed("trackio")
def test_trackio_keeps_each_point_once_and_a_picture_with_its_caption_and_a_rescue_as_another_run(tmp_path):
    told = "import sys, pathlib; from test_trackers import *; folder = pathlib.Path(sys.argv[1]);"
    told += "run_that_goes_on(folder, 'trackio'); tell_evaluation(folder, 'trackio')"
    where = {"TRACKIO_DIR": str(tmp_path / "kept"), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-c", told, str(tmp_path / "run")], env=os.environ | where, check=True)
    with sqlite3.connect(tmp_path / "kept" / f"{trackers.PROJECT}.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    runs = {}
    for run_name, step, metrics in rows:
        if "optim/loss" in json.loads(metrics):
            runs.setdefault(run_name, []).append((step, json.loads(metrics)["optim/loss"]))
    assert list(runs.values()) == [BEFORE, AFTER]
    first, second = runs
    judged = {name: step for name, step, metrics in rows if json.loads(metrics).get("evaluation/ood/AUROC") == 0.75}
    assert judged == {f"{first}-evaluation-000008_0": 8}
    assert second == f"{first}-rescued1"
    assert any("same fresh noise" in str(metrics) for _, _, metrics in rows)
    assert [name for name, _, metrics in rows if "ill" in json.loads(metrics).values()] == [second]


@pytest.mark.whole
@installed("wandb")
def test_wandb_offline_keeps_each_point_once_under_one_name_and_a_rescue_as_another_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_that_goes_on(tmp_path, "wandb")
    tell_evaluation(tmp_path, "wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    told, judged, groups = {}, {}, set()
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    for path in files:
        for record in (Record.FromString(data) for data in records(path.read_bytes())):
            groups |= {record.run.run_group} - {""}
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            point = record.history.step.num, items.get("optim/loss")
            judged |= {path.stem: point[0]} if items.get("evaluation/ood/AUROC") == "0.75" else {}
            told.setdefault(path.stem, []).extend([(point[0], json.loads(point[1]))] if point[1] else [])
            if items.get("health/event") == '"ill"':
                assert path.stem.endswith("-rescued1")
    assert len(files) == 4, "the run, the same going on after a kill, and after the rescue, and its evaluation"
    assert list(told.values()) == [BEFORE, AFTER, []]
    assert [name.endswith("-rescued1") for name in told] == [False, True, False]
    assert [(name.endswith("-evaluation-000008_0"), step) for name, step in judged.items()] == [(True, 8)]
    assert len(groups) == 1, "which shows them as one"


@pytest.mark.parametrize("asked", ["wandbb", "tensorboard,mlflow", "none,wandb"])
def test_an_unknown_tracker_is_refused_with_those_that_are_known(asked):
    with pytest.raises(BadInput, match=r"log\.trackers '\w+' is unknown; use some of tensorboard, wandb"):
        trackers.named(asked)


def test_none_is_no_tracker_and_names_count_once(tmp_path):
    assert trackers.named("none") == ()
    assert trackers.named(" tensorboard, tensorboard") == ("tensorboard",)
    run_that_goes_on(tmp_path)
    assert not list(tmp_path.glob("events*"))


def test_a_missing_extra_is_one_line_with_the_command_and_status_2_before_training(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    words = [
        f"--config={ROOT / 'configs' / 'digits.py'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.log.trackers=wandb",
    ]
    assert run.main(["run.py", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "log.trackers wandb needs the package wandb; pip install -r requirements-wandb.txt, or 'ebm_jax[wandb]'" in line
    )
    assert not (tmp_path / "run").exists()
