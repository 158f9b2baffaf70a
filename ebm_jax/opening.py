"""Trained energies from their folders, and into folders that can be given away."""

import difflib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ebm_jax import arguments, checks, identity, inputs, shipped, trust
from ebm_jax.distributed import parallel
from ebm_jax.labels import numbered
from ebm_jax.models import energy
from ebm_jax.models.outside import name_of
from ebm_jax.program import abstract_state
from ebm_jax.report import console, progress
from ebm_jax.schema import flat
from ebm_jax.storage import bucket, checkpoint, published
from ebm_jax.storage.workdir import describe, differences, read, read_config
from ebm_jax.trained import TrainedRun, of_published, on_all_devices
from ebm_jax.training.state import TrainState, network_params
from ebm_jax.types import BadInput, Config, Folder, Given, Params


def load(workdir: str | Folder, *, snapshots: int = 1, trusted: bool = False) -> tuple[Config, Params]:
    """The config of a trained energy and the network's parameters: of one that comes with this package, or of a run.

    `sample.weights` chooses the parameters of the newest valid checkpoint, "ema" or "raw". They fit
    `make_energy_fn(config)` and `make_sample_fn(config)`, and lie on the first device. Several models or several
    checkpoints give stacked parameters, an ensemble. `open_run` gives the run as one value.

    Args:
      workdir: the name of an energy of this package, such as "digits"; the folder of a run; or one that
        `TrainedRun.save` wrote, such as `huggingface_hub.snapshot_download` gives.
      snapshots: how many of the newest valid checkpoints to take, 1 or more; each is a member.
      trusted: whether the run's config.json may name code and places to write to that this user never named (trust.py).

    Returns:
      The config, locked, and a nested dict of float32 arrays, whatever x64 says; an ensemble's are [members, ...].

    Raises:
      BadInput: no run, no checkpoint, only damaged ones, or fewer than `snapshots`; or code that is not trusted.

    Examples:
      >>> import jax, ebm_jax
      >>> config, params = ebm_jax.load("two_moons")
      >>> points = jax.random.uniform(jax.random.key(0), (5, *config.data.shape))
      >>> ebm_jax.make_energy_fn(config)(params, points).shape
      (5,)
    """
    arguments.check_whole("snapshots", snapshots, 1)
    folder = _place(workdir)
    found = _restored(folder, _read(folder, trusted), parallel.first_device_mesh(), snapshots)
    return found.config, found.params


def open_run(
    folder: str | Folder,
    config: Config | None = None,
    mesh: Mesh | None = None,
    *,
    ensemble: bool = True,
    trusted: bool = False,
    net: Any = None,
    params: Any = None,
) -> TrainedRun:
    """A trained energy as one value: of a run, `sample.weights` of its newest `sample.snapshots` valid checkpoints.

    Its parameters are float32, whatever x64 says.

    Args:
      folder: as for `load`.
      config: the run's own, or with other values in the groups `sample` and `eval`, or with another place of the same
        data; None: the run's own.
      mesh: the devices to work on; None: the first one alone.
      ensemble: whether the runs of `sample.with_runs` are members too, each with as many checkpoints.
      trusted: as for `load`; a `config` that is given is the caller's, and trusted.
      net, params: of a run that `fit` trained with an object of Python: the same again; their values do not count.

    Raises:
      BadInput: another network than the run's; no run, no checkpoint, only damaged ones, fewer than
        `sample.snapshots`; a member of another network; a config that cannot work, or of another run; other data than
        the run's; code that is not trusted.

    Examples:
      >>> import jax, ebm_jax
      >>> run = ebm_jax.open_run("two_moons")
      >>> run.energy(jax.random.uniform(jax.random.key(0), (5, *run.config.data.shape))).shape
      (5,)
    """
    folder = _place(folder)
    if net is not None and (name := name_of(net, params)) != (known := read_config(folder).model.name):
        raise BadInput(f"net is {name}, and {folder} is a run of {known}; give the network that it was trained with")
    asked = with_numbers(_read(folder, trusted) if config is None else config, folder)
    if config is not None:
        asked = checks.usable(asked)
        if differing := differences(read_config(folder), asked, anywhere=True):
            raise BadInput(
                f"config is of another run than {folder}: {describe(differing)}; change only its groups sample and eval"
            )
    identity.check_place(folder, asked)
    found = _restored(folder, asked, parallel.first_device_mesh() if mesh is None else mesh, asked.sample.snapshots)
    parts = [found.params]
    for other in other_runs(asked) if ensemble else []:
        check_member(asked, other)
        parts.append(load(other, snapshots=asked.sample.snapshots, trusted=trusted)[1])
    return found._replace(params=together(on_all_devices(parts, found.mesh)))


def save(
    trained: Given,
    folder: str | Folder,
    *,
    dtype: str = "float32",
    license: str = "",
    notes: str = "",
) -> TrainedRun:
    """Write a trained energy to a new folder that can be given away, as `TrainedRun.save`; `load` opens it again.

    Args:
      trained: a run, as `fit` and `open_run` give it; or the pair (config, params) of `load`, whose card then says
        neither step nor data, for a pair does not know them.
      folder, dtype, license, notes: as for `TrainedRun.save`.

    Raises:
      BadInput: as `TrainedRun.save`; `trained` is neither; or the parameters are of another network.

    Examples:
      >>> import tempfile, jax, ebm_jax
      >>> folder = tempfile.mkdtemp() + "/mine"
      >>> saved = ebm_jax.save(ebm_jax.open_run("two_moons"), folder, license="apache-2.0")
      >>> config, params = ebm_jax.load(folder)
      >>> points = jax.random.uniform(jax.random.key(0), (5, *config.data.shape))
      >>> bool((ebm_jax.make_energy_fn(config)(params, points) == saved.energy(points)).all())
      True
    """
    words = {"dtype": dtype, "license": license, "notes": notes}
    if isinstance(trained, TrainedRun):
        return trained.save(folder, **words)
    if not isinstance(trained, tuple) or len(trained) != 2 or callable(trained[0]):
        what = (
            "a function" if isinstance(trained, tuple) and trained and callable(trained[0]) else type(trained).__name__
        )
        raise BadInput(
            f"trained is {what}, which does not say how it samples; give a run, as ebm_jax.fit(net, images) gives, or "
            "the pair (config, params) of ebm_jax.load"
        )
    config, params = trained
    taken = inputs.of(config)
    taken.check_params(params)
    with tempfile.TemporaryDirectory() as unknown:
        run = TrainedRun(taken.config, params, parallel.first_device_mesh(), 0, Path(unknown), {})
        return run.save(folder, **words)


def _place(given: str | Folder) -> Folder:
    """The folder of an energy of this package, by its name, or the folder that is given.

    Raises:
      BadInput: there is both; or a name alone is neither.
    """
    name, names = str(given), shipped.energy_names()
    is_name, there = name in names, bucket.folder_of(given)
    is_folder = "/" in name or bucket.is_remote(there) or there.exists()
    if is_name and is_folder:
        raise BadInput(
            f"{name} is a folder here and an energy of this package; give ./{name}, or work in another folder"
        )
    if is_name:
        return shipped.energies() / name
    if not is_folder and isinstance(given, str):
        near = difflib.get_close_matches(name, names, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"{name} is no folder and no energy of this package ({', '.join(names)}){meant}")
    return there


def with_numbers(config: Config, folder: Folder) -> Config:
    """The config of the run in the folder, with numbers for the names of classes in `sample.labels`.

    Raises:
      BadInput: as `labels.numbered`; or the run's data.json is damaged.
    """
    return numbered(config, identity.class_names(folder))


def check_member(config: Config, folder: Folder) -> None:
    """Refuse a run that cannot be a member of an ensemble with a run of `config`.

    Raises:
      BadInput: its network or the shape of its images differs.
    """
    mine, other = flat(config), flat(read_config(folder))
    keys = [key for key in mine if key.startswith("model.") or key == "data.shape"]
    if differing := {key: (other.get(key, "absent"), mine[key]) for key in keys if other.get(key) != mine[key]}:
        raise BadInput(f"{folder} cannot be a member of this ensemble: {describe(differing)}; use runs of one network")


def other_runs(config: Config) -> list[Folder]:
    """The folders of `sample.with_runs`."""
    names = [name.strip() for name in config.sample.with_runs.split(",")]
    return [bucket.folder_of(name, "sample.with_runs") for name in names if name]


def _read(folder: Folder, trusted: bool) -> Config:
    """The config of a run; warn in one line each of keys filled in for a run of an earlier version, or not obeyed."""
    config, note = read(folder)
    if folder.parent == shipped.energies():
        return config  # whose keys that came later are no news
    config, refused = (config, ()) if trusted else trust.obeyed(config, folder)
    for words in filter(None, (note, *refused)):
        console.warn(words)
    return config


def _restored(folder: Folder, config: Config, mesh: Mesh, snapshots: int) -> TrainedRun:
    """The run with the network's parameters from its newest valid checkpoints, on every device of the mesh."""
    if published.lies_in(folder):
        return of_published(folder, config, mesh, snapshots)
    abstract, ema = abstract_state(config, mesh), config.sample.weights == "ema"
    directory = chosen(config)
    with progress.phase("restoring the newest checkpoint"):
        newest = restore(folder, abstract, directory=directory)
    taken, skipped = [network_params(newest.state, ema)], dict(newest.skipped)
    newest_step = step = newest.step or 0
    while len(taken) < snapshots:
        older = restore(folder, abstract, step, directory)
        if older.step is None:
            raise BadInput(
                f"{folder} has {len(taken)} valid checkpoints, not {snapshots}; use at most that many snapshots, or "
                "train with a larger checkpoint.keep"
            )
        taken.append(network_params(older.state, ema))
        skipped, step = skipped | older.skipped, older.step
    return TrainedRun(config, together(taken), mesh, newest_step, folder, skipped, identity.class_names(folder))


def together(parts: Sequence[Params]) -> Params:
    """Stack several parameters, each of one network or stacked, into one tree; a single tree stays as it is."""
    if len(parts) == 1:
        return parts[0]
    return energy.stack([member for part in parts for member in energy.members(part)])


def chosen(config: Config) -> str:
    """The directory of the checkpoints that `sample.checkpoint` names."""
    return checkpoint.BEST if config.sample.checkpoint == "best" else checkpoint.DIRECTORY


def restore(
    workdir: Folder,
    abstract: TrainState,
    before: float | int = math.inf,
    directory: str = checkpoint.DIRECTORY,
) -> checkpoint.Restored:
    """The newest valid checkpoint of a run; with `before`, the newest of an earlier step, or none.

    Raises:
      BadInput: the run has no checkpoint or, without `before`, only damaged ones.
    """
    if not checkpoint.exists(workdir, directory):
        if directory == checkpoint.BEST:
            raise BadInput(
                f"{workdir} has no best checkpoint; train with eval.during=500, or use sample.checkpoint=newest"
            )
        raise BadInput(f"{workdir} has no checkpoint to sample from; train first, or give another --workdir")
    with checkpoint.open_manager(workdir, read_only=True, directory=directory) as manager:
        restored = checkpoint.restore_newest(manager, abstract, before)
    if restored.step is None and before == math.inf:
        raise BadInput(checkpoint.all_damaged(workdir, restored, directory))
    return restored
