"""docs/reliability.md names, for each fault, a test that exists."""

import re

import pytest
from conftest import ROOT

DOCUMENT = ROOT / "docs" / "reliability.md"


def named_tests(text):
    """The (file, function) pairs that a text names as `test_file.py::test_function`."""
    return re.findall(r"(test_\w+\.py)::(test_\w+)", text)


def rows(text):
    """The rows of the text's tables, without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if not set(line) <= set("|- :") and not line.startswith(("| fault ", "| claim "))]


def test_every_test_that_the_document_names_exists():
    pairs = named_tests(DOCUMENT.read_text())
    assert len(pairs) > 20
    missing = [pair for pair in pairs if f"def {pair[1]}(" not in (ROOT / "tests" / pair[0]).read_text()]
    assert missing == []


@pytest.mark.parametrize("row", rows(DOCUMENT.read_text()))
def test_every_row_names_a_test(row):
    assert named_tests(row), row
