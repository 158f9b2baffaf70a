"""What a person sees while a command works: the time left by a clock of its own, phases, and who speaks."""

import io
import time

import pytest
from rich.console import Console
from tqdm import auto

from ebm_jax.report import bars, progress
from ebm_jax.report.progress import Board, Pace


class Clock:
    """A clock that a test moves on."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def shown(board):
    """The board as a terminal of 80 columns shows it, in plain text."""
    terminal = Console(width=80, file=io.StringIO())
    terminal.print(board)
    return terminal.file.getvalue()


def stepped(clock, pace, steps, seconds):
    for step in steps:
        clock.now += seconds
        pace.see(step)


def test_pictures_compilation_saving_and_evaluation_do_not_count_for_the_time_left(clock):
    pace = Pace(0, clock)
    clock.now += 20.0  # reads data, by no phase
    with pace.paused():
        clock.now += 600.0  # compiles
    stepped(clock, pace, range(1, 51), 0.5)
    assert pace.left(250) == pytest.approx(200 * 0.5)
    with pace.paused():
        clock.now += 1_000.0
        with pace.paused():
            clock.now += 1_000.0
        clock.now += 1_000.0
    assert pace.left(250) == pytest.approx(200 * 0.5)
    stepped(clock, pace, range(51, 61), 0.5)
    assert pace.left(250) == pytest.approx(190 * 0.5)
    assert pace.rate() == pytest.approx(2.0)


def test_the_time_left_follows_steps_that_become_slower(clock):
    pace = Pace(0, clock)
    stepped(clock, pace, range(1, 1_001), 0.1)
    stepped(clock, pace, range(1_001, 1_101), 1.0)  # longer than the window
    assert pace.left(1_200) == pytest.approx(100.0)


def test_steps_of_one_call_that_are_seen_together_do_not_count_for_faster_ones(clock):
    pace = Pace(100, clock)
    for call in range(10):
        clock.now += 20.0
        for step in range(20):
            pace.see(101 + 20 * call + step)
            clock.now += 0.001
    assert pace.rate() == pytest.approx(20 / 20.02, rel=0.01)
    assert pace.left(400) == pytest.approx(100 * 1.001, rel=0.01)


def test_a_lap_is_the_rate_of_the_steps_since_the_lap_before(clock):
    pace = Pace(0, clock)
    stepped(clock, pace, range(1, 11), 2.0)
    assert pace.lap(10) == pytest.approx(0.5)
    with pace.paused():
        clock.now += 77.0
    stepped(clock, pace, range(11, 21), 0.25)
    assert pace.lap(20) == pytest.approx(4.0)


def test_nothing_is_foretold_before_the_first_step_nor_after_the_last(clock):
    pace = Pace(5, clock)
    assert (pace.left(10), pace.rate(), pace.lap(5)) == (None, 0.0, 0.0)
    stepped(clock, pace, range(6, 11), 1.0)
    assert pace.left(10) is None


def test_a_log_names_a_phase_that_lasts_before_it_ends_and_says_what_it_took(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LASTS", 0.02)
    with Board("training", clock), progress.phase("compiling the training step"):
        for _ in range(200):
            time.sleep(0.01)
            if told := capsys.readouterr().out:
                break
        assert told == "compiling the training step ...\n"
        clock.now += 22.0
    assert capsys.readouterr().out == "compiling the training step: took 22 s\n"


def test_a_log_has_no_line_for_a_short_phase_and_one_in_a_while_for_how_far_a_long_one_is(clock, capsys):
    with Board("evaluating", clock):
        with progress.phase("saving step 1,000"):
            progress.note("half of it")
        assert capsys.readouterr().out == ""
        with progress.phase("evaluating fid"):
            for done in range(60):
                clock.now += 1.0
                progress.note(f"{done} of 60")
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["evaluating fid: 15 of 60", "evaluating fid: 31 of 60"]
    assert told[-1] == "evaluating fid: took 1 min 00 s"
    assert len(told) == 4


def test_without_a_board_and_on_other_processes_nothing_is_said(clock, capsys, monkeypatch):
    with progress.phase("sampling"):
        progress.note("1 of 2")
    monkeypatch.setattr(progress.processes, "is_first", lambda: False)
    monkeypatch.setattr(progress, "LASTS", 0.0)
    with Board("training", clock) as board, progress.phase("sampling"):
        clock.now += 100.0
        progress.note("1 of 2")
        assert not board.is_live
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_the_panel_has_step_rate_time_left_the_phase_and_how_far_it_is_energies_and_the_last_event(clock):
    board = Board("training digits", clock)
    board.begin(0, 3_000)
    for step in range(1, 1_001):
        clock.now += 0.1
        board.step(step, "U data -0.0123")
    board.event("step 900: a picture\x1b[2J")
    with board.phase("sampling 64 pictures"):
        clock.now += 4.0
        board.note("32 of 64")
        text = shown(board)
    for words in ("training digits", "step 1,000 of 3,000", "10.00 steps/s", "3 min 20 s left", "U data -0.0123"):
        assert words in text
    assert "sampling 64 pictures: 32 of 64, 4.0 s" in text
    assert "last: step 900: a picture\\x1b[2J" in text
    assert "sampling" not in shown(board), "the phase is over"


def test_the_rate_of_a_first_stage_foretells_its_own_end_alone_and_is_forgotten_after_it(clock):
    board = Board("training digits", clock)
    board.begin(0, 1_750, first_stage=1_500)
    for step in range(1, 1_001):
        clock.now += 0.1
        board.step(step, "")
    assert "50 s left of the first stage" in shown(board)
    assert board.line().endswith(" 50 s left of the first stage")
    for step in range(1_001, 1_501):
        clock.now += 0.1
        board.step(step, "")
    assert board.lap() == pytest.approx(10.0)
    assert "left" not in shown(board), "no step of the second stage has been timed"
    for step in (1_501, 1_502):
        clock.now += 1.0
        board.step(step, "")
    assert "4 min 08 s left" in shown(board)
    assert "first stage" not in shown(board)
    board.begin(0, 1_000, first_stage=1_500)
    clock.now += 1.0
    board.step(1, "")
    assert "first stage" not in shown(board), "the run ends in it"


def test_the_time_of_a_phase_stays_in_one_piece_where_its_words_fill_the_line(clock):
    board = Board("evaluating", clock)
    with board.phase("evaluating"):
        clock.now += 73.0
        for length in range(1, 90):
            board.note("of " * (length // 3) + "x" * (length % 3))
            text = shown(board)
            assert "1 min 13 s" in text
            assert max(map(len, text.splitlines())) <= 80


def test_a_bar_of_a_library_is_a_note_on_the_board_and_draws_nothing(clock, monkeypatch, capsys):
    board, notes = Board("preparing", clock), []
    monkeypatch.setattr(board, "note", notes.append)
    monkeypatch.setattr(progress, "_boards", [board])
    drawn = auto.tqdm
    with bars.as_notes():
        for _ in auto.tqdm(range(2_000), desc="Generating train examples...", unit=" examples", mininterval=0):
            pass
        with auto.tqdm(desc="Dl Size...: ", unit=" MiB", mininterval=0) as bar:
            bar.update(3)
            bar.refresh()
    assert notes[-1] == "Dl Size, 3 MiB"
    assert "Generating train examples, 1,999 of 2,000 examples" in notes
    assert not any("2,000 of" in note for note in notes), "a full bar has nothing to tell"
    assert capsys.readouterr() == ("", "")
    assert auto.tqdm is drawn
    assert bars.in_words("Shuffling /tmp/a/b-train.record...", 7, 60_000, " examples") == (
        "Shuffling b-train.record, 7 of 60,000 examples"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (22.4, "22 s"), (59.6, "1 min 00 s"), (307.0, "5 min 07 s"), (12_000.0, "3 h 20 min")],
)
def test_durations_are_told_in_words(seconds, words):
    assert progress.duration(seconds) == words
