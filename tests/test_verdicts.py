"""What evaluators say when a number is not what it seems."""

from pathlib import Path

import numpy as np
from conftest import changed

from configs import digits_contrastive as digits
from ebm_jax import trained
from ebm_jax.data import memory
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import chains, classification
from ebm_jax.evaluators.common import Evidence


def test_a_fit_at_its_bound_is_told_on_the_terminal_and_in_the_protocol(monkeypatch, capsys):
    config = changed(digits.get_config(), model__num_classes=10)
    of_run = trained.TrainedRun(config, {}, parallel.device_mesh(), 0, Path("nowhere"), {})
    data = dict.fromkeys(("eval.split", "eval.reference_split"), memory.digits("test"))
    said = {}
    for sign in (1.0, 0.0):  # the right class is surest, or no class is surer than another

        def logits(run, key, images, note, sign=sign):
            labels = data["eval.split"].labels
            shift = np.zeros((len(images), 10)) if sign else np.random.default_rng(0).normal(size=(len(images), 10))
            shift[np.arange(len(images)), labels] += 1.0
            return shift

        monkeypatch.setattr(classification, "logits_of", logits)
        outcome = classification.measure(of_run, Evidence(data, None, None, print))
        said[sign] = outcome.protocol["calibration"], capsys.readouterr().err
    assert "THE FIT STOPPED AT ITS BOUND: the smaller T, the likelier the labels" in said[1.0][0]
    assert "classification: the fit of the temperature stopped at its bound; the smaller T" in said[1.0][1]
    assert said[1.0][1].count("\n") == 1
    assert "STOPPED" not in said[0.0][0]
    assert said[0.0][1] == ""


def test_chains_that_accept_nothing_say_why_and_others_do_not():
    ends = np.array([[0.0, 1.0, 0.5, 0.5]])
    told = chains._of_no_move(np.zeros((5, 2)), ends, step_size=8.0, temperature=1.0)
    assert "HARDLY A MOVE WAS ACCEPTED" in told
    assert "standard deviation 4 " in told
    assert "50% of the pixels lie at 0 or 1" in told
    assert "chain.step_size" in told
    assert chains._of_no_move(np.full((5, 2), 0.5), ends, step_size=8.0, temperature=1.0) == ""
