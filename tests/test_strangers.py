"""A run's folder from a stranger: it runs no code, and makes nothing be written outside, by words or by links."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, changed
from test_architecture import SOURCES

import run
from ebm_jax import cli, opening, schema, trust
from ebm_jax.report import figures, pictures
from ebm_jax.report.reporter import Reporter
from ebm_jax.storage import writing
from ebm_jax.types import BadInput

IMAGES = np.zeros((4, 8, 8, 1), np.float32)


@pytest.fixture(autouse=True)
def nothing_chosen(tmp_path, monkeypatch):
    """A user who has named no code and no place yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "_chosen", set())


def theirs(one_run, folder, **changes):
    """A copy of the run in which config.json has other values."""
    shutil.copytree(one_run, folder)
    config = changed(schema.of_run(json.loads((folder / "config.json").read_text()), "")[0], **changes)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that can be imported, would be taken as one for this package, and leaves a trace if it is imported."""
    (tmp_path / "planted.py").write_text(
        f"import ebm_jax, pathlib\npathlib.Path({str(tmp_path / 'trace')!r}).touch()\ndef Net(**options): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "planted:Net"


NAMING = ("model.name", "model.activation", "method.name", "chain.kernel", "loss.objective", "data.source")


@pytest.mark.parametrize("key", NAMING)
def test_code_that_a_run_s_config_names_is_not_imported_whoever_opens_it(tmp_path, one_run, module, key, capsys):
    folder = theirs(one_run, tmp_path / "run", **{key.replace(".", "__"): module})
    for mode in ("sample", "export", "evaluate"):
        assert run.main(["run.py", f"--mode={mode}", f"--workdir={folder}"]) == 2
        assert f"to run the code {key}={module}, and you never named it" in capsys.readouterr().err
    for open_it in (opening.load, opening.open_run):
        with pytest.raises(BadInput, match=rf"add --config\.{key}={module}, or load it with trusted=True"):
            open_it(folder)
    assert not (tmp_path / "trace").exists()


def test_the_cure_of_the_message_runs_the_code_and_is_asked_for_once(tmp_path, one_run, module):
    folder = theirs(one_run, tmp_path / "run", model__name=module)
    words = ["run.py", "--mode=sample", f"--workdir={folder}"]
    assert cli.parse([*words, f"--config.model.name={module}"]).config.model.name == module
    assert cli.parse(words).config.model.name == module, "in this process"
    trust._chosen.clear()
    assert cli.parse(words).config.model.name == module, "in another one"
    other = theirs(one_run, tmp_path / "other", model__name="planted:Other")
    with pytest.raises(BadInput, match="planted:Other"):
        cli.parse(["run.py", "--mode=sample", f"--workdir={other}"])


def test_what_the_user_trained_is_his(tmp_path, module):
    config = changed(schema.defaults(), model__name=module, eval__metrics="ood, planted:Metric", data__dir="/data")
    assert not trust.obeyed(changed(config, model__name="small"), tmp_path, verb="sample").config.data.dir
    trust.remember(config)
    trust._chosen.clear()
    assert trust.obeyed(config, tmp_path, verb="eval") == (config, ())


def test_code_of_another_verb_does_not_matter(tmp_path):
    config = changed(schema.defaults(), eval__metrics="planted:Metric")
    assert trust.obeyed(config, tmp_path, verb="sample").config == config
    with pytest.raises(BadInput, match=r"eval\.metrics=planted:Metric"):
        trust.obeyed(config, tmp_path, verb="eval")


def test_every_key_that_may_name_code_is_guarded():
    """`named` imports what it does not know; its first argument is the key."""
    import ast

    keys = set()
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("named") and len(node.args) == 3:
                keys.add(ast.unparse(node.args[0]).strip("'"))
    assert keys - {"key"} <= set(trust.CODE)
    checks = (ROOT / "ebm_jax" / "checks.py").read_text()
    assert "named(key, value_of(config, key), table)" in checks
    assert set(trust.CODE) - {"data.name", "data.source"} <= keys | {"loss.objective", "loss.energy_l2_form"}


def test_names_of_sets_and_paths_with_colons_are_no_code(tmp_path):
    for source, name in (("tfds", "cifar10:3.0.2"), ("folder:/a:b,c:d", "x:y"), ("npz:x", "x"), ("density", "rings")):
        config = changed(schema.defaults(), data__source=source, data__name=name)
        assert trust.obeyed(config, tmp_path) == (config, ())
    with pytest.raises(BadInput, match=r"data\.name=os:system"):
        trust.obeyed(changed(schema.defaults(), data__source="density", data__name="os:system"), tmp_path)


PLACES = {"data.dir": "sets", "eval.classifier_distance.dir": "autostart", "eval.inception.reference": "statistics.npz"}


@pytest.mark.parametrize("key", PLACES)
def test_places_to_write_outside_of_the_run_s_folder_are_left_out_and_told(tmp_path, one_run, key, capsys):
    outside, name = tmp_path / "home" / PLACES[key], key.replace(".", "__")
    folder = theirs(one_run, tmp_path / "run", **{name: str(outside)})
    words = ["run.py", "--mode=evaluate", f"--workdir={folder}"]
    command = cli.parse(words)
    assert schema.value_of(command.config, key) == ""
    assert f"{key}={outside} of its config.json is left out; to obey it, add --config.{key}={outside}" in command.note
    assert schema.value_of(opening._read(folder, trusted=False), key) == ""
    assert "may not choose where to write" in capsys.readouterr().err
    assert schema.value_of(cli.parse([*words, f"--config.{key}={outside}"]).config, key) == str(outside)
    assert schema.value_of(opening._read(folder, trusted=True), key) == str(outside)


@pytest.mark.parametrize("place", ["{run}/../x", "{run}x", "~/x", "gs://bucket/x", "link/x", "/\0"])
def test_places_that_only_look_as_if_they_were_inside_are_outside(tmp_path, monkeypatch, place):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "run")
    config = changed(schema.defaults(), data__dir=place.format(run=tmp_path / "run"))
    assert trust.obeyed(config, tmp_path / "run").config.data.dir == ""


def test_places_inside_are_obeyed(tmp_path):
    config = changed(schema.defaults(), eval__classifier_distance__dir=str(tmp_path / "run" / "kept"))
    assert trust.obeyed(config, tmp_path / "run") == (config, ())


def test_without_a_cache_folder_the_choice_holds_for_this_process(tmp_path, monkeypatch, module):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    config = changed(schema.defaults(), model__name=module)
    trust.remember(config)
    assert trust.obeyed(config, tmp_path).config == config
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    trust.remember(changed(config, model__name="planted:Other"))


WRITERS = {
    "a.png": lambda path: pictures.write_grid(path, IMAGES),
    "b.png": lambda path: pictures.write_rows(path, {"row": IMAGES}),
    "c.png": lambda path: pictures.write_strip(path, IMAGES[None]),
    "d.gif": lambda path: pictures.write_film(path, np.stack([IMAGES, IMAGES + 1])),
    "e.png": lambda path: figures.curves(path, {"x": (np.arange(2), np.arange(2))}, ("x", "y")),
    "f.json": lambda path: writing.write_atomically(path, "{}"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_is_replaced_by_the_file_and_what_it_leads_to_stays(tmp_path, name):
    precious = tmp_path / "bashrc"
    precious.write_text("export PATH=precious")
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "run" / name, tmp_path / "run" / f".{name}.{os.getpid()}"):
        path.symlink_to(precious)
    WRITERS[name](tmp_path / "run" / name)
    assert precious.read_text() == "export PATH=precious"
    assert not (tmp_path / "run" / name).is_symlink()
    assert (tmp_path / "run" / name).stat().st_size > 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_failed_write_leaves_the_file_of_before(tmp_path):
    (tmp_path / "a").write_text("old")
    with contextlib.suppress(ZeroDivisionError), writing.replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_grow_and_events_are_not_written_through_links(tmp_path):
    precious = tmp_path / "bashrc"
    precious.write_text("export PATH=precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(precious)
    with pytest.raises(BadInput, match=r"metrics\.jsonl is a link to .*bashrc"):
        writing.appending(tmp_path / "run" / "metrics.jsonl")
    with Reporter(tmp_path / "run", 0, 10) as reporter:
        reporter.progress(10, {"loss": 1.0}, every=1)
        reporter.event(10, "told")
    assert precious.read_text() == "export PATH=precious"
    names = [path.name for path in (tmp_path / "run").glob("events.out.tfevents.*")]
    assert len(names) == 1
    assert len(names[0].rpartition(".")[2]) == 32, "a name that nobody can foresee"


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate", "export"])
@pytest.mark.parametrize("name", ["images", "samples", "checkpoints", "metrics.jsonl"])
def test_a_run_s_folder_with_a_link_in_it_is_refused_and_left_as_it_is(tmp_path, one_run, mode, name, capsys):
    from test_train import command

    folder, home = tmp_path / "run", tmp_path / "home"
    shutil.copytree(one_run, folder)
    home.mkdir()
    shutil.rmtree(folder / name, ignore_errors=True) if (folder / name).is_dir() else None
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(home)
    words = command(folder) if mode == "train" else ["run.py", f"--mode={mode}", f"--workdir={folder}"]
    assert run.main(words) == 2
    assert f"{folder / name} is a link to {home}, and files of a run are not written" in capsys.readouterr().err
    assert not list(home.iterdir())


def test_the_whole_folder_of_a_run_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    writing.require_no_links(tmp_path / "run")
