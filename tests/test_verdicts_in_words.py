"""What an evaluation's numbers say in words, by references that this file works out anew."""

import math

import numpy as np
import pytest
from conftest import changed
from scipy import stats

from configs import digits, digits_contrastive, digits_joint, folder
from ebm_jax import assemble
from ebm_jax.evaluators import card, verdicts
from ebm_jax.evaluators.card import Evaluation, Measured
from ebm_jax.evaluators.common import Outcome, Value
from ebm_jax.metrics import diagnostics, ood
from ebm_jax.tasks import classify, compose
from ebm_jax.types import BadInput

RNG = np.random.default_rng(0)


def test_independent_draws_have_mixed_few_are_too_few_and_chains_that_keep_apart_have_not():
    draws = RNG.normal(size=(500, 8))
    assert verdicts.mixing(diagnostics.mixing(draws)).startswith("no sign against mixing: R-hat 1.00")
    assert verdicts.mixing(diagnostics.mixing(draws[:20])).startswith(("too few draws", "not mixed"))
    apart = verdicts.mixing(diagnostics.mixing(draws + 10 * np.arange(8)))
    assert apart.startswith("not mixed: R-hat ")
    assert "1.01 (Vehtari et al. 2021)" in apart
    assert verdicts.mixing(diagnostics.Mixing(math.nan, 0.0)).startswith("not mixed")
    assert verdicts.mixing(diagnostics.Mixing(1.0, 399.0)).startswith("too few draws")


def test_random_guesses_are_at_chance_level_in_nearly_every_draw():
    found = [RNG.random(400) < 0.1 for _ in range(300)]
    words = [
        verdicts.accuracy(Value(float(one.mean()), float(one.std() / math.sqrt(400))), 0.1).split(":")[0]
        for one in found
    ]
    above = stats.norm.sf(verdicts.ERRORS)  # of a normal law; a share of 400 is nearly one
    assert words.count("chance level") > 300 * (1 - 2 * above) - 3 * math.sqrt(300 * 0.1)
    assert verdicts.accuracy(Value(0.9, 0.02), 0.1).startswith("above chance")
    assert verdicts.accuracy(Value(0.02, 0.01), 0.1).startswith("below chance")


def test_labels_are_better_than_even_odds_below_the_logarithm_of_the_classes():
    assert verdicts.surprise(math.log(10) - 0.01, 10).startswith("better")
    assert verdicts.surprise(math.log(10) + 0.01, 10).startswith("NO better")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (Value(5.4, 0.6), "farther than real images: 5.4, and 1.56 for as many test images (3.46 times)"),
        (Value(2.2, 0.5), "as near as real images"),
        (Value(0.2, 0.1), "as near as real images"),
    ],
)
def test_a_distance_is_as_near_as_real_images_within_two_errors_or_below(samples, words):
    assert verdicts.distance(samples, Value(1.56, 0.37), "test images").startswith(words)


def test_agreement_is_told_beside_real_images_and_chance():
    real = Value(0.908, 0.009)
    assert verdicts.agreement(Value(0.11, 0.01), real, 10).startswith("chance level: 11.0%")
    assert verdicts.agreement(Value(0.80, 0.013), real, 10).startswith("less often than real images")
    assert verdicts.agreement(Value(0.90, 0.01), real, 10).startswith("as often as real images")


def test_chains_drift_where_the_distance_grows_by_more_than_its_errors():
    real = Value(1.5, 0.1)
    assert verdicts.drift(Value(5.0, 0.5), Value(5.9, 0.5), 1_000, real).startswith("they stay")
    assert verdicts.drift(Value(5.0, 0.5), Value(60.0, 5.0), 1_000, real).startswith("they drift away")
    assert verdicts.drift(Value(5.0, 0.5), Value(1.0, 0.5), 1_000, real).startswith("they stay")


def test_as_many_close_samples_as_close_test_images_are_no_sign_of_copies():
    assert verdicts.copies(0.012, 0.01, 1_000).startswith("no sign of copies: 1.2%")
    assert verdicts.copies(0.03, 0.01, 1_000).startswith("look for copies: 3.0%")
    assert verdicts.copies(0.03, 0.01, 30).startswith("no sign of copies"), "one of thirty is chance"


def test_a_score_at_chance_a_good_one_and_one_the_wrong_way_round_have_their_words():
    inside, same, below = RNG.normal(size=300), RNG.normal(size=300), RNG.normal(size=300) - 3
    assert verdicts.auroc("noise", Value(*ood.auroc(inside, same))).startswith("noise: chance level")
    assert verdicts.auroc("noise", Value(*ood.auroc(inside, below))).startswith("noise: outstanding")
    assert verdicts.auroc("noise", Value(*ood.auroc(below, inside))).startswith("noise: the wrong way round")
    assert verdicts.auroc("noise", Value(0.75, 0.01)).startswith("noise: acceptable")
    assert verdicts.auroc("noise", Value(0.6, 0.01)).startswith(f"noise: {verdicts.POOR}")


def test_bits_are_beside_those_of_uniform_noise():
    assert verdicts.bits(7.9, 256).startswith(
        "better than uniform noise: at most 7.9 bits per dimension, and noise has 8"
    )
    assert verdicts.bits(8.1, 256).startswith("NOT KNOWN")


def test_verdicts_stand_on_the_card_above_the_numbers_and_in_the_json():
    said = "not mixed: R-hat 4.2"
    evaluation = Evaluation({}, {"chains": Measured(Outcome({"R-hat": Value(4.2)}, {}, {}, (said,)), {}, 1.0)}, {})
    text = card.as_card(evaluation)
    assert text.index("## chains") < text.index(f"- **{said}**") < text.index("| R-hat |")
    assert f'"verdicts": [\n        "{said}"' in card.as_json(evaluation)


def test_only_runs_whose_loss_has_an_image_under_several_classes_are_told_to_classify():
    for make, learns in ((digits_joint.get_config, True), (digits.get_config, False)):
        assert assemble.learns_to_classify(make()) is learns
    assert assemble.learns_to_classify(changed(digits.get_config(), loss__label_weight=1.0))
    assert assemble.learns_to_classify(changed(digits.get_config(), method__name="my_package.mine:method"))


def test_a_run_without_classes_is_refused_with_what_it_is_good_for_and_the_key_that_learns_to_classify():
    with pytest.raises(BadInput, match=r"good for generate, .*method\.name=joint"):
        classify.check(changed(digits_contrastive.get_config(), model__num_classes=1))
    with pytest.raises(BadInput, match=r"good for .*super_resolve, colourise and neighbours"):
        classify.check(changed(folder.get_config("cpu"), model__num_classes=1))


def test_a_run_without_classes_is_told_to_compose_with_other_runs_alone():
    for num_classes, cure in ((1, "only; give other runs in"), (10, r"a sum, such as 1\+3, or other runs in")):
        with pytest.raises(BadInput, match=cure):
            compose.check(changed(digits_contrastive.get_config(), model__num_classes=num_classes))
