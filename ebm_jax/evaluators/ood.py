"""Out-of-distribution detection: the run's test images against its training images, noise, and other data sets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ebm_jax import assemble
from ebm_jax.data import sources
from ebm_jax.evaluators import verdicts
from ebm_jax.evaluators.card import BETWEEN
from ebm_jax.evaluators.common import Evidence, Outcome, Value, chosen_rows, sha256
from ebm_jax.kinds import shown
from ebm_jax.labels import label_shape
from ebm_jax.metrics import ood, outliers
from ebm_jax.report import console, figures, pictures
from ebm_jax.trained import Note, TrainedRun, with_split
from ebm_jax.types import BadInput, Config

MADE = {  # sets made from the inside images, or from nothing
    "uniform": outliers.uniform,
    "constant": outliers.constant,
    "interpolation": outliers.interpolation,
    "rotation": outliers.rotation,
}
NAMED, PATHS = ("tfds", "sklearn"), ("folder", "npz")
IN_WORDS = {
    "U": "U: the energy U(x)",
    "min U": "min U: the minimum over classes of U(x, y)",
    "lse U": "lse U: -log of the sum over classes of exp(-U(x, y))",
}
TRUE_POSITIVE_RATE = 0.95
RESAMPLES = 200  # of the bootstrap
SHOWN = 12  # images of each set in the picture
POINTS = 200  # of a curve
SEED = 1  # beside eval.seed, for a random stream of its own


class Scored(NamedTuple):
    """One energy of the images of a set, and the norm of its gradient."""

    energies: np.ndarray
    """float64 [n]."""
    gradient_norms: np.ndarray
    """float64 [n]."""


def check(config: Config) -> None:
    """Refuse sets that do not exist or do not fit, and vector labels, before anything is computed.

    Raises:
      BadInput: with the set and the known sets; or with the condition.
    """
    if label_shape(config) is not None:
        raise BadInput(
            f"the metric ood needs a model without labels or of classes, and the labels of data.condition "
            f"{config.data.condition} are vectors; leave it out of eval.metrics"
        )
    for word in asked_sets(config):
        if word == "rotation" and config.data.shape[0] != config.data.shape[1]:
            raise BadInput(f"eval.ood.sets rotation needs square images, not {config.data.shape}; leave it out")
        if word not in MADE and word != "train":
            _named(word, partial(sources.make_source, _config_of(config, word)))


def asked_sets(config: Config) -> list[str]:
    """The sets of `eval.ood.sets`, each once."""
    return list(dict.fromkeys(word.strip() for word in config.eval.ood.sets.split(",") if word.strip()))


def measure(run: TrainedRun, evidence: Evidence) -> Outcome:
    """How well energies tell other sets from the data: AUROC and rate of errors.

    The rate is that of false positives at 95 % true positives; there are both for every set under every score.
    """
    config = run.config
    sets = collect(run, evidence)
    names = energy_names(config)
    scored = score(run, sets, evidence.note)
    values: dict[str, Value] = {}
    for energy_name in names:
        reference = scored["train"][energy_name].energies
        by_set = {name: scores(energy_name, of_set[energy_name], reference) for name, of_set in scored.items()}
        for score_name in by_set["inside"]:
            inside = by_set["inside"][score_name]
            pairs = {name: (inside, by_set[name][score_name]) for name in asked_sets(config)}
            halves = np.random.default_rng([config.eval.seed, SEED]).permutation(inside)
            pairs["the other half of the inside (control)"] = halves[::2], halves[1::2]
            for name, pair in pairs.items():
                values |= _compared(f"{name}{BETWEEN}{score_name}", *pair, config.eval.seed)
    first = names[0]
    plain = {name: -scored[name][first].energies for name in ["inside", *asked_sets(config)]}
    said = tuple(
        verdicts.auroc(f"{name} by -{first}", Value(*ood.auroc(plain["inside"], plain[name])))
        for name in asked_sets(config)
    )
    return Outcome(values, _protocol(config, sets), _pictures(run, sets, plain, f"-{first}"), said)


def collect(run: TrainedRun, evidence: Evidence) -> dict[str, np.ndarray]:
    """The images uint8 [n, h, w, c] of the inside set, the training set and every set of `eval.ood.sets`."""
    config = run.config
    inside, train = (evidence.data[key].images for key in ("eval.split", "eval.reference_split"))
    sets = {"inside": inside[_rows(config, len(inside))], "train": train[_rows(config, len(train))]}
    for number, word in enumerate(asked_sets(config)):
        if word in MADE:
            sets[word] = MADE[word](np.random.default_rng([config.eval.seed, SEED, number]), sets["inside"])
        elif word != "train":
            evidence.note(f"reading {word}")
            load = partial(sources.load_dataset, _config_of(config, word), console.warn, partial(_rows, config))
            sets[word] = _named(word, load).images
    return sets


def energy_names(config: Config) -> list[str]:
    """The energies that the scores are made of."""
    if config.model.num_classes == 1:
        return ["U"]
    return ["min U", "lse U" if assemble.unlabelled_of(config) is None else "U"]


def score(run: TrainedRun, sets: dict[str, np.ndarray], note: Note) -> dict[str, dict[str, Scored]]:
    """Every energy of each set of uint8 images, and the norm of its gradient; one program goes through all sets."""
    num_classes, asked = run.config.model.num_classes, energy_names(run.config)

    def of_batch(energy_of, images):
        x = images.astype(jnp.float32) / 255.0
        fns = {"U": energy_of}
        if num_classes > 1:
            fns = {
                "min U": ood.minimum_over_classes(energy_of, num_classes),
                "lse U": ood.log_sum_exp_over_classes(energy_of, num_classes),
                "U": lambda x: energy_of(x, assemble.labels_for(run.config, None, x.shape[0])),
            }
        return {name: ood.energy_and_gradient_norm(fns[name], x) for name in asked}

    images, size = np.concatenate(list(sets.values())), run.config.eval.batch_size
    found = run.map(of_batch, images, batch_size=size, note=note)
    ends = np.cumsum([len(images) for images in sets.values()])[:-1]
    split = {name: [np.split(np.asarray(part, np.float64), ends) for part in pair] for name, pair in found.items()}
    return {
        of_set: {name: Scored(energies[index], norms[index]) for name, (energies, norms) in split.items()}
        for index, of_set in enumerate(sets)
    }


def scores(name: str, scored: Scored, reference: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of a set, by name; `reference` has the energies of the training set."""
    return {
        f"-{name}": -scored.energies,
        f"-|∇ {name}|": -scored.gradient_norms,
        f"typicality of {name}": ood.typicality(scored.energies, reference),
    }


def _compared(name: str, inside: np.ndarray, outside: np.ndarray, seed: int) -> dict[str, Value]:
    rate = partial(ood.false_positive_rate, true_positive_rate=TRUE_POSITIVE_RATE)
    rng = np.random.default_rng([seed, SEED])
    error = ood.bootstrap_standard_error(rng, rate, inside, outside, n=RESAMPLES)
    return {
        f"AUROC, {name}": Value(*ood.auroc(inside, outside)),
        f"FPR at 95 % TPR, {name}": Value(rate(inside, outside), error),
    }


def _rows(config: Config, length: int) -> np.ndarray:
    return chosen_rows(length, config.eval.ood.images, config.eval.seed)


def _config_of(config: Config, word: str) -> Config:
    """The config with SOURCE:NAME or SOURCE:PATH as its data, in the run's shape, of @SPLIT or else `eval.split`.

    `data.crop` brings every image to that shape by one function, which keeps images of that shape as they are.
    """
    place, _, split = word.partition("@")
    kind, _, name = place.partition(":")
    if kind not in NAMED + PATHS:
        known = ", ".join([*MADE, "train", *(f"{kind}:NAME" for kind in NAMED), *(f"{kind}:PATH" for kind in PATHS)])
        raise BadInput(f"eval.ood.sets {shown(word)} is unknown; use some of {known}")
    other = with_split(config, split or config.eval.split).unlock()
    other.data.source, other.data.name = (place if kind in PATHS else kind), name
    other.data.crop, other.data.condition, other.model.num_classes = True, "class", 1
    other.data.holdout = 0.0  # a set of its own, of which nothing was trained on
    return other.lock()


def _named(word: str, make: Callable):
    """Call `make`; its error names the set."""
    try:
        with sources.split_named("eval.split"):
            return make()
    except BadInput as error:
        raise BadInput(f"eval.ood.sets {word}: {error}; another split is asked for by {word}@SPLIT") from error


def _protocol(config: Config, sets: dict[str, np.ndarray]) -> dict[str, str]:
    inside = f"random images of the split {config.eval.split}"
    facts = {
        "score": "high for data; AUROC = P(inside > outside), ties half; -U and lower energies are likelier",
        "energy": "; ".join(IN_WORDS[name] for name in energy_names(config)),
        "typicality": f"-|U - mean U of {len(sets['train']):,} images of the split {config.eval.reference_split}|",
        "standard error": f"AUROC: DeLong; FPR: bootstrap, {RESAMPLES} resamples of both sets",
        "preprocessing": "all sets alike: uint8 of the run's shape, divided by 255, no noise added; other sizes are "
        "cropped to its aspect and resized by PIL's bicubic filter, gray and colour converted by PIL",
        "control": "one random half of the inside images against the other: 0.5 within its standard error",
    }
    for name, images in sets.items():
        facts[f"set {name}"] = f"{len(images):,} {inside if name == 'inside' else 'images'}, SHA-256 {sha256(images)}"
    return facts


def _pictures(run: TrainedRun, sets: dict[str, np.ndarray], plain: dict[str, np.ndarray], score_name: str) -> dict:
    inside = plain["inside"]
    others = {name: values for name, values in plain.items() if name != "inside"}
    words = {name: f"{name}: AUROC {ood.auroc(inside, values).value:.3f}" for name, values in others.items()}
    titles = {words[name]: values for name, values in others.items()}
    chance = np.linspace(0.0, 1.0, POINTS)
    curves = {words[name]: ood.curve(inside, values, POINTS) for name, values in others.items()}
    curves["chance: AUROC 0.500"] = chance, chance
    shown = {name: images[:SHOWN] / 255.0 for name, images in sets.items()}
    title = run.title(f"inside or outside the data, by the score {score_name}", "AUROC: 1 apart, 0.5 chance")
    labels = "false positives: share of outside taken for inside", "true positives: share of inside"

    def rows(path: Path) -> None:
        pictures.write_rows(path, shown, run.title("images of each set"))

    return {
        "scores": partial(
            figures.histograms, reference=inside, others=titles, label=score_name, name="inside", title=title
        ),
        "curves": partial(figures.curves, lines=curves, labels=labels, title=title),
        "sets": rows,
    }
