"""--help says what there is: it is compared with the modules themselves, which it reads without importing them."""

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import run
from ebm_jax import cli, invocation, manual, schema, shipped
from ebm_jax.evaluators import EVALUATORS
from ebm_jax.tasks import TASKS


def printed(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run.main(["run.py", *words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def flowing(text):
    return " ".join(text.split())


def described():
    """The first line about each task and metric, of the functions themselves."""
    does = {name: task.run for name, task in TASKS.items()}
    does |= {name: evaluator.measure for name, evaluator in EVALUATORS.items()}
    return {name: inspect.getdoc(function).splitlines()[0] for name, function in does.items()}


def test_help_names_every_mode_config_task_metric_and_group(capsys):
    out = printed(capsys, "--help")
    configs = {name: importlib.import_module(f"configs.{name}").__doc__.splitlines()[0] for name in shipped.names()}
    modes = {mode: manual.mode_line(mode) for mode in cli.WORDS}
    for name, words in {**configs, **described(), **modes}.items():
        assert re.search(f"^  {name} +{re.escape(words)}$", out, re.MULTILINE), f"one line for {name}, as its code says"
    assert all(name.partition(".")[0] in out.split("Groups: ")[1] for name in schema.KEYS)


def test_a_task_and_a_metric_are_told_with_their_keys_and_all_of_them_with_their_own_key(capsys):
    for name in ("film", "kid"):
        assert f"={name}: {described()[name]}" in flowing(printed(capsys, f"--help={name}"))
    assert "sample.inpaint.mask=lower" in printed(capsys, "--help=inpaint")
    assert "eval.ais.chains=256" in printed(capsys, "--help=ais")
    for key, names in {"sample.task": TASKS, "eval.metrics": EVALUATORS}.items():
        listed = printed(capsys, f"--help={key}").split("each of them:\n")[1]
        assert [line.split()[0] for line in listed.splitlines()] == list(names)


def test_what_a_mode_does_is_from_its_source():
    assert manual.mode_line("prepare") == "prepares a data set without training on it"
    elsewhere = {"compile": "tools/compile/report.py", "report": "ebm_jax/report/verb.py"}
    for mode in cli.WORDS:
        source = ROOT / elsewhere.get(mode, f"ebm_jax/{mode}.py")
        docstring = ast.get_docstring(ast.parse(source.read_text()))
        assert docstring.startswith("The verb that ")
        assert docstring.splitlines()[0].removesuffix(".").endswith(manual.mode_line(mode))


def test_without_a_clone_help_says_that_compile_needs_one(monkeypatch, tmp_path):
    monkeypatch.setattr(manual, "OF_COMPILE", tmp_path / "report.py")
    assert "needs a clone" in manual.overview(cli.WORDS)


def test_every_page_of_help_fits_100_columns_as_either_program(capsys, monkeypatch):
    for called in ("run.py", "/opt/bin/ebm-jax"):
        monkeypatch.setattr(sys, "argv", [called])
        pages = [
            manual.overview(cli.WORDS),
            *(manual.entry(name, cli.MODES) for name in (*schema.KEYS, *schema.GROUPS)),
        ]
        assert max(len(line) for page in pages for line in page.splitlines()) <= 100
        assert " ".join([*invocation.portable(), "sample"]) in pages[0]


def test_the_examples_of_help_are_commands_that_are_understood(one_run, monkeypatch):
    for called in ("run.py", "/opt/bin/ebm-jax"):
        monkeypatch.setattr(sys, "argv", [called])
        text = manual.overview(cli.WORDS).split("Examples:\n")[1].split("\n\n")[0]
        examples = [line.split(invocation.name())[1].split() for line in text.splitlines()]
        assert len(examples) == 3
        for words in examples:
            monkeypatch.chdir(ROOT)
            cli.parse(["run.py", *(word.replace("runs/digits", str(one_run)) for word in words)])


@pytest.mark.parametrize(
    "words", [["--help=chain.step_size"], ["--help", "chain.step_size"], ["-h=config.chain.step_size"]]
)
def test_a_key_is_told_with_its_default_limit_meaning_and_source(words, capsys):
    out = flowing(printed(capsys, *words))
    key = schema.KEYS["chain.step_size"]
    for part in (key.meaning, f"default {key.default}", f"limit a number, {key.limit.range}", f"source {key.source}"):
        assert part in out


def test_every_key_is_told_with_a_default_that_the_command_line_takes():
    words = []
    for name, key in schema.KEYS.items():
        text = manual.entry(name, cli.MODES)
        assert flowing(key.meaning) in flowing(text)
        if key.limit.options:
            assert ", ".join(key.limit.options) in flowing(text)
        default = text.split("\n  default")[1].split("\n  limit")[0].strip()
        words.append(
            text.split("  set by")[1].partition("\n")[0].strip().replace("VALUE", "" if default == "empty" else default)
        )
    parsed = cli.parse(["run.py", f"--config={ROOT / 'configs' / 'digits.py'}", *words]).config
    assert schema.flat(parsed) == schema.flat(schema.defaults())


def test_a_former_name_a_group_a_mode_and_a_group_of_ones_own_are_told(capsys):
    assert "chain.langevin.noise_scale (formerly chain.noise_scale)" in printed(capsys, "--help=chain.noise_scale")
    film = printed(capsys, "--help=sample.film")
    assert f"sample.film.every={schema.KEYS['sample.film.every'].default}" in film
    chain = printed(capsys, "--help=chain")
    assert all(f"  {name}=" in chain for name in schema.KEYS if name.startswith("chain."))
    assert "  data." not in chain
    assert "docs/extending.md" in printed(capsys, "--help=model.own")
    assert manual.mode_line("export") in printed(capsys, "--help=export")


@pytest.mark.parametrize(
    ("asked", "near"),
    [("chain.stepsize", "chain.step_size"), ("chian", "chain"), ("clasify", "classify"), ("lr", "optim.learning_rate")],
)
def test_an_unknown_key_gets_the_nearest_in_one_line(asked, near, capsys):
    assert run.main(["run.py", f"--help={asked}"]) == 2
    assert capsys.readouterr() == (
        "",
        f"run.py: --help={asked} is no key, group, mode, task or metric; did you mean --help={near}?\n",
    )


def test_a_reader_that_leaves_ends_help_without_a_word():
    line = f"{sys.executable} run.py --help | true; exit ${{PIPESTATUS[0]}}"
    for _ in range(3):
        ended = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")
