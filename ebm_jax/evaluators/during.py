"""The classifier distance of a few fresh samples while a run trains, by which a checkpoint can be chosen."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from ebm_jax import samplers
from ebm_jax.distributed import parallel, processes
from ebm_jax.evaluators import classifier
from ebm_jax.evaluators.common import Evidence, key_of
from ebm_jax.pixels import quantised
from ebm_jax.report import progress
from ebm_jax.schema import value_of, with_values
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, Folder, Params

DURING = 40  # this evaluator's number in `key_of`: no final number uses its samples
DISTANCE = "classifier_distance"
NAMES = {
    "classifier distance": DISTANCE,
    "classifier score": "classifier_score",
    "class coverage": "class_coverage",
    "agreement": "agreement",
}
"""From a value's name to its name in the run's files."""

Report = dict[str, float]
"""By the names of the run's files; an error's name ends in _error."""


def check(config: Config) -> None:
    """Refuse a config whose samples cannot be judged while it trains, if it asks for that.

    Raises:
      BadInput: it is of a 2-D density; or there are too few samples for the distance or for its errors.
    """
    if not config.eval.during:
        return
    if config.data.source == "density":
        raise BadInput(
            f"eval.during {config.eval.during} judges images, and {config.data.name} is a 2-D density, whose exact "
            "divergence a run reports anyway; use eval.during=0"
        )
    classifier.require_enough("eval.during", "eval.during_samples", config.eval.during_samples)
    if config.eval.splits > config.eval.during_samples:
        raise BadInput(
            f"eval.splits {config.eval.splits} is too many for eval.during_samples {config.eval.during_samples}; use "
            f"at most {config.eval.during_samples}"
        )


def make_reporter(config: Config, mesh: Mesh, folder: Folder) -> Callable[[Params], Report]:
    """The function from a network's parameters, on every device of the mesh, to the report of fresh samples.

    The samples are the same function of the parameters at every step, so reports differ by the network alone. Their key
    comes from `eval.seed`, and neither training nor a final evaluation uses it. All processes must call the function;
    the first one judges, and the others get an empty report. The classifier is trained here, or read.

    Raises:
      BadInput: as `evaluators.classifier.referee`; the function raises it if a feature is not finite.
    """
    number = config.eval.during_samples
    few = with_values(config, {"sample.num_images": number, "sample.batch_size": config.eval.batch_size})
    sampler, referee = samplers.make_sampler(few, mesh), None
    if processes.is_first():
        referee = _referee(config, folder)

    def report_of(params: Params) -> Report:
        batches, done = [], 0
        for batch in samplers.on_host(sampler, params, key_of(config, DURING), number):
            batches.append(batch)
            done += len(batch[0])
            progress.note(f"{done:,} sampled")
        images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
        return {} if referee is None else _report(config, referee, images, labels)

    return report_of


def _referee(config: Config, folder: Folder) -> classifier.Referee:
    """The classifier and its view of the reference, on this process's first device."""
    run = TrainedRun(config, {}, parallel.first_device_mesh(), 0, folder, {})
    splits = {key: value_of(config, key) for key in ("data.split", "eval.reference_split")}
    read = {split: run.data(split) for split in dict.fromkeys(splits.values())}
    evidence = Evidence({key: read[split] for key, split in splits.items()}, note=progress.note)
    return classifier.referee(run, evidence)


def _report(config: Config, referee: classifier.Referee, images: np.ndarray, labels: np.ndarray) -> Report:
    seen = classifier.see(referee, quantised(images), config.eval.splits, progress.note, "fresh samples")
    values = dict(seen.values)
    if config.model.num_classes > 1:
        values["agreement"] = classifier.agreement(seen, labels)
    report = {}
    for name, (number, error) in values.items():
        report[NAMES[name]] = number
        if error is not None:
            report[f"{NAMES[name]}_error"] = error
    return report


def in_words(report: Report, number: int) -> str:
    """A report of `number` samples as one line."""
    agreement = f", agreement with the asked class {report['agreement']:.3f}" if "agreement" in report else ""
    return (
        f"classifier distance {report[DISTANCE]:.2f} ± {report[f'{DISTANCE}_error']:.2f} (no FID), score "
        f"{report['classifier_score']:.2f}, class coverage {report['class_coverage']:.2f}{agreement}, of {number:,} "
        "fresh samples"
    )
