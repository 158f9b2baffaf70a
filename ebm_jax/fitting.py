"""The door for research code: train an own network on own arrays, in the folder that the command would write."""

import hashlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ebm_jax import arrays, cli, registry, schema, shipped, train
from ebm_jax.arguments import check_whole
from ebm_jax.assemble import make_network
from ebm_jax.distributed import parallel
from ebm_jax.kinds import printable
from ebm_jax.labels import is_conditional
from ebm_jax.methods import ORDERINGS
from ebm_jax.models.outside import name_of
from ebm_jax.opening import open_run
from ebm_jax.storage import bucket, workdir
from ebm_jax.storage.writing import write_atomically
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, Folder, Given

RECIPES = {True: "digits", False: "digits_contrastive"}  # the configs that a run begins with: of matchings, of chains
BATCH = 64
SCHEDULE = ("optim.warmup_steps", "optim.decay_steps")  # keys that follow `steps`, and that a run cannot change


def fit(
    net: Any,
    images: Given,
    labels: Given = None,
    *,
    params: Any = None,
    method: str = "equilibrium",
    steps: int = 2_000,
    folder: str | Folder | None = None,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
) -> TrainedRun:
    """Train a network on images; the same call again goes on, if it names the folder.

    All that runs have is there: progress, guard and rescues, checkpoints, metrics, all devices. Ctrl-C saves and
    returns the run so far.

    Args:
      net: the name of a network, such as "unet" or "small"; a Flax linen or nnx module, or an object with `init` and
        `apply`, of a batch of images [b, h, w, c] in [0, 1], and of labels [b] where it takes them; an Equinox module,
        of one image; with `params`, a function (params, images) or (params, images, labels). One energy an image.
      images: [n, h, w] or [n, h, w, c], c 1 or 3: uint8, or floats in [0, 1]; or an iterator of batches of these. It is
        read to its end, or until it gave as many images as `steps` take, 64 each, or more than there are `labels`.
      labels: integers [n] from 0 on, or vectors [n, k]; None: unconditional.
      params: any tree of arrays, for a function.
      method: a row of docs/methods.md. Matchings need a network whose gradient has a gradient.
      steps: of training.
      folder: the run's; None: a new temporary one, which `TrainedRun.save` copies.
      seed: of weights, data order and noise.
      changes: other values for keys of the config, {"optim.learning_rate": 1e-3}; the rest is of configs/digits.py for
        matchings, else of configs/digits_contrastive.py.

    Raises:
      BadInput: with the argument, its value, the limit and the cure, before anything is written; the folder holds
        another run.
      Diverged: the run is ill again after its last rescue.

    Examples:
      >>> import jax, numpy as np, ebm_jax
      >>> stripes = np.tile(np.eye(8)[np.arange(64) % 8][:, :, None], 8)
      >>> quick = {"model.width": 4, "sample.num_steps": 2, "sample.quiet_steps": 1}
      >>> run = ebm_jax.fit("small", stripes, method="denoising", steps=2, changes=quick)  # doctest: +ELLIPSIS
      data, split train: 64 images...
      >>> run.sample(jax.random.key(0), 3).shape
      (3, 8, 8, 1)
    """
    check_whole("steps", steps, 1)
    check_whole("seed", seed, 0)
    pixels = arrays.pixels(images, steps * BATCH if labels is None else np.size(labels) + 1)
    classes = arrays.labels(labels, len(pixels))
    config = _with(_recipe(method, steps, seed, pixels, classes), {"model.name": name_of(net, params)})
    _check_takes_labels(config)
    config = _with(_without_dropout(config), changes or {})
    target = Path(tempfile.mkdtemp(prefix="ebm_jax_")) if folder is None else bucket.folder_of(folder, "folder")
    is_begun = (target / workdir.CONFIG).exists()
    if is_begun and not set(SCHEDULE) & set(changes or ()):
        _check_schedule(target, config)
    file, is_new = _written(target, pixels, classes)
    try:
        train.train(_with(config, {"data.source": f"npz:{file}"}), target)
    except BadInput:
        if is_new and (is_begun or not (target / workdir.CONFIG).exists()):  # no run needs it
            file.unlink()
        if folder is None and not any(target.iterdir()):
            target.rmdir()
        raise
    return open_run(target)


def _recipe(method: str, steps: int, seed: int, pixels: np.ndarray, labels: np.ndarray | None) -> Config:
    """The recipe of the method for these images."""
    matching = method in ORDERINGS
    config = cli.from_file(shipped.named(RECIPES[matching]))
    parallel.split_cpu(0, BATCH)
    devices = parallel.device_mesh().size
    batch = min(BATCH, len(pixels)) // devices * devices
    if not batch:
        raise BadInput(f"images are {len(pixels)}; give {devices} or more, one for each device")
    vectors = labels is not None and labels.ndim == 2
    values = {
        "method.name": method,
        "method.then.after": 0,
        "data.name": "images",
        "data.shape": pixels.shape[1:],
        "data.condition": "soft" if vectors else "class",
        "model.num_classes": 1 if labels is None else labels.shape[1] if vectors else int(labels.max()) + 1,
        "train.batch_size": batch,
        "train.num_steps": steps,
        "train.steps_per_call": 1,
        "train.seed": seed,
        "optim.warmup_steps": min(config.optim.warmup_steps, steps // 10),
        "optim.decay_steps": steps if config.optim.decay_steps else 0,
        "log.every": max(1, steps // 10),
        "log.images_every": 0,
        "checkpoint.every": max(1, steps // 4),
    }
    return _with(config, values)


def _check_schedule(folder: Folder, config: Config) -> None:
    """Refuse other `steps` than the learning rate's schedule of the run in the folder was made for.

    Raises:
      BadInput: with the changes that keep the run's schedule.
    """
    run = workdir.read_config(folder)
    kept = {key: schema.value_of(run, key) for key in SCHEDULE}
    if any(schema.value_of(config, key) != value for key, value in kept.items()):
        raise BadInput(
            f"steps {config.train.num_steps} is another schedule of the learning rate than the run in {folder} has, of "
            f"{run.train.num_steps} steps; to go on at its last rate add changes={kept}, or give another folder"
        )


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with other values.

    Raises:
      BadInput: there is no such key, or a value is out of its range.
    """
    values: dict[str, Any] = {}
    for given, value in changes.items():
        key = schema.FORMER_NAMES.get(given, given)
        if not (key in schema.KEYS or schema.is_open(str(key))):
            near = schema.nearest(str(given))
            raise BadInput(f"changes has {printable(str(given))}, no key of a config; did you mean {near}?")
        value = value.item() if isinstance(value, np.generic) else value
        if key in schema.KEYS:
            schema.KEYS[key].limit.check(key, value)
            value = schema.KEYS[key].limit.stored(value)
        values[key] = value
    changed = schema.with_values(config, values)
    schema.check_values(changed)
    return changed


def _check_takes_labels(config: Config) -> None:
    """Refuse labels for a network of images alone.

    Raises:
      BadInput: with the cure.
    """
    if is_conditional(config) and not make_network(config).takes_labels:
        net = registry.of_network(config.model.name)
        raise BadInput(
            f"{net} takes images alone, and labels are given; let it take (images, labels), or give no labels"
        )


def _without_dropout(config: Config) -> Config:
    """The config without class dropout, where the network has no energy of no class to train by it."""
    key = f"method.{config.method.name}.class_dropout"
    return _with(config, {key: 0.0}) if key in schema.KEYS and make_network(config).unlabelled is None else config


def _written(folder: Folder, pixels: np.ndarray, labels: np.ndarray | None) -> tuple[Folder, bool]:
    """A file of the images in the folder, named by what it holds, and whether it is new."""
    arrays = {"images": pixels} | ({} if labels is None else {"labels": labels})
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()[:12]
    file = folder / f"{workdir.IMAGES}{digest}.npz"
    if file.exists():
        return file, False
    text = io.BytesIO()
    np.savez(text, **arrays)  # pyright: ignore[reportArgumentType]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.getvalue())
    except OSError as error:
        raise BadInput(f"folder {folder} cannot be written ({bucket.reason(error)}); use another one") from error
    return file, True
