"""A terminal shows what a name from outside holds, and never obeys it."""

import re

import pytest

import run
from ebm_jax import registry, schema
from ebm_jax.evaluators import card, ood
from ebm_jax.evaluators.card import Evaluation, Measured
from ebm_jax.evaluators.common import Outcome, Value
from ebm_jax.kinds import shown
from ebm_jax.report import console, progress
from ebm_jax.tasks import inpaint
from ebm_jax.types import BadInput, printable

EVIL = "a\x1b[2J\x1b]0;title\x07\rb\x9bc\u202ed\x7f\ud800"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800]")


def is_harmless(text):
    return not OBEYED.search(text)


def test_letters_of_all_languages_stay_and_what_a_terminal_obeys_is_escaped():
    assert printable("Größe 日本 «x» ∇U λ² ± 0.1 ☃") == "Größe 日本 «x» ∇U λ² ± 0.1 ☃"
    assert not is_harmless(EVIL)
    assert printable(EVIL) == r"a\x1b[2J\x1b]0;title\x07\rb\x9bc\u202ed\x7f\ud800"
    assert shown(EVIL)[1:-1] == printable(EVIL)


def test_every_refusal_and_every_line_is_escaped(capsys, monkeypatch):
    assert is_harmless(str(BadInput(f"{EVIL} is unknown;\nuse another")))
    console.say(EVIL)
    console.warn(EVIL)
    console.table(EVIL, [["value", EVIL], [EVIL, "1"]])
    monkeypatch.setattr(progress, "QUIET", 0.0)
    with progress.Board(EVIL), progress.phase(EVIL):
        progress.note(EVIL)
    out, err = capsys.readouterr()
    assert "title" in out
    assert "title" in err
    assert is_harmless(out)
    assert is_harmless(err)


def test_a_command_with_such_a_path_is_refused_in_a_line_that_does_nothing(capsys, tmp_path):
    assert run.main(["run.py", "--mode=sample", f"--workdir={tmp_path}/{EVIL[:-1]}"]) == 2
    err = capsys.readouterr().err
    assert r"\x1b[2J" in err
    assert is_harmless(err)


def test_a_card_is_escaped_and_keeps_its_lines():
    outcome = Outcome({EVIL: Value(1.0)}, {"set": EVIL}, {})
    text = card.as_card(Evaluation({"run": EVIL}, {"ood": Measured(outcome, {}, 1.0)}, {"fid": EVIL}))
    assert is_harmless(text)
    assert text.count("\n") > 8


LONG = "x" * 10_000


def test_an_unknown_word_is_cut_wherever_it_stands():
    config = schema.defaults()
    for call in (
        lambda: registry.named("model.name", LONG, {"small": 1}),
        lambda: inpaint.known_pixels(schema.with_values(config, {"sample.inpaint.mask": LONG})),
        lambda: ood._config_of(config, LONG),
    ):
        with pytest.raises(BadInput, match=r"xxx\.\.\. is unknown; use") as raised:
            call()
        assert len(str(raised.value)) < 500
