"""Task `compose`: samples of the product of several models, or of one model under several labels."""

from collections.abc import Callable, Sequence

from ebm_jax import assemble, chains, trained
from ebm_jax.applications import generate
from ebm_jax.labels import example_labels, parse_labels, sample_labels
from ebm_jax.models import energy
from ebm_jax.report import pictures, style
from ebm_jax.sampling.kernel import Stages
from ebm_jax.schema import with_values
from ebm_jax.tasks.common import Result
from ebm_jax.trained import TrainedRun, load, on_all_devices, with_numbers
from ebm_jax.types import BadInput, Config, EnergyFn, Folder, Images, Labels, Params, Places, PRNGKey

LabelsAt = Callable[[Places], Labels]


def check(config: Config) -> None:
    """Refuse a sum of fewer than two energies, and a number of label texts other than the number of other runs.

    Raises:
      BadInput: with the remedy.
    """
    own, others = parse_labels(config, "sample.labels"), _others(config)
    if max(len(own), 1) + len(others) < 2:
        raise BadInput(
            "sample.task compose has one energy only; give sample.labels with a sum, such as 1+3, or sample.with_runs"
        )


def run(run: TrainedRun, key: PRNGKey) -> Result:
    """Chains from noise under a sum: this run's energies, one a label, and the energies of the runs of `with_runs`."""
    terms = _terms(run)

    def energy_of(params: tuple[Params, ...], places: Places) -> EnergyFn:
        parts = [
            energy.bind(assemble.make_chain_apply(config), part, labels_at(places))
            for part, (config, _, labels_at) in zip(params, terms, strict=True)
        ]
        return product_of(run.config, params[0], parts, terms[0][2](places))

    composed = stages_of(run.config)

    def chain(key: PRNGKey, x: Images, energy_fn: EnergyFn, stages: Stages) -> Images:
        del stages  # those of one energy
        return generate(key, x, energy_fn, composed)

    params = on_all_devices(tuple(part for _, part, _ in terms), run.mesh)
    images = run.chains(key, chain, energy_of=energy_of, params=params)
    line = f"{len(images)} samples of the product of {len(terms)} energies"
    asked = f" of labels {run.config.sample.labels}" if run.config.sample.labels else ""
    title = run.title(f"{line}{asked}", style.steps(run.config), "start: noise")
    return Result(
        {"images": images}, lambda path: pictures.write_grid(path.with_suffix(".png"), images, title=title), line
    )


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


def _terms(run: TrainedRun) -> list[tuple[Config, Params, LabelsAt]]:
    """Config, parameters and labels at places for each energy of the sum; the run's own energies come first."""
    own = parse_labels(run.config, "sample.labels")
    labels: list[LabelsAt] = [lambda places, term=term: term[places % len(term)] for term in own]
    labels = labels or [lambda places: example_labels(run.config, places)]
    return [(run.config, run.params, labels_at) for labels_at in labels] + [
        _of_another(run, folder, text) for folder, text in _others(run.config)
    ]


def _others(config: Config) -> list[tuple[Folder, str]]:
    """The folder of each run of `sample.with_runs`, and its labels in `sample.compose.with_labels`."""
    folders, asked = trained.other_runs(config), config.sample.compose.with_labels
    texts = asked.split("+") if asked else [""] * len(folders)
    if len(texts) != len(folders):
        raise BadInput(
            f"sample.compose.with_labels '{asked}' has {len(texts)} parts for {len(folders)} runs; apart by '+'"
        )
    return list(zip(folders, texts, strict=True))


def _of_another(run: TrainedRun, folder: Folder, text: str) -> tuple[Config, Params, LabelsAt]:
    """Another run's config and newest weights, and its labels from the text."""
    config, params = load(folder)
    if tuple(config.data.shape) != tuple(run.config.data.shape):
        raise BadInput(
            f"{folder} has images of {tuple(config.data.shape)}, this run of {tuple(run.config.data.shape)}; "
            "compose runs of one data.shape"
        )
    config = with_numbers(with_values(config, {"sample.labels": text}), folder)
    return config, params, lambda places: sample_labels(config, places)
