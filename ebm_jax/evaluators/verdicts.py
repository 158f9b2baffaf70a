"""What the numbers of an evaluation say, in words, each beside its reference: a threshold and its source, or chance."""

import math

import numpy as np

from ebm_jax.evaluators.common import Value
from ebm_jax.metrics.diagnostics import Mixing

R_HAT = 1.01  # Vehtari et al. 2021: chains are of no use above it
FEWEST_DRAWS = 400  # effective ones, below which R-hat itself is not reliable (the same)
ERRORS = 2.0  # standard errors within which two numbers are not told apart: 95 % of a normal law
GRADES = ((0.9, "outstanding"), (0.8, "excellent"), (0.7, "acceptable"))  # of an AUROC: Hosmer & Lemeshow 2000, 5.2.4
POOR = "poorly told apart"


def mixing(found: Mixing) -> str:
    """Whether chains have mixed, by the R-hat and the effective sample size of their energy."""
    if not found.r_hat <= R_HAT:
        return (
            f"not mixed: R-hat {found.r_hat:.3g}, good is at most {R_HAT} (Vehtari et al. 2021); the chains are "
            "samples of how long they ran, and not of a law"
        )
    if found.effective_sample_size < FEWEST_DRAWS:
        return (
            f"too few draws to tell: R-hat {found.r_hat:.3f} is good, but the effective sample size "
            f"{found.effective_sample_size:.0f} is below the {FEWEST_DRAWS} that it needs (Vehtari et al. 2021); "
            "raise eval.chains.number or eval.chains.steps"
        )
    return f"no sign against mixing: R-hat {found.r_hat:.3f}, good is at most {R_HAT} (Vehtari et al. 2021)"


def accuracy(found: Value, chance: float) -> str:
    """An accuracy beside that of always naming the most frequent class, both shares of images."""
    number, error = found.number, found.standard_error or 0.0
    told = f"accuracy {number:.1%}, {chance:.1%} for whoever always names the most frequent class"
    if number > chance + ERRORS * error:
        return f"above chance: {told}"
    below = number < chance - ERRORS * error
    return f"{'below chance' if below else 'chance level'}: {told}; these energies of classes are not comparable"


def surprise(nats: float, num_classes: int) -> str:
    """The negative log-likelihood of labels, in nats, beside the one of equal probabilities for all classes."""
    even = math.log(num_classes)
    better = "better" if nats < even else "NO better"
    return f"{better} than even odds: {nats:.3g} nats a label at the fitted temperature, even odds have {even:.3f}"


def distance(samples: Value, unseen: Value, unseen_name: str) -> str:
    """A distance of samples beside the same distance of as many unseen real images; 0 is the law itself."""
    if is_apart(samples, unseen) and samples.number > unseen.number:
        return (
            f"farther than real images: {samples.number:.3g}, and {unseen.number:.3g} for as many {unseen_name} "
            f"({ratio(samples, unseen)})"
        )
    return f"as near as real images: {samples.number:.3g}, and {unseen.number:.3g} for as many {unseen_name}"


def agreement(samples: Value, unseen: Value, num_classes: int) -> str:
    """The share of samples of the class asked for, beside that of real images, and chance."""
    told = f"{samples.number:.1%} of the samples are of the class asked for by the classifier"
    beside = f"{unseen.number:.1%} of real images are of their own, {1 / num_classes:.1%} by chance"
    if samples.number <= 1 / num_classes + ERRORS * (samples.standard_error or 0.0):
        return f"chance level: {told}; {beside}"
    near = samples.number >= unseen.number or not is_apart(samples, unseen)
    return f"{'as often as real images' if near else 'less often than real images'}: {told}; {beside}"


def drift(begin: Value, end: Value, steps: int, unseen: Value) -> str:
    """Whether chains stay where the samples are, by the distances at the begin and after so many steps."""
    told = (
        f"distance {begin.number:.3g} at the samples, {end.number:.3g} after {steps:,} more steps ({unseen.number:.3g} "
        "for real images)"
    )
    if is_apart(begin, end) and end.number > begin.number:
        return f"they drift away: {told}; long chains show another law than the samples"
    return f"they stay: {told}"


def copies(share: float, by_chance: float, number: int) -> str:
    """Whether more of `number` samples are closer to the training images than that share of test images."""
    error = math.sqrt(by_chance * (1 - by_chance) / number)
    told = f"{share:.1%} of the samples are closer to a training image than {1 - by_chance:.0%} of test images are"
    if share > by_chance + ERRORS * error:
        return f"look for copies: {told}, {by_chance:.0%} would be chance; plain images are close too, see the picture"
    return f"no sign of copies: {told}, {by_chance:.0%} would be chance"


def auroc(name: str, found: Value) -> str:
    """How well a score tells a set from test images, P(test > set), of which chance is 0.5."""
    number, error = found.number, found.standard_error or 0.0
    told = f"AUROC {number:.3f}, chance is 0.5"
    if abs(number - 0.5) <= ERRORS * error:
        return f"{name}: chance level: {told}"
    if number < 0.5:
        return f"{name}: the wrong way round: {told}; the model takes them for likelier than test images"
    grade = next((word for least, word in GRADES if number >= least), POOR)
    return f"{name}: {grade}: {told} (grades of Hosmer & Lemeshow 2000)"


def bits(at_most: float, levels: int) -> str:
    """Bits per dimension of the weaker bound beside those of uniform noise."""
    noise = math.log2(levels)
    better = "better" if at_most < noise else "NOT KNOWN to be better"
    return f"{better} than uniform noise: at most {at_most:.3g} bits per dimension, and noise has {noise:g}"


def is_apart(first: Value, second: Value) -> bool:
    """Whether two numbers differ by more than `ERRORS` standard errors of their difference."""
    error = np.hypot(first.standard_error or 0.0, second.standard_error or 0.0)
    return bool(abs(first.number - second.number) > ERRORS * error)


def ratio(first: Value, second: Value) -> str:
    """How many times the second number the first is, in words."""
    return f"{first.number / second.number:.3g} times" if second.number > 0 else "the reference is 0"
