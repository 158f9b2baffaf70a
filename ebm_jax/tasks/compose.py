"""Task `compose`: samples of the product of several models, or of one model under several labels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ebm_jax import assemble, chains, opening
from ebm_jax.applications import generate
from ebm_jax.data import sources
from ebm_jax.labels import example_labels, is_conditional, parse_labels, sample_labels
from ebm_jax.models import energy
from ebm_jax.opening import load, with_numbers
from ebm_jax.report import pictures, progress, style
from ebm_jax.sampling.kernel import Stages
from ebm_jax.schema import with_values
from ebm_jax.tasks.common import Result
from ebm_jax.trained import TrainedRun, on_all_devices
from ebm_jax.types import BadInput, Config, EnergyFn, Folder, Images, Labels, Params, Places, PRNGKey

LabelsAt = Callable[[Places], Labels]
Term = tuple[Config, Params, LabelsAt]
SHARE = 0.95  # of real images: those with the lowest energies
MOST = 1_000  # real images to compare with


def check(config: Config) -> None:
    """Refuse a sum of fewer than two energies, and a number of label texts other than the number of other runs.

    Raises:
      BadInput: with the remedy.
    """
    own, others = parse_labels(config, "sample.labels"), _others(config)
    if max(len(own), 1) + len(others) < 2:
        of_labels = "sample.labels with a sum, such as 1+3, or " if is_conditional(config) else ""
        raise BadInput(f"sample.task compose has one energy only; give {of_labels}other runs in sample.with_runs")


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Samples of several labels or runs at once: chains under the sum of energies.

    The sum has this run's energies, one a label, and the energies of the runs of `with_runs`.
    """
    terms = _terms(run)

    def energy_of(params: tuple[Params, ...], places: Places) -> EnergyFn:
        parts = [
            assemble.make_chain_energy(config)(part, labels_at(places))
            for part, (config, _, labels_at) in zip(params, terms, strict=True)
        ]
        return product_of(run.config, params[0], parts, terms[0][2](places))

    composed = stages_of(run.config)

    def chain(key: PRNGKey, x: Images, energy_fn: EnergyFn, stages: Stages) -> Images:
        del stages  # those of one energy
        return generate(key, x, energy_fn, composed)

    params = on_all_devices(tuple(part for _, part, _ in terms), run.mesh)
    images = run.chains(key, chain, energy_of=energy_of, params=params, note=progress.note)
    what = f"{len(images)} samples of the product of {len(terms)} energies"
    asked = f" of labels {run.config.sample.labels}" if run.config.sample.labels else ""
    within = _within(run, terms, images)
    title = run.title(f"{what}{asked}", style.steps(run.config), "start: noise", within)

    own = [labels_at for config, _, labels_at in terms if config is run.config]
    names = asked_classes(run.names_of, own, len(images))

    def draw(path: Path) -> None:
        pictures.write_grid(path.with_suffix(".png"), images, names, title=title)

    return Result({"images": images}, draw, f"{what}; {within}")


def asked_classes(names_of: Callable[[np.ndarray], list[str]], own: Sequence[LabelsAt], number: int) -> list[str]:
    """The names of all classes that each image is asked for; [] where they have none.

    Args:
      names_of: of `TrainedRun`.
      own: the labels of each energy of that run.
    """
    places = jnp.arange(number, dtype=jnp.int32)
    of_terms = [names_of(np.asarray(labels_at(places))) for labels_at in own]
    return [" + ".join(names) for names in zip(*of_terms, strict=True)]


def _within(run: TrainedRun, terms: Sequence[Term], images: np.ndarray) -> str:
    """How many samples each energy of the product takes for one of its own images, and how many all do, in words.

    A sample is taken for one if it has at most the energy that `SHARE` of them have.
    """
    likely = []
    for config, params, labels_at in terms:
        progress.note(f"comparing energies, {len(likely) + 1} of {len(terms)}")
        labels = np.asarray(labels_at(jnp.arange(len(images), dtype=jnp.int32)))
        of_term = run._replace(config=config, params=on_all_devices(params, run.mesh))
        try:
            real = of_term.energy_of(*_own(of_term, labels, run.config.sample.split))
        except BadInput as error:  # the samples are there and shall be kept
            return f"not compared with real images: {error}"
        likely.append(of_term.energy_of(images, labels) <= np.quantile(real, SHARE))
    each = ", ".join(f"{one.mean():.1%}" for one in likely)
    return (
        f"the energies take {each} of them for images of their own, all at once {np.all(likely, 0).mean():.1%} (an "
        f"energy that {SHARE:.0%} of real ones stay below)"
    )


def _own(run: TrainedRun, labels: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """At most MOST real images of a split that have one of these labels, and their labels; a density's own points."""
    config = run.config
    if config.data.source == "density":
        rng = np.random.default_rng(config.sample.seed)
        return sources.make_density(config).sample(rng, MOST), np.zeros(MOST, np.int32)
    own, has_classes = run.data(split), labels.ndim == 1 and config.model.num_classes > 1
    rows = np.flatnonzero(np.isin(own.labels, labels) if has_classes else np.ones(len(own.images), bool))[:MOST]
    if not len(rows):
        raise BadInput(f"{config.data.name} {split} has no image of the labels {np.unique(labels).tolist()}")
    return own.images[rows].astype(np.float32) / 255.0, own.labels[rows]


def product_of(config: Config, params: Params, parts: Sequence[EnergyFn], labels: Labels) -> EnergyFn:
    """The sum of the energies, as in the paper; over the energy of no class, if the first model has one.

    Args:
      params, labels: the first model's, from whose shape the labels of no class are made.
    """
    if (unlabelled := assemble.unlabelled_of(config)) is None:
        return energy.conjunction(*parts)
    apply = energy.of_members(assemble.make_apply(config))
    return energy.product_of_classes(parts, energy.bind(apply, params, unlabelled(labels)))


def stages_of(config: Config) -> Stages:
    """The stages of chains under `product_of`."""
    return chains.make_composition(config, assemble.unlabelled_of(config) is not None)


def _terms(run: TrainedRun) -> list[Term]:
    """Config, parameters and labels at places for each energy of the sum; the run's own energies come first."""
    own = parse_labels(run.config, "sample.labels")
    labels: list[LabelsAt] = [lambda places, term=term: term[places % len(term)] for term in own]
    labels = labels or [lambda places: example_labels(run.config, places)]
    return [(run.config, run.params, labels_at) for labels_at in labels] + [
        _of_another(run, folder, text) for folder, text in _others(run.config)
    ]


def _others(config: Config) -> list[tuple[Folder, str]]:
    """The folder of each run of `sample.with_runs`, and its labels in `sample.compose.with_labels`."""
    folders, asked = opening.other_runs(config), config.sample.compose.with_labels
    texts = asked.split("+") if asked else [""] * len(folders)
    if len(texts) != len(folders):
        raise BadInput(
            f"sample.compose.with_labels '{asked}' has {len(texts)} parts for {len(folders)} runs; apart by '+'"
        )
    return list(zip(folders, texts, strict=True))


def _of_another(run: TrainedRun, folder: Folder, text: str) -> Term:
    """Another run's config and newest weights, and its labels from the text."""
    config, params = load(folder)
    if tuple(config.data.shape) != tuple(run.config.data.shape):
        raise BadInput(
            f"{folder} has images of {tuple(config.data.shape)}, this run of {tuple(run.config.data.shape)}; "
            "compose runs of one data.shape"
        )
    config = with_numbers(with_values(config, {"sample.labels": text}), folder)
    return config, params, lambda places: sample_labels(config, places)
