"""What `pip install .` brings: the package, its configs and the command ebm-jax, which works outside the repository."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import FOR_EVER, ROOT

import ebm_jax
from ebm_jax import shipped

PARTS = ("pyproject.toml", "README.md", "LICENSE", "ebm_jax", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = PROJECT["build-system"]["requires"][0].removeprefix("setuptools>=")
HAS_SETUPTOOLS = importlib.util.find_spec("setuptools") is not None and int(
    distribution("setuptools").version.partition(".")[0]
) >= int(NEEDED)


def python_files(folder, prefix):
    return {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}


ASSETS = {f"ebm_jax/report/assets/{path.name}" for path in (ROOT / "ebm_jax" / "report" / "assets").iterdir()}
OURS = python_files(ROOT / "ebm_jax", "ebm_jax") | python_files(ROOT / "configs", "ebm_jax/configs")


def test_the_packages_of_pyproject_are_the_folders_of_the_package_and_the_configs():
    folders = {path.rpartition("/")[0].replace("/", ".") for path in OURS}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_version_licence_and_citation_are_one():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {ebm_jax.__version__}\n" in citation
    assert PROJECT["project"]["license"] in citation
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "arXiv:1903.08689" in citation


def test_every_extra_is_a_file_of_requirements():
    for name, source in PROJECT["tool"]["setuptools"]["dynamic"]["optional-dependencies"].items():
        assert source == {"file": [f"requirements-{name}.txt"]}
        assert (ROOT / f"requirements-{name}.txt").is_file()


def run_by(command, folder):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=FOR_EVER
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the repository, built without a network."""
    if not HAS_SETUPTOOLS:
        pytest.skip(f"needs setuptools>={NEEDED}: requirements-dev.txt")
    folder = tmp_path_factory.mktemp("wheel")
    for part in (*PARTS, *(path.name for path in ROOT.glob("requirements*.txt"))):
        copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copied(ROOT / part, folder / part)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(pip, cwd=folder, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The folder of the programs of a new environment that the wheel is installed in; it borrows the dependencies."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


@pytest.mark.whole
def test_the_wheel_holds_the_package_and_the_configs_inside_it_and_no_other_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    energies = {f"ebm_jax/{path.relative_to(ROOT / 'ebm_jax').as_posix()}" for path in shipped.energies().glob("*/*")}
    assert len(energies) >= 40
    assert OURS | ASSETS | {"ebm_jax/py.typed"} | energies <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ebm_jax"}
    for line in (
        "License-Expression: Apache-2.0",
        "Provides-Extra: cuda",
        "Provides-Extra: tpu",
        "Provides-Extra: gcs",
        "Provides-Extra: docs",
    ):
        assert f"\n{line}\n" in metadata


@pytest.mark.whole
def test_outside_the_repository_the_command_trains_by_name_and_the_next_command_it_prints_samples(programs, tmp_path):
    (tmp_path / "lab.py").write_text(
        "import ebm_jax\nfrom ebm_jax.tasks.common import Task\n\n"
        "TASK = Task(lambda config: None, lambda run, key: 1 / 0)\n"
    )
    (tmp_path / "mine.py").write_text(
        "from configs import digits_contrastive\n\n\ndef get_config():\n"
        "    config = digits_contrastive.get_config()\n    config.model.width = 8\n    return config\n"
    )
    ebm_jax_command = [str(programs / "ebm-jax")]
    train = [*ebm_jax_command, "train", "--config=mine.py", "--config.train.dry_run=True"]
    status, out, err = run_by(train, tmp_path)
    assert status == 0, err
    named = next(line for line in out.splitlines() if line.startswith("sample with: "))
    called, *words = shlex.split(named.removeprefix("sample with: "))
    assert called == ebm_jax_command[0]
    status, out, err = run_by([*ebm_jax_command, *words], tmp_path)
    assert status == 0, err
    assert len(list((tmp_path / "runs" / "mine" / "samples").glob("*.npz"))) == 1
    own = [*ebm_jax_command, "sample", "--workdir=runs/mine", "--config.sample.task=lab:TASK"]
    assert "ZeroDivisionError" in run_by(own, tmp_path)[2], "a module of the folder it is started in is found"


@pytest.mark.whole
def test_outside_the_repository_an_energy_is_loaded_and_samples_without_a_network(programs, tmp_path):
    words = (
        "import jax, ebm_jax\n"
        "run = ebm_jax.open_run('digits')\n"
        "images = run.sample(jax.random.key(0), 2, labels=3)\n"
        "print(images.shape, run.energy(images, [3, 3]).shape)\n"
        "run.save('mine')\n"
    )
    status, out, err = run_by([str(programs / "python"), "-c", words], tmp_path)
    assert status == 0, err
    assert out.endswith("(2, 8, 8, 1) (2,)\n")
    command = [str(programs / "ebm-jax"), "sample", "--workdir=mine"]
    status, out, err = run_by([*command, "--config.sample.num_images=2"], tmp_path)
    assert status == 0, err


@pytest.mark.whole
def test_outside_the_repository_the_command_and_the_module_say_the_same(programs, tmp_path):
    words = {
        "--help": 0,
        "--help=chain.step_size": 0,
        "trian --config=digits": 2,
        "--config=digts": 2,
        "--config=configs/digits.py": 2,
        "--config=fashion_mnist --mode=compile --topology=cpu": 2,
    }
    for line, status in words.items():
        by_command, by_module = (
            run_by([*start, *line.split()], tmp_path)
            for start in ([str(programs / "ebm-jax")], [str(programs / "python"), "-m", "ebm_jax"])
        )
        assert by_command == by_module
        assert by_command[0] == status, by_command
        assert (by_command[2] == "") == (status == 0)
        assert status == 0 or by_command[2].startswith("ebm-jax: ")
        assert by_command[2].count("\n") <= 1
    assert "in a clone of the repository" in by_command[2]
    assert list(Path(tmp_path).iterdir()) == []
