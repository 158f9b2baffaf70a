"""Every recipe of docs/cookbook.md runs, in order, in one namespace, as a reader would type them."""

import re
import shutil

import pytest
from conftest import ROOT

RECIPES = re.findall(
    r"^## (\d+)\. (.*?)\n\n```python\n(.*?)```", (ROOT / "docs" / "cookbook.md").read_text(), re.M | re.S
)


@pytest.fixture(scope="module")
def namespace(one_run, tmp_path_factory):
    """The names that the recipes so far have made, in a folder with the run that the cookbook speaks of."""
    folder = tmp_path_factory.mktemp("cookbook")
    shutil.copytree(one_run, folder / "runs" / "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {}


def test_there_are_eleven():
    assert [int(number) for number, _, _ in RECIPES] == list(range(1, 12))


@pytest.mark.whole
@pytest.mark.parametrize("index", range(11), ids=[title for _, title, _ in RECIPES])
def test_recipe_runs(namespace, index):
    exec(compile(RECIPES[index][2], f"docs/cookbook.md recipe {index + 1}", "exec"), namespace)
