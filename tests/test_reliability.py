"""docs/reliability.md names, for each fault, a test that exists."""

import re

from conftest import ROOT

DOCUMENT = (ROOT / "docs" / "reliability.md").read_text()


def named_tests(text):
    """The (file, function) pairs that a text names as test_FILE.py::test_FUNCTION."""
    return re.findall(r"(test_\w+\.py)::(test_\w+)", text)


def rows_with_tests(text):
    """The rows of the tables whose last column is the test."""
    tables = re.findall(r"^\|.*\| test \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [row for table in tables for row in table.splitlines()]


def test_every_test_that_the_document_names_exists():
    pairs = named_tests(DOCUMENT)
    assert len(pairs) > 20
    missing = [pair for pair in pairs if f"def {pair[1]}(" not in (ROOT / "tests" / pair[0]).read_text()]
    assert missing == []


def test_every_fault_in_the_documents_tables_has_a_test():
    rows = rows_with_tests(DOCUMENT)
    assert len(rows) > 20
    assert [row for row in rows if not named_tests(row.split("|")[-2])] == []
    assert rows_with_tests("| fault | test |\n|---|---|\n| fire | |\n") == ["| fire | |"]
