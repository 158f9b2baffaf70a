"""Out-of-distribution scores: AUROC against a count of all pairs and scikit-learn, and sets that are what they say."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed
from sklearn.metrics import roc_auc_score, roc_curve
from test_evaluate import opened

from configs import digits, digits_contrastive, digits_joint
from ebm_jax.data import memory
from ebm_jax.evaluators import ood as evaluator
from ebm_jax.evaluators.common import Evidence
from ebm_jax.metrics import ood, outliers
from ebm_jax.types import BadInput

RNG = np.random.default_rng(0)
INSIDE, OUTSIDE = RNG.normal(0.5, 1, 300), RNG.normal(0, 2, 200)
TIED = np.rint(2 * INSIDE), np.rint(2 * OUTSIDE)
CASES = {"distinct scores": (INSIDE, OUTSIDE), "ties": TIED, "one value": (np.zeros(9), np.zeros(7))}
CASES |= {"apart": (np.arange(5.0) + 9, np.arange(4.0)), "float32": tuple(np.float32(part) for part in TIED)}


@pytest.mark.parametrize("case", CASES)
def test_auroc_is_the_share_of_all_pairs_in_the_right_order_and_scikit_learns(case):
    inside, outside = CASES[case]
    right = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    found = ood.auroc(inside, outside)
    assert abs(found.value - right) < 1e-12
    is_inside = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    assert abs(found.value - roc_auc_score(is_inside, np.r_[inside, outside])) < 1e-12


def test_swapped_energies_give_one_minus_the_auroc():
    for inside, outside in CASES.values():
        value, error = ood.auroc(inside, outside)
        for swapped in (ood.auroc(outside, inside), ood.auroc(-inside, -outside)):
            assert abs(swapped.value - (1 - value)) < 1e-12
            assert abs(swapped.standard_error - error) < 1e-12


@pytest.mark.parametrize(("m", "n"), [(9, 2), (3, 8), (2, 40), (30, 30)])
def test_the_standard_error_of_the_auroc_is_delongs_over_all_pairs(m, n):
    """Biometrics 44, 1988, equations 3 to 5, for one curve: ψ of each pair, its means over rows and over columns."""
    rng = np.random.default_rng([m, n])
    inside, outside = rng.integers(0, 6, m) / 2, rng.integers(-2, 5, n) / 2
    psi = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in outside] for x in inside])
    assert (psi == 0.5).any(), "there are ties"
    s10 = sum((row.sum() / n - psi.sum() / (m * n)) ** 2 for row in psi) / (m - 1)
    s01 = sum((column.sum() / m - psi.sum() / (m * n)) ** 2 for column in psi.T) / (n - 1)
    found = ood.auroc(inside, outside)
    assert abs(found.value - psi.mean()) < 1e-12
    assert abs(found.standard_error - np.sqrt(s10 / m + s01 / n)) < 1e-12


def test_the_standard_error_of_the_auroc_is_its_spread_over_drawn_sets():
    rng = np.random.default_rng(1)
    drawn = [ood.auroc(rng.normal(0.5, 1, 80), rng.normal(0, 2, 60)) for _ in range(1500)]
    values, errors = np.array(drawn).T
    assert abs(errors.mean() / values.std() - 1) < 5 / np.sqrt(2 * len(drawn)), "a standard deviation's own error"
    truth = 0.588545  # P(N(0.5, 1) > N(0, 2²)) = Φ(0.5 / √5)
    assert abs(values.mean() - truth) < 5 * values.std() / np.sqrt(len(drawn))


def test_the_false_positive_rate_is_that_of_scikit_learns_curve_and_of_the_definition():
    for inside, outside in CASES.values():
        is_inside = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
        false, true, _ = roc_curve(is_inside, np.r_[inside, outside], drop_intermediate=False)
        for rate in (0.5, 0.95, 1.0):
            found = ood.false_positive_rate(inside, outside, rate)
            assert abs(found - false[true >= rate].min()) < 1e-12
    false, true = ood.curve(INSIDE, OUTSIDE, 500)
    area = np.trapezoid(true, false)
    assert abs(area - ood.auroc(INSIDE, OUTSIDE).value) < 0.01


def test_the_bootstrap_of_a_mean_has_its_known_standard_error():
    inside = 3 * INSIDE  # so that both sets contribute to the error
    found = ood.bootstrap_standard_error(RNG, lambda a, b: a.mean() - b.mean(), inside, OUTSIDE, n=1000)
    known = np.sqrt(inside.var() / len(inside) + OUTSIDE.var() / len(OUTSIDE))
    assert abs(found / known - 1) < 5 / np.sqrt(2 * 1000)


@pytest.mark.parametrize(
    "damage",
    [lambda x: np.roll(x, 1, 2), lambda x: 0.9 * x, lambda x: x[:, ::-1]],
    ids=["a shift by one pixel", "another scale", "upside down"],
)
def test_a_set_against_itself_is_one_half_and_otherwise_preprocessed_is_not(damage):
    """Scores by the energy of a Gaussian fitted to the training digits."""
    train, images = (memory.digits(split).images / 255 for split in ("train", "test"))
    flat = train.reshape(-1, 64)
    precision = np.linalg.inv(np.cov(flat.T) + 0.02 * np.eye(64))

    def scores_of(x):
        away = x.reshape(-1, 64) - flat.mean(0)
        return -np.einsum("ni,ij,nj->n", away, precision, away)

    scores = scores_of(images)
    assert ood.auroc(scores, scores_of(images)).value == 0.5
    halves = ood.auroc(scores[::2], scores[1::2])
    assert abs(halves.value - 0.5) < 3 * halves.standard_error
    damaged = ood.auroc(scores, scores_of(damage(images)))
    assert abs(damaged.value - 0.5) > 5 * damaged.standard_error, damaged


def quadratic(images, labels):
    """U(x, y) = Σ (x - y/2)² / 2, with the gradient x - y/2."""
    return 0.5 * jnp.square(images - 0.5 * labels.reshape(-1, 1, 1, 1)).sum((1, 2, 3))


def test_energies_over_classes_and_the_norms_of_their_gradients_are_the_closed_form():
    x = jnp.asarray(np.random.default_rng(2).uniform(size=(6, 2, 2, 1)), jnp.float32)
    each = np.stack([np.asarray(quadratic(x, jnp.full(6, y))) for y in range(3)], 1).astype(np.float64)
    differences = np.stack([np.asarray(x - 0.5 * y, np.float64).reshape(6, -1) for y in range(3)], 1)
    weights = np.exp(-each) / np.exp(-each).sum(1, keepdims=True)
    expected = {
        ood.minimum_over_classes: (each.min(1), differences[np.arange(6), each.argmin(1)]),
        ood.log_sum_exp_over_classes: (-np.log(np.exp(-each).sum(1)), (weights[:, :, None] * differences).sum(1)),
    }
    for make, (energies, gradients) in expected.items():
        found = ood.energy_and_gradient_norm(make(quadratic, 3), x)
        np.testing.assert_allclose(found[0], energies, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], np.linalg.norm(gradients, axis=1), rtol=1e-4)


def test_typicality_is_highest_at_the_mean_energy_of_the_training_set():
    found = ood.typicality(np.array([-3.0, 1.0, 2.0, 9.0]), np.array([0.0, 4.0]))
    np.testing.assert_array_equal(found, [-5.0, -1.0, 0.0, -7.0])


def test_the_sets_are_built_exactly():
    images, rng = memory.digits("test").images[:40], np.random.default_rng(3)
    noise = outliers.uniform(rng, np.zeros((500, 8, 8, 3), np.uint8))
    counts = np.bincount(noise.reshape(-1), minlength=256)
    mean = noise.size / 256
    assert abs(((counts - mean) ** 2 / mean).sum() - 255) < 5 * np.sqrt(2 * 255), "chi-squared of 256 equal levels"
    plain = outliers.constant(rng, np.zeros((500, 8, 8, 3), np.uint8))
    assert (np.ptp(plain, axis=(1, 2)) == 0).all()
    assert len(np.unique(plain[:, 0, 0], axis=0)) > 490, "a colour of its own each"
    mixed = outliers.interpolation(rng, images)
    for one, image in zip(mixed, images, strict=True):
        others = np.flatnonzero((np.abs(2.0 * one - image - images - 0.5) <= 0.5).all((1, 2, 3)))
        assert len(others) > 0
        assert not (images[others] == image).all((1, 2, 3)).any()
    turned = outliers.rotation(rng, images)
    np.testing.assert_array_equal(turned[:, 7 - 2, 5], images[:, 5, 2], err_msg="counter-clockwise")
    four = images
    for _ in range(4):
        four = outliers.rotation(rng, four)
    np.testing.assert_array_equal(four, images)
    assert {made.dtype for made in (noise, plain, mixed, turned)} == {np.dtype(np.uint8)}


def test_what_cannot_be_made_is_refused():
    with pytest.raises(BadInput, match="8x9 cannot be turned"):
        outliers.rotation(RNG, np.zeros((2, 8, 9, 1), np.uint8))
    with pytest.raises(BadInput, match="needs two"):
        outliers.interpolation(RNG, np.zeros((1, 8, 8, 1), np.uint8))


def named(workdir, words, **changes):
    of_run = opened(workdir, eval__ood__sets=words, eval__ood__images=30, **changes)
    splits = {"eval.split": "test", "eval.reference_split": "train"}
    return of_run, Evidence({key: of_run.data(split) for key, split in splits.items()})


def test_the_runs_own_images_by_another_name_or_in_a_file_score_the_same_to_the_bit_and_shifted_ones_do_not(
    workdir,
    tmp_path,
):
    own = memory.digits("test")
    np.savez(tmp_path / "same.npz", x_test=own.images)
    np.savez(tmp_path / "shifted.npz", x_test=np.roll(own.images, 1, 2))
    np.savez(tmp_path / "large.npz", x_test=own.images.repeat(4, 1).repeat(4, 2).repeat(3, 3))
    files = [f"npz:{tmp_path}/{name}.npz" for name in ("same", "shifted", "large")]
    of_run, evidence = named(workdir, ",".join(["sklearn:digits", "sklearn:digits@train", *files]))
    sets = evaluator.collect(of_run, evidence)
    np.testing.assert_array_equal(sets["sklearn:digits"], sets["inside"])
    np.testing.assert_array_equal(sets[files[0]], sets["inside"])
    np.testing.assert_array_equal(sets["sklearn:digits@train"], sets["train"])
    assert sets[files[2]].shape == sets["inside"].shape
    assert np.abs(sets[files[2]].astype(float) - sets["inside"]).mean() < 20, "enlarged and coloured, and back again"
    energies = {name: scored["min U"].energies for name, scored in evaluator.score(of_run, sets, evidence.note).items()}
    np.testing.assert_array_equal(energies[files[0]], energies["inside"])
    assert ood.auroc(energies["inside"], energies[files[0]]).value == 0.5
    assert (energies[files[1]] != energies["inside"]).all()


def test_the_evaluator_gives_every_set_under_every_score_with_its_hash(workdir):
    of_run, evidence = named(workdir, "train,uniform,rotation")
    values, protocol, pictures, _ = evaluator.measure(of_run, evidence)
    names = {name.split(" / ")[1] for name in values}
    assert names == {
        f"{score}{energy}{end}"
        for energy in ("min U", "lse U")
        for score, end in (("-", ""), ("-|∇ ", "|"), ("typicality of ", ""))
    }
    energy_fn = jax.jit(lambda x, y: of_run.energy_fn(y)(x))
    by_hand = {}
    for name, images in evaluator.collect(of_run, evidence).items():
        assert protocol[f"set {name}"].endswith(evaluator.sha256(images))
        x = images.astype(np.float32) / 255
        each = [np.asarray(energy_fn(jnp.asarray(x), jnp.full(30, y))) for y in range(10)]
        by_hand[name] = -np.min(each, 0)
    found = values["AUROC, uniform / -min U"]
    pairs = by_hand["inside"][:, None] > by_hand["uniform"]
    assert abs(found.number - pairs.mean()) < 2 / pairs.size, "but for a pair or two that rounding may turn"
    assert set(pictures) == {"scores", "curves", "sets"}


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ("unifrom", {}, "eval.ood.sets 'unifrom' is unknown; use some of uniform, constant"),
        ("sklearn:digit", {}, "eval.ood.sets sklearn:digit: data.name 'digit' is not in"),
        ("npz:/no/such.npz", {}, "eval.ood.sets npz:/no/such.npz: /no/such.npz does not exist"),
        ("sklearn:digits@tset", {}, "use one of train, test"),
        ("rotation", {"data__shape": (8, 9, 1)}, "rotation needs square images"),
        ("uniform", {"data__condition": "soft"}, "are vectors; leave it out of eval.metrics"),
    ],
)
def test_a_set_that_is_not_there_is_refused_before_anything_is_measured(workdir, words, changes, message):
    config = changed(opened(workdir).config, eval__ood__sets=words, **changes)
    with pytest.raises(BadInput, match=message):
        evaluator.check(config)


class Classifier:
    """A run of a classifier of three classes with the logits w_y · mean pixel."""

    config = changed(digits_joint.get_config(), **{"model.num_classes": 3})

    def map(self, fn, images, *, batch_size, note):
        def energy_of(x, labels):
            logits = x.mean((1, 2, 3))[:, None] * jnp.array([[1.0, -2.0, 4.0]])
            every = jnp.concatenate([-logits, -jax.nn.logsumexp(logits, axis=1, keepdims=True)], 1)
            return jnp.take_along_axis(every, labels[:, None], 1)[:, 0]

        return fn(energy_of, jnp.asarray(images))


def test_a_model_with_an_energy_of_no_class_is_scored_by_it():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    scored = evaluator.score(cast(Any, Classifier()), {"inside": images}, print)["inside"]
    assert list(scored) == evaluator.energy_names(Classifier.config) == ["min U", "U"]
    logits = images.mean((1, 2, 3))[:, None] / 255.0 * np.array([1.0, -2.0, 4.0])
    np.testing.assert_allclose(scored["min U"].energies, -logits.max(1), rtol=1e-5)
    np.testing.assert_allclose(scored["U"].energies, -np.log(np.exp(logits).sum(1)), rtol=1e-5)
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = np.abs(weights @ np.array([1.0, -2.0, 4.0])) / 8.0  # of the mean of 64 pixels: its norm is 1/8
    np.testing.assert_allclose(scored["U"].gradient_norms, slope, rtol=1e-5)


def test_without_such_an_energy_classes_are_summed_and_without_classes_there_is_one_energy():
    config = digits_contrastive.get_config()
    assert evaluator.energy_names(config) == ["U"]
    assert evaluator.energy_names(changed(config, **{"model.num_classes": 10})) == ["min U", "lse U"]
    assert evaluator.energy_names(digits.get_config()) == ["min U", "U"]
