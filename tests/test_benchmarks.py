"""The benchmarks' own arithmetic: who is timed when, and what a table says of it."""

import statistics

import pytest

from benchmarks.table import Claim, Section, markdown
from benchmarks.timing import Times, in_turn


def test_candidates_take_turns_and_the_first_round_is_thrown_away():
    calls, seconds = [], iter([100.0, 100.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])

    def candidate(name):
        def call():
            calls.append(name)
            return next(seconds)

        return call

    times = in_turn({"a": candidate("a"), "b": candidate("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert times == {"a": Times([1.0, 3.0, 2.0]), "b": Times([10.0, 30.0, 20.0])}
    assert [one.median for one in times.values()] == [2.0, 20.0]


def test_quartiles_are_those_of_the_values_themselves():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert Times(values).quartiles == (2.0, 4.0)
    assert Times(values).median == statistics.median(values)


def test_a_table_says_which_claims_are_missed():
    claims = [Claim("one", "at least 2", "3", True), Claim("other", "at least 2", "1", False)]
    text = markdown([Section("Title", "Note.", {"ours": Times([0.0012, 0.25])}, claims)], "machine")
    assert "| one | at least 2 | 3 | reached |" in text
    assert "| other | at least 2 | 1 | **missed** |" in text
    assert "| ours | 126 |" in text


@pytest.mark.parametrize(
    ("words", "says"), [(["--only=chains"], "no section chains"), (["--only=scan", "--write"], "all")]
)
def test_what_cannot_be_measured_is_one_line_and_status_2(words, says, monkeypatch, capsys):
    from benchmarks import __main__ as command

    monkeypatch.setattr("sys.argv", ["benchmarks", *words])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
