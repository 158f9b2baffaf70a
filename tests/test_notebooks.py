"""The notebooks: kept with their outputs, and every cell of each runs from the beginning."""

import pytest
from conftest import ROOT, user_environment

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT = 1_200  # seconds a cell; a laptop's whole notebook takes two or three minutes


def read(path):
    return pytest.importorskip("nbformat", reason="needs nbformat: requirements-dev.txt").read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


def test_there_are_four_and_the_page_of_the_docs_names_them():
    page = (ROOT / "docs" / "notebooks.md").read_text()
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]
    assert all(f"`notebooks/{path.name}`" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_its_outputs_and_names_no_machine(path):
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert pictures(notebook) >= 1
    assert not any(output.output_type == "error" for cell in code(notebook) for output in cell.outputs)
    text = path.read_text()
    assert len(text) < 1_000_000
    assert all(word not in text for word in ("/home/", "/root/", "/work/", "/tmp/", "Traceback"))


@pytest.mark.whole
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_draws_as_many_pictures(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="needs nbclient: requirements-dev.txt")
    for name, value in (user_environment() | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    notebook = read(path)
    before = pictures(notebook)
    client.NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert pictures(notebook) == before
