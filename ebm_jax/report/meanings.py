"""What each number of an evaluation means in words, and how good it is where there is something to compare it with."""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ebm_jax.report.numbers import BETWEEN, Number

Values = Mapping[str, tuple[Number, Number | None]]
MIXED = 1.01  # largest R-hat, Vehtari et al. 2021
ENOUGH = 400.0  # effective samples, the same paper
SURE = 2.0  # standard errors
CLOSE_SHARE = 0.01  # of test images, by the metric's definition
UNBOUNDED = 0.01  # accuracy that an attack without bounds may leave (ebm_jax/metrics/robustness.py)
ALIKE = ("train", "the other half of the inside (control)")  # sets that no score should tell from test images
REFERENCE_ROW = re.compile(r"(\S+) images")
GOOD, BAD, NEUTRAL = "good", "bad", ""


class Verdict(NamedTuple):
    """How good a number is."""

    tone: str
    """GOOD, BAD or NEUTRAL."""
    words: str


class _Case(NamedTuple):
    """One number to judge, and what it can be compared with."""

    value: Number
    error: Number | None
    values: Values
    """All numbers of the metric."""
    row: str
    """Of the value's name, if it lies in a grid; else empty."""
    column: str
    chance: float | None
    """Accuracy of a guess; None: unknown."""


class _Meaning(NamedTuple):
    pattern: str
    """Of the value's name, or of its column in a grid."""
    words: str
    judge: Callable[[_Case], Verdict | None] = lambda case: None


def _mixing(case: _Case) -> Verdict:
    good = case.value <= MIXED
    return Verdict(GOOD if good else BAD, f"{'no sign against mixing' if good else 'not mixed'}: good is below {MIXED}")


def _size(case: _Case) -> Verdict | None:
    if case.value >= ENOUGH:
        return Verdict(GOOD, f"at least {ENOUGH:.0f}, enough for R-hat and quantiles")
    return Verdict(BAD, f"few: {ENOUGH:.0f} are wanted for R-hat and quantiles")


def _separation(case: _Case) -> Verdict | None:
    near = _within(case, 0.5)
    if case.row.removeprefix("AUROC, ") in ALIKE:
        above = "training images score higher than test images: overfitting" if case.value < 0.5 else ""
        return Verdict(GOOD, "0.5 but for chance, as it should be here") if near else Verdict(NEUTRAL, above)
    if near:
        return Verdict(BAD, "chance level: the score tells nothing")
    if case.value < 0.5:
        return Verdict(BAD, "below chance: these images score higher than the data's own")
    return Verdict(
        GOOD if case.value >= 0.9 else NEUTRAL, f"chance is 0.5, perfect is 1: {2 * case.value - 1:.0%} of the way"
    )


def _accuracy(case: _Case) -> Verdict | None:
    if case.chance is None:
        return None
    if case.value <= case.chance or _within(case, case.chance):
        return Verdict(BAD, f"chance level, {case.chance:.3g}")
    return Verdict(NEUTRAL, f"chance is {case.chance:.3g}")


def _memory(case: _Case) -> Verdict | None:
    expected = case.values.get("that share if nothing is remembered", (math.nan, None))[0]
    if not math.isfinite(expected):
        return None
    if case.value <= expected or _within(case, expected):
        return Verdict(GOOD, f"as often as by chance: {expected:.3g} is expected without memory")
    return Verdict(NEUTRAL, f"more than the {expected:.3g} expected without memory; see the card for what that proves")


def _copies(case: _Case) -> Verdict:
    if case.value <= CLOSE_SHARE:
        return Verdict(GOOD, f"at most the {CLOSE_SHARE:g} of test images")
    return Verdict(NEUTRAL, f"test images have {CLOSE_SHARE:g}")


def _unbounded(case: _Case) -> Verdict:
    if case.value > UNBOUNDED:
        return Verdict(BAD, f"above {UNBOUNDED:g} the attack is blind: the other accuracies prove nothing")
    return Verdict(GOOD, f"at most {UNBOUNDED:g}, as an attack that sees must have it")


def _masked(case: _Case) -> Verdict:
    return Verdict(BAD, "the attack may be blind: see the card") if case.value else Verdict(GOOD, "none")


def _smaller(case: _Case) -> Verdict | None:
    return _beside(case, lambda own, best: f"{own / best:.1f} times that" if best > 0 else "")


def _larger(case: _Case) -> Verdict | None:
    return _beside(case, lambda own, best: f"{own / best:.0%} of that" if best > 0 else "")


def _beside(case: _Case, ratio: Callable[[Number, Number], str]) -> Verdict | None:
    """The number beside the one of real images that the model never saw, in the same column."""
    others = {
        row: name for name in case.values for row, _, column in [name.partition(BETWEEN)] if column == case.column
    }
    best_row = next((row for row in others if REFERENCE_ROW.fullmatch(row)), None)
    if best_row is None or not case.row:
        return None
    if case.row == best_row:
        return Verdict(NEUTRAL, "real images that the model never saw, measured alike")
    best, error = case.values[others[best_row]]
    if _within(case, best, error):
        return Verdict(GOOD, f"within the errors of {best_row}, {best:.3g}")
    words = ratio(case.value, best)
    return Verdict(NEUTRAL, f"{best_row} have {best:.3g}{': ' * bool(words)}{words}")


def _within(case: _Case, other: Number, other_error: Number | None = None) -> bool:
    """Whether a number lies within `SURE` standard errors of another; False without an error."""
    error = math.hypot(case.error or 0.0, other_error or 0.0)
    return error > 0 and abs(case.value - other) <= SURE * error


# fmt: off
MEANINGS = (
    _Meaning(r"split R-hat of energy", "spread of energies between chains over that within them; 1: they all see the same law", _mixing),
    _Meaning(r"effective sample size of energy", "independent draws that the chains are worth, by their energies", _size),
    _Meaning(r"autocorrelation .*", "0: the chain has forgotten; 1: it stands still"),
    _Meaning(r"acceptance", "share of proposals that a Metropolis test takes"),
    _Meaning(r"energy of .*, mean", "of the same energy: lower is what the model takes for likelier"),
    _Meaning(r"AUROC, .*", "probability that a test image scores higher than one of this set; ties count half", _separation),
    _Meaning(r"FPR at 95 % TPR, .*", "share of this set above a threshold that 95 % of test images pass; 0 is perfect, chance is 0.95"),
    _Meaning(r"share of samples nearer to train than to test", "samples whose nearest image is a training image", _memory),
    _Meaning(r"that share if nothing is remembered", "by the sizes of the two sets alone"),
    _Meaning(r"share of samples closer to train than 99 % of test images", "copies would be that close", _copies),
    _Meaning(r"distance of .*, median", "L2 over all pixels in [0, 1]"),
    _Meaning(r"log Z .*", "bounds of the log of the normaliser; they should meet"),
    _Meaning(r"gap of log Z, nats", "between the two bounds; 0: the likelihood is known exactly"),
    _Meaning(r"effective sample size, (forward|reverse)", "annealed chains that carry the weight; 1: one chain alone, and the bound means little"),
    _Meaning(r"log-likelihood at (most|least) .*", "nats an image, of the data under exp(-U)/Z; higher is better"),
    _Meaning(r"bits per dimension at (most|least) .*", "the same as bits a pixel value; lower is better"),
    _Meaning(r"FID", "Fréchet distance of Inception features; 0 is perfect; comparable with published ones at 50,000 samples only"),
    _Meaning(r"Inception Score", "from 1; higher is better, blind to missing variety within a class"),
    _Meaning(r"KID", "squared kernel distance of Inception features; 0 is perfect, and needs few samples"),
    _Meaning(r"classifier distance", "Fréchet distance of the project's own classifier's features; 0 is perfect; no FID", _smaller),
    _Meaning(r"classifier score", "from 1 to the number of classes; high: sure of each image, and all classes occur", _larger),
    _Meaning(r"class coverage", "1: all classes as often as in the data", _larger),
    _Meaning(r"agreement with the asked class", "share of samples that a classifier gives the class asked for", _larger),
    _Meaning(r"precision", "share of samples that look like data", _larger),
    _Meaning(r"recall", "share of data that some sample looks like", _larger),
    _Meaning(r"density", "as precision, by counts; may exceed 1"),
    _Meaning(r"coverage", "share of data with a sample near by; 1 is perfect"),
    _Meaning(r"accuracy", "share of test images given their class", _accuracy),
    _Meaning(r"accuracy under an attack in .* without bounds", "share of images still right where pixels may change without limit; 0 for an honest attack", _unbounded),
    _Meaning(r"accuracy, .*", "share of images still right while pixels are changed by at most the radius", _accuracy),
    _Meaning(r"signs of masked gradients, .*", "violations of what an honest attack must show", _masked),
    _Meaning(r"expected calibration error.*", "mean gap between confidence and accuracy; 0: as often right as it says"),
    _Meaning(r"negative log-likelihood of labels.*", "of the right class; 0: sure and right; smaller is better"),
    _Meaning(r"temperature of the fit", "that makes the confidences honest; 1: they are; above 1: too sure"),
)
# fmt: on


def meaning_of(name: str) -> str:
    """What a value means, by its name in evaluation.json; empty if that is not known, as of a user's own metric."""
    found = _found(name)
    return found.words if found else ""


def verdict_of(name: str, values: Values, num_classes: int | None = None) -> Verdict | None:
    """How good the value of this name is; None where there is nothing to compare it with.

    Args:
      values: all values of the metric: a number and its standard error, by name.
      num_classes: of the model; None or 1: it has none, so the chance level is not known.
    """
    value, error = values[name]
    found = _found(name)
    if found is None or not math.isfinite(value):
        return None
    row, between, column = name.partition(BETWEEN)
    chance = 1 / num_classes if num_classes and num_classes > 1 else None
    return found.judge(_Case(value, error, values, row if between else "", column if between else name, chance))


def _found(name: str) -> _Meaning | None:
    row, between, column = name.partition(BETWEEN)
    parts = (column, row) if between else (name,)
    return next((one for part in parts for one in MEANINGS if re.fullmatch(one.pattern, part)), None)
