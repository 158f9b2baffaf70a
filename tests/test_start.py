"""The start of the program: what it imports before a word is understood, and how a config, a mode and it are named."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import ebm_jax
import run
from ebm_jax import cli, invocation, shipped
from ebm_jax.given import BadInput

HEAVY = {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "scipy", "matplotlib", "numpy", "etils"}
TOLD = f"""
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *sorted({HEAVY} & set(sys.modules)), file=sys.stderr))
from ebm_jax import main
sys.argv = ["run.py", *sys.argv[1:]]
sys.exit(main.guarded(sys.argv))
"""
DIGITS = "--config=configs/digits.py"


def told(*words):
    """Status, output, error lines and heavy imports of the program in a process of its own."""
    command = [sys.executable, "-c", TOLD, *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *lines, imports = ended.stderr.splitlines()
    return ended.returncode, ended.stdout, lines, imports.removeprefix("imported:").split()


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--help=chain.step_size"], ["train", "--help"]], ids=str)
def test_help_imports_no_jax(words):
    status, out, lines, imports = told(*words)
    assert (status, lines, imports) == (0, [], [])
    assert out


def test_the_page_of_a_run_imports_no_jax(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    status, out, lines, imports = told("report", str(tmp_path))
    assert (status, imports) == (0, [])
    assert out.startswith(f"wrote {tmp_path / 'report.html'}, ")
    assert lines == [f"{tmp_path}: config.json is missing"]


WRONG = {
    "no run to report on": ["report", "/no/such/run"],
    "a flag": [DIGITS, "--wrkdir=x"],
    "a mode": [DIGITS, "--mode=fly"],
    "a first word": ["fly", DIGITS],
    "a key": [DIGITS, "--config.chain.stepsize=1"],
    "a value": [DIGITS, "--config.chain.step_size=-1"],
    "no config": [],
    "a config": ["--config=digts"],
    "a key of a run": ["sample", "--workdir=runs/none", "--config.sample.labls=1"],
    "no run": ["sample", "--workdir=/no/such/run"],
    "a key for help": ["--help=chain.stepsize"],
    "a coordinator": [DIGITS, "--multihost", "--coordinator=here", "--num_processes=2", "--process_id=0"],
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_word_is_one_line_and_status_2_before_jax_is_imported(case):
    status, out, lines, imports = told(*WRONG[case])
    assert (status, out, imports) == (2, "", [])
    assert len(lines) == 1
    assert lines[0].startswith("run.py: ")


def test_the_package_offers_its_names_without_importing_their_modules():
    program = f"""
import sys
import ebm_jax
assert set(ebm_jax.__all__) <= set(dir(ebm_jax))
assert not {HEAVY} & set(sys.modules), "dir() imports"
from ebm_jax import BadInput, load
import ebm_jax.trained
assert load is ebm_jax.opening.load is ebm_jax.load
assert ebm_jax.models.energy.stack is ebm_jax.stack
assert ebm_jax.random.dequantise
assert ebm_jax.langevin is ebm_jax.sampling.langevin
assert ebm_jax.diagnostics is sys.modules["ebm_jax.metrics.diagnostics"]
assert ebm_jax.networks is sys.modules["ebm_jax.models.networks"]
assert {{"applications", "diagnostics", "methods", "networks"}} <= set(dir(ebm_jax))
assert [name for name in dir(ebm_jax) if name.startswith("_") and not name.startswith("__")] == []
assert not hasattr(ebm_jax, "no_such_name")
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_every_public_name_is_the_one_that_type_checkers_see():
    source = (ROOT / "ebm_jax" / "__init__.py").read_text()
    seen = {}
    exec(source.split("if TYPE_CHECKING:")[1].split("__version__ =")[0].replace("\n    ", "\n"), seen)
    assert {name for name in seen if name != "__builtins__"} == set(ebm_jax.__all__) - {"__version__"}
    assert all(getattr(ebm_jax, name) is seen[name] for name in ebm_jax.__all__ if name != "__version__")


def command(*words):
    return cli.parse(["run.py", *words])


def test_the_name_of_a_shipped_config_is_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name, by_path = command("--config=shapes_shape"), command(f"--config={ROOT}/configs/shapes_shape.py")
    assert by_name.config.to_dict() == by_path.config.to_dict()
    assert by_name.workdir == by_path.workdir == Path("runs/shapes_shape")


def test_a_file_of_the_users_own_goes_before_a_shipped_config_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "digits").write_text(
        "from configs import default\n\n\ndef get_config():\n    config = default.get_config()\n"
        "    config.model.width = 77\n    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    assert command("--config=digits").config.model.width == 77


def test_the_first_word_is_the_mode(one_run):
    for words in (["sample"], ["--mode=sample"], ["sample", "--mode=sample"], ["sample", "--mode", "sample"]):
        found = command(*words, f"--workdir={one_run}", "--config.sample.num_images=3")
        assert (found.mode, found.config.sample.num_images) == ("sample", 3)
    assert command("train", DIGITS).mode == command(DIGITS).mode == "train"
    with pytest.raises(BadInput, match="--multihost is for --mode=train, not sample"):
        cli.launch(["run.py", "sample", "--multihost"])


REFUSED = {
    ("train", DIGITS, "--mode=sample"): "the first word says train and --mode=sample; leave one of them out",
    ("trian", DIGITS): "the first word 'trian' is no mode; use one of train, .*did you mean train",
    ("--config=digts",): "--config digts is not a file, nor .*did you mean --config=digits",
    ("--config=nowhere/digits.py",): "--config nowhere/digits.py is not a file, .*did you mean --config=digits",
    ("--config=zzz",): "--config zzz is not a file, nor the name of a shipped config; --help lists them",
}


@pytest.mark.parametrize("words", REFUSED, ids=str)
def test_what_names_no_mode_or_config_is_named_with_its_cure(words, capsys):
    with pytest.raises(BadInput, match=REFUSED[words]):
        command(*words)
    assert run.main(["run.py", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


CALLED = {
    "/home/me/my code/run.py": ("run.py", (sys.executable, "/home/me/my code/run.py")),
    "/home/me/notebook.py": ("run.py", (sys.executable, "-m", "ebm_jax")),
    "/opt/pytest/__main__.py": ("run.py", (sys.executable, "-m", "ebm_jax")),
    "/opt/bin/ebm-jax": ("ebm-jax", ("/opt/bin/ebm-jax",)),
    "/opt/bin/ebm-jax.exe": ("ebm-jax", ("/opt/bin/ebm-jax.exe",)),
    "/opt/lib/ebm_jax/__main__.py": ("ebm-jax", (sys.executable, "-m", "ebm_jax")),
}


@pytest.mark.parametrize("called", CALLED)
def test_lines_and_next_commands_are_those_of_the_program_that_was_started(called, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [called])
    name, words = CALLED[called]
    assert (invocation.name(), invocation.words()) == (name, words)
    assert run.main([called, "--config=digts"]) == 2
    assert capsys.readouterr().err.startswith(f"{name}: --config digts")


OTHERS = {  # a folder configs/ of the user's: its files, and what a file of the user's imports from `configs`
    "none": ({}, "digits"),
    "a mere folder": ({"own.py": "SIZE = 5\n"}, "digits, own"),
    "a package": ({"__init__.py": "", "own.py": "SIZE = 5\n"}, "own"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_outside_the_repository_configs_are_the_shipped_ones_beside_the_users_own(case, tmp_path):
    files, names = OTHERS[case]
    (tmp_path / "configs").mkdir()
    for name, text in files.items():
        (tmp_path / "configs" / name).write_text(text)
    (tmp_path / "mine.py").write_text(f"from configs import {names}\n")
    program = f"""
import runpy, sys
sys.path[:] = [place for place in sys.path if place not in ("", {str(ROOT)!r})]
sys.path.append({str(tmp_path)!r})
from importlib.util import spec_from_file_location
import importlib
spec = spec_from_file_location("ebm_jax", {str(ROOT / "ebm_jax" / "__init__.py")!r})
sys.modules["ebm_jax"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from pathlib import Path
from ebm_jax import cli, shipped
before = list(sys.path), list(sys.meta_path)
with shipped.importable(Path({str(tmp_path / "mine.py")!r})):
    runpy.run_path({str(tmp_path / "mine.py")!r})
assert (sys.path, sys.meta_path) == before
for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
    del sys.modules[name]
assert cli.parse(["run.py", "--config=fashion_mnist"]).config.data.name == "fashion_mnist"  # it imports configs.digits
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_every_experiment_of_the_folder_has_a_name():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "default"}
    assert set(shipped.names()) == files
    assert shipped.named("default") == ROOT / "configs" / "default.py"
    assert shipped.named("__init__") is None
