"""Sizes for the machine that a run begins on, and what is said of plans that take too long."""

import json

import pytest
import test_train
from conftest import ROOT
from test_train import files

import run
from configs import folder
from ebm_jax import cli, machine, shipped
from ebm_jax.given import BadInput
from ebm_jax.report import pace
from ebm_jax.schema import flat, with_values
from ebm_jax.storage import workdir


def command(*words):
    return cli.parse(["run.py", "--config=folder", *words])


@pytest.fixture
def kind(monkeypatch):
    """Set what machine this is."""
    return lambda name: monkeypatch.setattr(machine, "kind", lambda: name)


@pytest.mark.parametrize(
    ("platforms", "installed", "there", "expected"),
    [
        ("", (), (), "cpu"),
        ("", ("jax_cuda12_plugin",), (), "cpu"),
        ("", (), ("/dev/nvidiactl",), "cpu"),
        ("", ("jax_cuda12_plugin",), ("/dev/kfd",), "cpu"),
        ("", ("jax_cuda13_plugin",), ("/dev/nvidiactl",), "accelerator"),
        ("", ("libtpu",), ("/dev/vfio/0",), "accelerator"),
        ("cpu", ("jax_cuda13_plugin",), ("/dev/nvidiactl",), "cpu"),
        ("cuda,cpu", (), (), "accelerator"),
    ],
)
def test_an_accelerator_is_a_plugin_of_jax_and_its_device_unless_the_variable_says_otherwise(
    monkeypatch, platforms, installed, there, expected
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(machine, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(machine.os.path, "exists", lambda path: path in there)
    assert machine.kind() == expected


def test_a_run_has_the_sizes_of_its_machine_and_goes_on_with_them_on_another(tmp_path, kind):
    kind("cpu")
    small = command(f"--workdir={tmp_path / 'run'}").config
    workdir.claim(tmp_path / "run", small)
    kind("accelerator")
    large = command(f"--workdir={tmp_path / 'other'}").config
    assert (small.train.machine, large.train.machine) == ("cpu", "accelerator")
    assert small.model.width < large.model.width
    assert small.train.num_steps * small.train.batch_size < large.train.num_steps * large.train.batch_size
    assert small.data.holdout == large.data.holdout == 0.1
    assert small.data.crop
    gone_on = command(f"--workdir={tmp_path / 'run'}").config
    assert flat(gone_on) == flat(small)
    workdir.check(tmp_path / "run", gone_on)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["machine"] == "cpu"


def test_the_sizes_of_another_machine_can_be_asked_for(tmp_path, kind):
    kind("accelerator")
    words = (f"--workdir={tmp_path / 'run'}", "--config.train.machine=cpu", "--config.model.width=16")
    config = command(*words).config
    assert flat(config) == flat(with_values(folder.get_config("cpu"), {"model.width": 16}))
    kind("cpu")
    assert (
        command("--mode=compile", "--topology=v5e:2x4", f"--workdir={tmp_path}").config.train.machine == "accelerator"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=digits", "--config.train.machine=cpu"], "is for configs that choose by it, such as folder"),
        (["--config=folder", "--config.train.machine=laptop"], "train.machine"),
    ],
)
def test_a_machine_that_nothing_chooses_by_or_that_is_unknown_is_refused(tmp_path, words, message):
    with pytest.raises(BadInput, match=message):
        cli.parse(["run.py", *words, f"--workdir={tmp_path / 'run'}"])
    assert not files(tmp_path)


def test_a_run_that_began_before_there_was_a_choice_goes_on_as_it_was(tmp_path, kind):
    kind("cpu")
    older = folder.get_config("")
    assert older.data.holdout == 0.0
    assert older.model.width == folder.get_config("accelerator").model.width
    groups = older.to_dict()
    del groups["train"]["machine"]
    (tmp_path / "config.json").write_text(json.dumps(groups))
    config = command(f"--workdir={tmp_path}").config
    assert flat(config) == flat(older)
    workdir.check(tmp_path, config)


def test_a_config_of_the_users_own_without_the_parameter_is_called_as_before(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\n\ndef get_config(width=7):\n    config = digits.get_config()\n"
        "    config.model.width = width\n    return config\n"
    )
    assert cli.from_file(tmp_path / "mine.py", "cpu").model.width == 7
    assert cli.from_file(shipped.named("folder"), "cpu").train.machine == "cpu"


def said(num_steps, seconds, per_call=1):
    """The lines about a plan whose first call takes 1,000 s more than the `seconds` of each step, to compile."""
    lines, now = [], [0.0]
    look = pace.announcer(num_steps, per_call, lines.append, lambda: now[0])
    for step in range(1, 10 * per_call + 1):
        now[0] += seconds * per_call * ((step - 1) % per_call == 0) + 1_000.0 * (step == 1)
        look(step)
    return lines


@pytest.mark.parametrize("per_call", [1, 5])
def test_a_plan_beyond_a_day_is_announced_once_with_its_estimate_and_one_that_is_not(per_call):
    day = 86_400
    assert said(day + 2 * per_call - 1, 1.0, per_call) == []
    (line,) = said(3 * day + 2 * per_call, 2.0, per_call)
    assert f"about 6.0 days on this CPU: {3 * day:,} steps of 2 s" in line
    within = int(line.partition("train.num_steps=")[2].partition(" ")[0])
    assert (within - 2 * per_call) * 2.0 == day
    assert "\n" not in line


@pytest.mark.whole
def test_training_on_a_cpu_announces_a_long_plan_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pace, "LONG", 1e-6)
    assert run.main(test_train.command(tmp_path / "run")) == 0
    assert capsys.readouterr().err.count("days on this CPU: 4 steps of ") == 1


def test_the_docstring_of_the_config_says_its_sizes():
    text = (ROOT / "configs" / "folder.py").read_text().split('"""')[1]
    for name in ("cpu", "accelerator"):
        config = folder.get_config(name)
        assert f"{config.train.num_steps:,} steps of {config.train.batch_size} images" in text
        assert f"width {config.model.width}" in text
        assert "x".join(map(str, config.data.shape)) in text
