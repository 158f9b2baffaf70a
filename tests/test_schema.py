"""The schema: a key has one line, former names go on working, and a run's config outlives the code that made it."""

import copy
import json

import pytest
from ml_collections import ConfigDict

from ebm_jax import cli, schema
from ebm_jax.kinds import whole
from ebm_jax.schema import FORMER_NAMES, KEYS, Key
from ebm_jax.storage import workdir
from ebm_jax.types import BadInput

OLD = {"chain.tied": True, "chain.noise_scale": 0.25, "model.dropout": 0.5, "sample.neighbours": 7, "eval.ais_steps": 9}


def nested(values):
    """Dotted keys as the groups of a config.json."""
    groups = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        inside = groups
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = value
    return groups


LATER = ("method.", "chain.base")


def of_an_older_version(**changes):
    """A config.json as an earlier version wrote it: former names, and none of the keys that came later."""
    former = {new: old for old, new in FORMER_NAMES.items()}
    values = {former.get(name, name): key.default for name, key in KEYS.items() if not name.startswith(LATER)}
    return nested(json.loads(json.dumps(values | changes)))


def test_every_default_is_within_its_own_limit():
    schema.check_values(schema.defaults())
    schema.check_values(schema.dry_run(schema.defaults()))


def test_no_key_or_group_has_the_name_of_a_method_of_the_config():
    # config.eval.keys would be a function
    assert [name for name in KEYS if any(hasattr(ConfigDict, part) for part in name.split("."))] == []


def test_former_names_lead_to_keys_that_are_there_and_are_none_themselves():
    assert set(FORMER_NAMES.values()) <= set(KEYS)
    assert not set(FORMER_NAMES) & set(KEYS)


def test_a_config_file_may_use_former_names_and_both_are_one_field():
    config = schema.default_config()
    config.chain.tied = True
    config.eval.ais_steps = 9
    config.model.resnet.dropout = 0.25
    read = schema.as_config(config, "file")
    assert read.chain.langevin.tied is True
    assert read.eval.ais.steps == 9
    assert (config.model.dropout, read.model.resnet.dropout) == (0.25, 0.25)
    assert schema.flat(read).keys() == KEYS.keys()


def test_a_former_name_set_on_a_copy_without_references_is_not_lost():
    config = schema.default_config().copy_and_resolve_references()
    config.chain.tied = True
    assert schema.as_config(config, "file").chain.langevin.tied is True


def test_the_command_line_takes_former_names_in_either_form(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("from ebm_jax import schema\n\n\ndef get_config():\n    return schema.default_config()\n")
    words = [f"--config.{name}={value}" for name, value in OLD.items()]
    words[1:2] = ["--config.chain.noise_scale", "0.25"]
    command = cli.parse(["run.py", f"--config={file}", f"--workdir={tmp_path / 'run'}", *words])
    for name, value in OLD.items():
        assert schema.value_of(command.config, FORMER_NAMES[name]) == value


def test_the_config_of_an_older_run_says_in_one_line_what_was_filled_in():
    config, note = schema.of_run(of_an_older_version(), "runs/old/config.json")
    assert schema.flat(config) == schema.flat(schema.defaults())
    assert note.startswith("runs/old/config.json is of an earlier version: ")
    assert f"{len(FORMER_NAMES)} keys have new names" in note
    assert "method.name='contrastive'" in note
    assert "\n" not in note
    assert schema.of_run(config.to_dict(), "here")[1] == ""


def test_values_under_former_names_are_kept():
    older = nested(schema.flat(schema.defaults()))
    older["chain"] = {key: value for key, value in older["chain"].items() if key != "langevin"}
    older["chain"] |= {"tied": True, "noise_scale": 0.5}
    older["sample"]["neighbours"] = 7
    config, _ = schema.of_run(older, "run")
    assert (config.chain.langevin.tied, config.chain.langevin.noise_scale) == (True, 0.5)
    assert config.sample.neighbours.number == 7


def test_a_key_that_a_run_lacks_takes_what_runs_did_before_it_existed_and_new_runs_its_default(monkeypatch):
    older = of_an_older_version()
    monkeypatch.setitem(KEYS, "train.added_later", Key(8, whole(1), "of a test", absent=3))
    config, note = schema.of_run(older, "run")
    assert config.train.added_later == 3
    assert f"{sum(name.startswith(LATER) for name in schema.KEYS) + 1} that it lacks are filled in" in note
    assert schema.defaults().train.added_later == 8


def test_a_run_that_lacks_a_key_that_every_run_has_is_refused():
    older = of_an_older_version()
    del older["chain"]["step_size"], older["loss"]
    with pytest.raises(BadInput, match=r"^run has no chain.step_size and 6 more keys, which every run has; restore"):
        schema.of_run(older, "run")


def test_a_removed_key_is_let_go_where_the_run_can_go_on_without_it_and_refused_elsewhere(monkeypatch):
    monkeypatch.setitem(schema.REMOVED, "train.gone", lambda value: value is False)
    older = nested(schema.flat(schema.defaults()))
    older["train"]["gone"] = False
    assert "gone" not in schema.of_run(copy.deepcopy(older), "run")[0].train
    older["train"]["gone"] = True
    with pytest.raises(BadInput, match=r"run has train\.gone, which this version no longer has"):
        schema.of_run(older, "run")


def test_a_key_of_nobody_is_refused_with_the_nearest_one():
    found = nested(schema.flat(schema.defaults()))
    found["chain"]["step_sise"] = 1.0
    with pytest.raises(BadInput, match=r"which is no key; did you mean chain\.step_size\?"):
        schema.of_run(found, "run")


def test_keys_of_the_users_own_pass_through_files_folders_and_the_command_line(tmp_path):
    file = tmp_path / "config.py"
    text = (
        "def get_config():\n    config = schema.default_config()\n    config.model.own.depth = 2\n    return config\n"
    )
    file.write_text(f"from ebm_jax import schema\n\n\n{text}")
    folder = tmp_path / "run"
    words = ["--config.model.own.depth=3", "--config.method.own.word=plain", "--config.model.own.sizes=(1, 2)"]
    config = cli.parse(["run.py", f"--config={file}", f"--workdir={folder}", *words]).config
    assert config.model.own.to_dict() == {"depth": 3, "sizes": (1, 2)}
    assert config.method.own.word == "plain"
    workdir.claim(folder, config)
    assert workdir.read_config(folder).model.own.depth == 3
    assert workdir.differences(workdir.read_config(folder), config) == {}
    other = schema.with_values(config, {"model.own.depth": 4, "sample.own.anything": 1})
    assert set(workdir.differences(config, other)) == {"model.own.depth"}


def test_going_on_compares_what_was_read_and_not_the_file(tmp_path):
    (tmp_path / workdir.CONFIG).write_text(json.dumps(of_an_older_version()))
    workdir.check(tmp_path, schema.defaults())
    note = workdir.claim(tmp_path, schema.with_values(schema.defaults(), {"train.num_steps": 5, "eval.ais.steps": 7}))
    assert f"{len(FORMER_NAMES)} keys have new names" in note
    assert schema.flat(workdir.read_config(tmp_path))["train.num_steps"] == 5
    with pytest.raises(BadInput, match=r"chain\.langevin\.tied is False there and True here"):
        workdir.check(tmp_path, schema.with_values(schema.defaults(), {"chain.langevin.tied": True}))


def test_scopes_are_those_of_the_groups_but_for_the_keys_that_say_otherwise():
    assert schema.scope_of("sample.film.every") == schema.FREE
    assert schema.scope_of("data.dir") == schema.HOST
    assert schema.scope_of("train.num_steps") == schema.FREE
    assert schema.scope_of("train.batch_size") == schema.RUN
    assert schema.scope_of("model.own.depth") == schema.RUN
    assert schema.scope_of("eval.own.depth") == schema.FREE
