"""What `--mode=sample` can do with a trained run, one function a task: from the run to arrays, a picture and a line."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import applications, assemble, choices, random, trained
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.metrics.neighbours import nearest_neighbours
from ebm_jax.models import energy, observations
from ebm_jax.report import console
from ebm_jax.sampling.kernel import Stages
from ebm_jax.types import BadInput, Config, EnergyFn, Images, Labels, Params, PRNGKey

COLUMNS = 16  # images in a row of a picture
Draw = Callable[[Path], None]


class Run(NamedTuple):
    """A trained run, ready to be used."""

    config: Config
    params: Params
    mesh: Mesh
    stages: Stages
    key: PRNGKey

    def energy_fn(self, labels: Labels) -> EnergyFn:
        """The energy of images under these labels."""
        return energy.bind(energy.of_members(assemble.make_apply(self.config)), self.params, labels)


class Result(NamedTuple):
    """What a task made: arrays for the .npz, a function that draws them to a path without suffix, a line to say."""

    arrays: dict[str, np.ndarray]
    draw: Draw
    line: str


def compiled(run: Run, fn: Callable[..., Any], *rows: Any) -> Any:
    """`fn(key, *rows)` compiled, the rows spread over all devices where their number allows, the result on the host."""
    if len(rows[0]) % run.mesh.size == 0:
        rows = parallel.place_batch(run.mesh, rows)
    return jax.device_get(jax.jit(fn)(run.key, *rows))


def images_to_start_from(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """`sample.num_images` random images [n, h, w, c] in [0, 1] of `sample.split`, or all of fewer, with labels."""
    config = run.config.copy_and_resolve_references().unlock()
    config.data.split = config.sample.split
    images = sources.make_source(config)
    count = min(config.sample.num_images, images.length)
    rows = np.sort(np.random.default_rng(config.sample.seed).permutation(images.length)[:count])
    read = [images.read(int(row)) for row in rows]
    return (
        np.stack([image for image, _ in read]).astype(np.float32) / 255.0,
        np.stack([np.asarray(label) for _, label in read]),
    )


def noise(run: Run) -> np.ndarray:
    """`sample.num_images` images of uniform noise to start chains from."""
    shape = (run.config.sample.num_images, *run.config.data.shape)
    return np.asarray(random.uniform(jax.random.fold_in(run.key, 1), shape))


def asked_labels(run: Run) -> np.ndarray:
    """The label of each of `sample.num_images` chains."""
    return np.asarray(choices.sample_labels(run.config, jnp.arange(run.config.sample.num_images)))


def rows_of(**rows: np.ndarray) -> Draw:
    """A picture of the first few images of each, one row under its name."""
    captions = {name.replace("_", " "): images[:COLUMNS] for name, images in rows.items()}
    return lambda path: console.write_rows(path.with_suffix(".png"), captions)


def mean_squared_error(images: np.ndarray, others: np.ndarray) -> float:
    """Per value, over all images."""
    return float(np.square(images - others).mean())


def film(run: Run) -> Result:
    """Chains from noise, as a film and a strip of some of them."""
    start, labels = noise(run), asked_labels(run)
    every = run.config.sample.film.every

    def make(key: PRNGKey, start: Images, labels: Labels) -> jax.Array:
        return applications.film(key, start, run.energy_fn(labels), run.stages, every)

    frames = compiled(run, make, start, labels)

    def draw(path: Path) -> None:
        console.write_film(path.with_suffix(".gif"), frames)
        console.write_strip(path.with_suffix(".png"), frames[:, :COLUMNS])

    arrays = {"frames": frames, "labels": np.asarray(labels)}
    return Result(arrays, draw, f"{len(frames)} frames of {len(start)} chains, {every} steps apart")


def transition(run: Run) -> Result:
    """Real images moved under the energy of other classes: those of `sample.labels`, or each image's next class."""
    images, labels = images_to_start_from(run)
    num_classes = run.config.model.num_classes
    if num_classes == 1 or choices.label_shape(run.config) is not None:
        raise BadInput(f"sample.task transition needs classes; model.num_classes is {num_classes}, unconditional")
    asked = choices.sample_labels(run.config, jnp.arange(len(images)))
    target = np.asarray(asked) if run.config.sample.labels else (labels + 1) % num_classes

    def make(key: PRNGKey, images: Images, target: Labels) -> Images:
        return applications.transition(key, images, target, run.energy_fn, run.stages)

    moved = compiled(run, make, images, target.astype(np.int32))
    arrays = {"images": images, "labels": labels, "target_labels": target, "moved": moved}
    return Result(arrays, rows_of(real=images, moved_to_another_class=moved), f"moved {len(images)} images")


def compose(run: Run) -> Result:
    """Chains from noise under the sum of energies: of several labels of this run, and of the runs of `with_runs`."""
    start = noise(run)
    places = jnp.arange(len(start))
    own = choices.parse_labels(run.config, "sample.labels")
    parts = [run.energy_fn(term[places % len(term)]) for term in own] or [
        run.energy_fn(choices.example_labels(run.config, places))
    ]
    parts += [part for _, part in _other_parts(run, places)]
    if len(parts) < 2:
        raise BadInput(
            "sample.task compose has one energy only; give sample.labels with a sum, such as 1+3, or sample.with_runs"
        )

    def make(key: PRNGKey, start: Images) -> Images:
        return applications.compose(key, start, parts, run.stages)

    images = compiled(run, make, start)
    line = f"{len(images)} samples of the product of {len(parts)} energies"
    return Result({"images": images}, lambda path: console.write_grid(path.with_suffix(".png"), images), line)


def _other_parts(run: Run, places: jax.Array) -> list[tuple[str, EnergyFn]]:
    """The energy of each of the other runs, under its labels."""
    folders = choices.other_runs(run.config)
    asked = run.config.sample.compose.with_labels
    texts = asked.split("+") if asked else [""] * len(folders)
    if len(texts) != len(folders):
        raise BadInput(
            f"sample.compose.with_labels '{asked}' has {len(texts)} parts for {len(folders)} runs; apart by '+'"
        )
    parts = []
    for folder, text in zip(folders, texts, strict=True):
        config, params = trained.load(folder)
        if tuple(config.data.shape) != tuple(run.config.data.shape):
            raise BadInput(
                f"{folder} has images of {tuple(config.data.shape)}, this run of {tuple(run.config.data.shape)}; "
                "compose runs of one data.shape"
            )
        config = config.copy_and_resolve_references().unlock()
        config.sample.labels = text
        labels = choices.sample_labels(config, places)
        parts.append((str(folder), energy.bind(energy.of_members(assemble.make_apply(config)), params, labels)))
    return parts


def known_pixels(config: Config) -> np.ndarray:
    """The mask [h, w, c] of `sample.inpaint.mask`, True where a pixel is known.

    Raises:
      BadInput: no mask has this name, the file cannot be read, or its shape is not that of the images.
    """
    name, (h, w, c) = config.sample.inpaint.mask, config.data.shape
    y, x = np.mgrid[:h, :w]
    known = {
        "lower": y < h // 2,
        "upper": y >= h // 2,
        "left": x >= w // 2,
        "right": x < w // 2,
        "centre": (abs(2 * y + 1 - h) > h // 2) | (abs(2 * x + 1 - w) > w // 2),
        "random": np.random.default_rng(config.sample.seed).random((h, w)) < 0.5,
    }
    if name in known:
        return known[name][:, :, None].repeat(c, 2)
    if not name.endswith(".npy"):
        raise BadInput(
            f"sample.inpaint.mask '{name}' is unknown; use one of {', '.join(known)}, or a .npy file, True: known"
        )
    try:
        mask = np.load(name, allow_pickle=False)
    except Exception as error:  # NumPy, zipfile and the system each raise their own
        raise BadInput(
            f"sample.inpaint.mask {name} cannot be read ({error}); save a boolean array by numpy.save"
        ) from error
    if not isinstance(mask, np.ndarray):
        raise BadInput(f"sample.inpaint.mask {name} is no single array; save a boolean one by numpy.save")
    if mask.dtype != bool or mask.shape not in ((h, w), (h, w, 1), (h, w, c)):
        raise BadInput(
            f"sample.inpaint.mask {name} is {mask.dtype} {mask.shape}; it must be bool {(h, w)} or {(h, w, c)}"
        )
    if mask.all():
        raise BadInput(f"sample.inpaint.mask {name} leaves nothing to fill in; save False where a pixel is unknown")
    return mask.reshape(h, w, -1).repeat(c // mask.reshape(h, w, -1).shape[2], 2)


def inpaint(run: Run) -> Result:
    """Test images of which a part is unknown, filled in; the error beside that of the training set's mean image."""
    images, labels = images_to_start_from(run)
    known = known_pixels(run.config)

    def make(key: PRNGKey, images: Images, labels: Labels) -> Images:
        return applications.inpaint(key, images, jnp.asarray(known), run.energy_fn(labels), run.stages)

    filled = compiled(run, make, images, labels)
    unknown = np.broadcast_to(~known, images.shape)
    error = float(np.square(filled - images)[unknown].mean())
    shown = np.where(unknown, 0.5, images)
    line = f"filled in {unknown[0].mean():.0%} of {len(images)} images; mean squared error there {error:.4f}"
    return Result(
        {"images": images, "labels": labels, "known": known, "filled": filled},
        rows_of(original=images, known=shown, filled_in=filled),
        line,
    )


def restore(run: Run) -> Result:
    """Test images damaged by `sample.restore.corruption`, and restored."""
    sample = run.config.sample
    images, labels = images_to_start_from(run)
    key = jax.random.fold_in(run.key, 2)
    weight = _weight(run)
    if sample.restore.corruption == "salt_and_pepper":
        observed = observations.salt_and_pepper(key, jnp.asarray(images), sample.restore.amount)
        likelihood = partial(observations.impulse_likelihood, weight=weight, width=0.1)
    elif sample.restore.corruption == "noise":
        observed = jnp.clip(observations.gaussian_noise(key, jnp.asarray(images), sample.restore.amount), 0.0, 1.0)
        likelihood = partial(observations.gaussian_likelihood, observations.identity, weight=weight)
    else:
        forward = observations.blur(sample.restore.amount)
        observed = forward(jnp.asarray(images))
        likelihood = partial(observations.gaussian_likelihood, forward, weight=weight)
    return _restored(
        run, images, labels, np.asarray(observed), np.asarray(observed), likelihood, sample.restore.corruption
    )


def super_resolve(run: Run) -> Result:
    """Test images seen at a low resolution, drawn at the full one."""
    images, labels = images_to_start_from(run)
    factor = run.config.sample.super_resolve.factor
    forward = observations.downsample(factor)
    observed = np.asarray(forward(jnp.asarray(images)))
    likelihood = partial(observations.gaussian_likelihood, forward, weight=_weight(run) * factor**2)
    start = observed.repeat(factor, 1).repeat(factor, 2)
    return _restored(run, images, labels, observed, start, likelihood, f"{factor} times fewer pixels a side")


def colourise(run: Run) -> Result:
    """Test images seen in gray, drawn in colour."""
    images, labels = images_to_start_from(run)
    if images.shape[3] == 1:
        raise BadInput(f"sample.task colourise needs images of 3 channels; {run.config.data.name} has 1")
    observed = np.asarray(observations.gray(jnp.asarray(images)))
    likelihood = partial(observations.gaussian_likelihood, observations.gray, weight=_weight(run) * images.shape[3])
    return _restored(run, images, labels, observed, observed.repeat(3, 3), likelihood, "gray")


def _weight(run: Run) -> float:
    """The likelihood's weight with which one chain step removes the share `sample.strength` of the misfit."""
    return run.config.sample.strength / run.config.chain.step_size


def _restored(
    run: Run,
    images: np.ndarray,
    labels: np.ndarray,
    observed: np.ndarray,
    start: np.ndarray,
    likelihood: Callable[..., EnergyFn],
    what: str,
) -> Result:
    def make(key: PRNGKey, start: Images, observed: jax.Array, labels: Labels) -> Images:
        return applications.restore(key, start, run.energy_fn(labels), likelihood(observed=observed), run.stages)

    restored = compiled(run, make, start, observed, labels)
    before, after = mean_squared_error(start, images), mean_squared_error(restored, images)
    line = f"restored {len(images)} images ({what}); mean squared error {before:.4f} before and {after:.4f} after"
    arrays = {"images": images, "labels": labels, "observed": observed, "restored": restored}
    return Result(arrays, rows_of(original=images, observed=observed, restored=restored), line)


def classify(run: Run) -> Result:
    """Test images by the class of lowest energy."""
    if run.config.model.num_classes == 1 or choices.label_shape(run.config) is not None:
        raise BadInput("sample.task classify needs a model of several classes; train one with model.num_classes")
    images, labels = images_to_start_from(run)
    apply = energy.of_members(assemble.make_apply(run.config))
    energies_of = energy.class_energies(apply, run.params, run.config.model.num_classes)
    size = run.config.sample.batch_size
    step = jax.jit(lambda images: applications.classify(energies_of, images))
    parts = [jax.device_get(step(jnp.asarray(images[at : at + size]))) for at in range(0, len(images), size)]
    predicted, log_probabilities = (np.concatenate(column) for column in zip(*parts, strict=True))
    accuracy = float((predicted == labels).mean())
    arrays = {"labels": labels, "predicted": predicted, "log_probabilities": log_probabilities}

    def draw(path: Path) -> None:
        wrong = predicted != labels
        shown = images[wrong] if wrong.any() else images
        console.write_grid(path.with_suffix(".png"), shown[: COLUMNS**2])

    line = f"accuracy {accuracy:.4f} on {len(images)} images of {run.config.sample.split}; the picture has wrong ones"
    return Result(arrays, draw, line)


def neighbours(run: Run) -> Result:
    """Samples beside the nearest images of the training set: are they copies?"""
    start, labels = noise(run), asked_labels(run)

    def make(key: PRNGKey, start: Images, labels: Labels) -> Images:
        return applications.generate(key, start, run.energy_fn(labels), run.stages)

    samples = compiled(run, make, start, labels)
    reference = sources.load_images(run.config, console.warn)
    rows, distances = nearest_neighbours(samples, reference, run.config.sample.neighbours.number)
    nearest = {f"neighbour_{k + 1}": reference[rows[:, k]] for k in range(rows.shape[1])}
    line = (
        f"median L2 distance of {len(samples)} samples to the nearest training image {np.median(distances[:, 0]):.3f}"
    )
    arrays = {"images": samples, "rows": rows, "distances": distances}
    return Result(arrays, rows_of(samples=samples, **nearest), line)


TASKS: dict[str, Callable[[Run], Result]] = {
    "film": film,
    "transition": transition,
    "compose": compose,
    "inpaint": inpaint,
    "restore": restore,
    "super_resolve": super_resolve,
    "colourise": colourise,
    "classify": classify,
    "neighbours": neighbours,
}
