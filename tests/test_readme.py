"""The README's commands and links work, and what its reference pages list is there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import user_environment

from ebm_jax import shipped
from ebm_jax.data import memory
from ebm_jax.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}


def command(name):
    """The one line of a marked block."""
    match = re.search(rf"<!-- {name} command -->\n```\n(.+)\n```\n<!-- end -->", README)
    assert match, f"the README has no block '{name} command' of one line"
    return match[1]


def test_every_link_and_path_of_the_readme_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing


def test_the_readme_is_short():
    assert README.count("\n") <= 130


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_the_repository_that_a_page_names_exists(page):
    named = re.findall(r"`((?:ebm_jax|tests|tools|benchmarks|configs)/[\w/]*(?:\.\w+)?)`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_module_of_the_package_is_in_the_tree():
    tree = PAGES["reference/tree.md"]
    folders = {path.parent.name for path in (ROOT / "ebm_jax").glob("*/__init__.py")}
    verbs = {path.name for path in (ROOT / "ebm_jax").glob("*.py")} - {"__init__.py"}
    assert {name for name in folders | verbs if name not in tree} == set()


def test_both_commands_install_the_requirements_and_ci_runs_the_second():
    assert command("main").endswith(".venv/bin/python run.py --config=configs/digits.py")
    assert command("test").endswith(".venv/bin/python -m pytest -q")
    for name in ("main", "test"):
        assert command(name).startswith("python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt")
    assert "test command" in (ROOT / ".ci" / "run").read_text()


def test_every_config_is_in_the_table_of_configs_and_in_the_gallery():
    links = set(re.findall(r"\(\.\./gallery\.md#(\w+)\)", PAGES["reference/configs.md"]))
    commands = set(re.findall(r"^    ebm-jax --config=(\w+)", PAGES["gallery.md"], re.M))
    headings = set(re.findall(r"^#### (\w+)$", PAGES["gallery.md"], re.M))
    assert links == commands == headings == set(shipped.names())


def test_every_task_is_in_the_table_of_tasks_and_in_the_gallery():
    for page in ("reference/tasks.md", "gallery.md"):
        assert [name for name in TASKS if not re.search(rf"\b{name}\b", PAGES[page])] == []
    shown = set(re.findall(r"sample\.task=(\w+)", PAGES["gallery.md"])) | {"generate"}
    assert shown == set(TASKS)


def test_every_picture_of_the_gallery_has_a_command_below_it_before_the_next():
    for part in PAGES["gallery.md"].split("![")[1:]:
        assert re.search(r"^    (ebm-jax|python -m benchmarks\.\w+) ", part, re.M), part[:60]


@pytest.mark.parametrize("page", ["README", "start.md"])
def test_the_python_of_the_page_names_only_what_there_is(page):
    import ebm_jax

    names = set(re.findall(r"ebm_jax\.(\w+)\(", PAGES.get(page, README)))
    assert names == {"fit", "load", "make_sample_fn", "make_energy_fn", "open_run"} - (
        {"load"} if page == "README" else set()
    )
    assert names <= set(ebm_jax.__all__)


@pytest.mark.whole
def test_the_first_python_of_the_readme_and_of_the_start_runs():
    """What a person types first, in one namespace a page; the lines on a network of one's own are in the cookbook."""
    for page, number in ((README, 1), (PAGES["start.md"], 2)):
        namespace = {}
        for block in re.findall(r"```python\n(.*?)```", page, re.S)[:number]:
            exec(block, namespace)
        assert namespace["images"].shape == (64, 8, 8, 1)
        assert namespace["energies"].shape == (64,)


@pytest.mark.slow
def test_the_readmes_main_command_ends_with_samples_closer_to_digits_than_to_noise(tmp_path):
    from sklearn.svm import SVC

    words = [sys.executable, "run.py", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
    for more in [], ["--mode=sample", "--config.sample.num_images=256"]:
        subprocess.run([*words, *more], cwd=ROOT, env=user_environment(), check=True)
    train, test = memory.digits("train"), memory.digits("test")
    known = train.images.reshape(len(train.images), -1) / 255
    samples = np.load(next((tmp_path / "run" / "samples").glob("*.npz")))["images"].reshape(256, -1)

    def nearest(rows):
        return np.median(np.linalg.norm(rows[:, None] - known, axis=-1).min(1))

    real = nearest(test.images.reshape(len(test.images), -1) / 255)
    noise = nearest(np.random.default_rng(0).uniform(size=samples.shape))
    assert nearest(samples) < real + 0.4 * (noise - real), "1.66 where test images have 1.05 and noise 3.52"
    classes = np.bincount(SVC().fit(known, train.labels).predict(samples), minlength=10)
    assert (classes > 0).sum() >= 9, classes
    assert classes.max() < 0.4 * 256, "collapsed to one class"
