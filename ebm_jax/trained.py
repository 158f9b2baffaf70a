"""A trained run as one value that gives its energies, its samples and its data."""

import difflib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import applications, arguments, checks, choice, identity, inputs, publishing, shipped, trust
from ebm_jax.assemble import labels_for, make_apply, make_chain_energy
from ebm_jax.data import sources
from ebm_jax.data.memory import Dataset
from ebm_jax.distributed import parallel
from ebm_jax.labels import as_array, in_words, label_shape, names_of, numbered, sample_labels
from ebm_jax.models import energy
from ebm_jax.models.outside import name_of
from ebm_jax.program import abstract_state
from ebm_jax.report import console, progress, style
from ebm_jax.samplers import (
    Chain,
    make_chains,
    make_class_compare,
    make_energy_fn,
    make_labelled_sampler,
    on_host,
    over_places,
)
from ebm_jax.schema import flat, of_run, with_values
from ebm_jax.storage import bucket, checkpoint, published
from ebm_jax.storage.workdir import describe, differences, read, read_config
from ebm_jax.training.state import TrainState, network_params
from ebm_jax.types import Along, BadInput, Config, EnergyFn, Folder, Given, Params, Places, PRNGKey, Scalar, at_share

Note = Callable[[str], None]
"""Takes a few words on the progress of a long piece of work, for the person who waits."""


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


class Generated(NamedTuple):
    """Where chains from noise ended."""

    images: np.ndarray
    """float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n] or float32 [n, k]: the label of each chain."""
    energies: np.ndarray
    """float32 [n]."""


class TrainedRun(NamedTuple):
    """A trained run, or an ensemble of several: its config, weights and origin.

    Its methods follow its config: `run._replace(config=...)` asks the same run for something else.
    """

    config: Config
    params: Params
    """One network's parameters, or an ensemble's, stacked; on every device of the mesh."""
    mesh: Mesh
    step: int
    """The step of the newest checkpoint in use."""
    folder: Folder
    skipped: dict[int, str]
    """From the step of each damaged checkpoint passed over to its fault; whoever opens the run reports it."""
    class_names: tuple[str, ...] = ()
    """The names of the data's classes in the order of their labels; empty: they have none."""

    def __repr__(self) -> str:
        """One line for a person who looks at it in a notebook: of config and weights each is pages long."""
        members = energy.num_members(self.params)
        number = self.config.model.num_classes if label_shape(self.config) is None else 1
        classes = f", {number} classes" if number > 1 else ""
        models = f", {members} models" if members else ""
        weights = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"TrainedRun({self.folder}, step {self.step:,}: images {list(self.config.data.shape)}{classes}{models}, "
            f"{weights:,} parameters)"
        )

    def energy_fn(self, labels: Given = None) -> EnergyFn:
        """The energy of images under these labels, [b] or [b, k]; None: of no class.

        Its arguments, types and errors are those of `make_energy_fn`.

        Raises:
          BadInput: the config cannot work.
        """
        energy_fn = make_energy_fn(self.config)
        return lambda images: energy_fn(self.params, images, labels)

    def chain_energy_fn(self, labels: Given = None) -> EnergyFn:
        """The energy that sampling's chains follow: `energy_fn`, guided by `sample.guidance`.

        Raises:
          BadInput: the config cannot work; other labels than the model's.
        """
        of = make_chain_energy(self.config)

        def at(share: float | Scalar) -> EnergyFn:
            return lambda x: at_share(of(self.params, labels_for(self.config, labels, x.shape[0])), share)(x)

        return Along(at)

    def energy(self, images: Given, labels: Given = None) -> np.ndarray:
        """The energies float32 [n] of images, as `energy_of`.

        Args:
          images: as there.
          labels: as there; or a class, by number or by name, or a list of them, one an image.

        Raises:
          BadInput: as there; or there is no such class.
        """
        number = len(images) if np.ndim(images) else 0
        return self.energy_of(images, as_array(labels, self.class_names, number))

    def sample(self, key: Given, number: int = 64, labels: Given = None) -> np.ndarray:
        """Images from noise, float32 [number, h, w, c] in [0, 1].

        Args:
          key: one typed PRNG key, `jax.random.key(SEED)`.
          number: 1 or more.
          labels: a class, or several in turn, by number or by name; None: all classes in turn.

        Raises:
          BadInput: `key` is no such key, or `number` is below 1; there is no such class.
        """
        arguments.check_whole("number", number, 1)
        each = [] if labels is None else [labels] if isinstance(labels, str) else np.atleast_1d(labels).tolist()
        changes = {"sample.num_images": number, "sample.labels": ",".join(map(str, each))}
        config = numbered(with_values(self.config, changes), self.class_names)
        return self._replace(config=checks.usable(config))._drawn(key)[0]

    def save(self, folder: str | Folder, *, dtype: str = "float32", license: str = "", notes: str = "") -> "TrainedRun":
        """Write the energy to a new folder that can be given away, as model hubs take it; return it from there.

        model.safetensors has the weights, config.json all keys, README.md the card: what it is, its data, how it was
        trained, the newest evaluation of this step. `load`, `open_run` and the modes sample, evaluate and export take
        the folder; training does not go on from it.

        Args:
          dtype: of the weights in the file: float32, bfloat16 or float16.
          license: the SPDX name of the licence that you give it under, for the card; empty: none is stated.
          notes: sentences for the card, on the data and their licence for example.

        Raises:
          BadInput: there is something already, or it cannot be written; no such type.
        """
        target = bucket.folder_of(folder, "folder")
        words = {"dtype": dtype, "license": license, "notes": notes}
        publishing.publish(self.config, self.params, self.step, self.folder, target, **words)
        return _restored(target, read_config(target), self.mesh, 1)

    def energy_of(self, images: Given, labels: Given = None) -> np.ndarray:
        """The energies float32 [n] of any number of images on the host, `sample.batch_size` at a time.

        Args:
          images: floats [n, *data.shape], n >= 1; pixels in [0, 1].
          labels: [n] or [n, k]; an unconditional model needs none, nor does one with an energy of no class.

        Raises:
          BadInput: as `make_energy_fn`.
        """
        arguments.check_images("images", images, tuple(self.config.data.shape))
        rows = np.asarray(images, np.float32), np.asarray(labels_for(self.config, labels, len(images)))
        return self._in_batches(_program(_make_energies, self.config), rows, self.config.sample.batch_size)

    def map(self, fn: Callable[..., Any], *rows: np.ndarray, batch_size: int, note: Note = lambda words: None) -> Any:
        """`fn(energy_of, *rows of a batch)` over all rows, `batch_size` at a time, spread over all devices.

        Args:
          fn: takes energy_of, (images, labels=None) -> energies, and arrays of one batch [b, ...]; `map` compiles it.
          rows: arrays [n, ...], n >= 1.
          batch_size: 1 or more.

        Returns:
          The tree that `fn` gives, with leaves [n, ...] on the host.

        Raises:
          BadInput: there are no rows, they differ in number, or `batch_size` is below 1.
        """
        arguments.check_whole("batch_size", batch_size, 1)
        if len({len(array) for array in rows}) != 1 or not len(rows[0]):
            raise BadInput(f"rows of {[len(array) for array in rows]}; give arrays of one length, 1 or more")
        apply = energy.of_members(make_apply(self.config))
        compiled = jax.jit(lambda params, *batch: fn(partial(apply, params), *batch))
        return self._in_batches(compiled, rows, batch_size, note)

    def _in_batches(
        self, compiled: Callable[..., Any], rows: Sequence[np.ndarray], batch_size: int, note: Note = lambda words: None
    ) -> Any:
        """The tree of `compiled(params, *rows of a batch)`, batch after batch, with leaves [n, ...] on the host."""
        n, devices = len(rows[0]), self.mesh.size
        size = -(-min(batch_size, n) // devices) * devices
        parts = []
        for start in range(0, n, size):
            places = np.minimum(np.arange(start, start + size), n - 1)  # the last batch repeats the last row
            batch = parallel.place_batch(self.mesh, tuple(array[places] for array in rows))
            parts.append(jax.device_get(compiled(self.params, *batch)))
            note(f"{min(start + size, n):,} of {n:,} images")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)

    def samples(self, key: Given, note: Note = lambda words: None) -> Generated:
        """`sample.num_images` chains from noise under the labels of `sample.labels`, or under all labels in turn.

        With `sample.keep` below 1 they are the ones, of so many more, whose class the model tells best.

        Args:
          key: one typed PRNG key, `jax.random.key(SEED)`.

        Raises:
          BadInput: `key` is no such key; the config cannot work, or is of another network; `sample.keep` is below 1,
            and training never compared the classes.
        """
        images, labels = self._drawn(key, note)
        return Generated(images, labels, self.energy_of(images, labels))

    def _drawn(self, key: PRNGKey, note: Note = lambda words: None) -> tuple[np.ndarray, np.ndarray]:
        """`samples` without energies, which are a program of their own: images alone come sooner."""
        self._check(key)
        compare = _program(make_class_compare, self.config) if self.config.sample.keep < 1 else None
        number, wanted = choice.num_drawn(self.config), self.config.sample.num_images
        images = np.empty((number, *self.config.data.shape), np.float32)  # two copies of the largest sets do not fit
        under, done = [], 0
        asked = np.asarray(sample_labels(self.config, jnp.arange(wanted)))
        of_any = with_values(self.config, {"sample.labels": ""})  # labels of the config would compile one by one
        sampler = _program(make_labelled_sampler, of_any, self.mesh)
        note(f"compiling, and sampling the first of {number:,}")
        for batch, labels in on_host(sampler, (self.params, asked), key, number):
            images[done : done + len(batch)] = batch
            under.append(labels)
            done += len(batch)
            note(f"{done:,} of {number:,} sampled")
        labels = np.concatenate(under)
        if compare is None:
            return images, labels
        rows = self._surest(images, labels, asked, compare, jax.random.fold_in(key, number), note)
        return images[rows], labels[rows]

    def _surest(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        asked: np.ndarray,
        compare: Callable[..., Any],
        key: PRNGKey,
        note: Note,
    ) -> np.ndarray:
        """The rows of samples drawn, one for each label asked for: in each class those that the model tells best."""
        number = len(images)
        note(f"telling the classes of {number:,} samples")
        energies = self._in_batches(
            lambda params, *rows: compare(params, key, *rows),
            (images, np.arange(number, dtype=np.int32)),
            self.config.sample.batch_size,
            note,
        )
        return choice.surest(labels, choice.margins(energies, labels), asked)

    def chains(
        self,
        key: Given,
        chain: Chain = applications.generate,
        *,
        energy_of: Callable[[Params, Places], EnergyFn] | None = None,
        params: Params | None = None,
        note: Note = lambda words: None,
    ) -> Any:
        """Run another chain, or a chain under another energy, from the noise that `samples` starts from.

        Args:
          key: one typed PRNG key, `jax.random.key(SEED)`.
          energy_of: (parameters, places among the `sample.num_images` chains) -> the energy of the chains there; None:
            the run's own energy, under the labels of `samples`.
          params: the parameters for `energy_of`, on every device of the mesh; None: the run's own.
          note: takes how far the chains are.

        Returns:
          The chain's tree of arrays, [n, ...] on the host.

        Raises:
          BadInput: as `samples`.
        """
        self._check(key)
        config, of = self.config, make_chain_energy(self.config)
        chains = make_chains(config, chain)

        def own(params: Params, places: Places) -> EnergyFn:
            return of(params, sample_labels(config, places))

        def program(params: Params, key: PRNGKey, places: Places) -> Any:
            return chains(key, len(places), (energy_of or own)(params, places))

        sampler = over_places(config, self.mesh, program)
        batches, done, number = [], 0, config.sample.num_images
        note(f"compiling, and the first of {number:,} chains")
        for batch in on_host(sampler, self.params if params is None else params, key, number):
            batches.append(batch)
            done += len(jax.tree.leaves(batch)[0])
            note(f"{done:,} of {number:,} chains")
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def data(self, split: str, rows_of: Callable[[int], np.ndarray] = np.arange) -> Dataset:
        """The uint8 images of a split of the run's own data, preprocessed as in training, with the data's labels.

        An unconditional model gets the data's labels too, though it never saw them.

        Args:
          rows_of: from the number of images to the rows to read.

        Raises:
          BadInput: there is no such split, or it cannot be read.
        """
        return sources.load_dataset(with_split(self.config, split), console.warn, rows_of)

    def title(self, what: str, *facts: str) -> str:
        """The title of a picture of the run: what it shows, the facts, and which weights made it."""
        members = energy.num_members(self.params)
        ensemble = f"mean energy of {members} models" if members else ""
        return style.title(self.folder.name, self.step, what, *facts, ensemble, style.weights(self.config))

    def names_of(self, labels: np.ndarray) -> list[str]:
        """The class names of labels [n]; [] for vectors, an unconditional model, or classes without names."""
        return names_of(self.config, labels, self.class_names)

    def in_words(self, labels: np.ndarray) -> list[str]:
        """The classes of labels [n] in words, also where they have no names; [] for vectors, an unconditional model."""
        return in_words(self.config, labels, self.class_names)

    def _check(self, key: Given) -> None:
        """Refuse what is no key, and a config of another network than the parameters'."""
        arguments.check_key("key", key)
        inputs.of(self.config).check_params(self.params)


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


def _make_energies(config: Config) -> Callable[..., Any]:
    """The compiled function (params, images [b, ...], labels) -> energies [b]."""
    apply = energy.of_members(make_apply(config))
    return jax.jit(lambda params, images, labels: apply(params, images, labels))


def _program(make: Callable[..., Any], config: Config, *more: Any) -> Callable[..., Any]:
    """`make(config, *more)`, kept for the next call: a program compiles for seconds, and only once for each shape.

    A config that names code from outside may mean something else by then, so it is made anew.
    """
    if not trust.is_ours(config):
        return make(config, *more)
    return _kept(make, json.dumps(config.to_dict(), sort_keys=True), *more)


@lru_cache(maxsize=16)
def _kept(make: Callable[..., Any], text: str, *more: Any) -> Callable[..., Any]:
    return make(of_run(json.loads(text), "a config")[0], *more)


def with_numbers(config: Config, folder: Folder) -> Config:
    """The config of the run in the folder, with numbers for the names of classes in `sample.labels`.

    Raises:
      BadInput: as `labels.numbered`; or the run's data.json is damaged.
    """
    return numbered(config, identity.class_names(folder))


def on_all_devices(params: Params, mesh: Mesh) -> Params:
    """Copy parameters, which `load` gives on the first device, to every device of the mesh."""
    return jax.device_put(params, parallel.shardings(mesh, parallel.REPLICATED))


def with_split(config: Config, split: str) -> Config:
    """The config with another split of its data."""
    return with_values(config, {"data.split": split})


def check_member(config: Config, folder: Folder) -> None:
    """Refuse a run that cannot be a member of an ensemble with a run of `config`.

    Raises:
      BadInput: its network or the shape of its images differs.
    """
    mine, other = flat(config), flat(read_config(folder))
    keys = [key for key in mine if key.startswith("model.") or key == "data.shape"]
    if differing := {key: (other.get(key, "absent"), mine[key]) for key in keys if other.get(key) != mine[key]}:
        raise BadInput(f"{folder} cannot be a member of this ensemble: {describe(differing)}; use runs of one network")


def check_sampling_buffer(config: Config, group: str, number: str, num_devices: int) -> None:
    """Refuse turns without a sampling buffer, and a buffer too small for `group`, or not divisible by the devices.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """
    sample, images, batch = config.sample, config[group][number], config[group].batch_size
    if sample.ensemble == "turns" and not sample.buffer_capacity:
        raise BadInput("sample.ensemble turns needs a sampling buffer; set sample.buffer_capacity, 1000 for example")
    smallest = max(images, -(-min(images, batch) // num_devices) * num_devices)
    if sample.buffer_capacity and (sample.buffer_capacity < smallest or sample.buffer_capacity % num_devices):
        use = -(-max(sample.buffer_capacity, smallest) // num_devices) * num_devices
        raise BadInput(
            f"sample.buffer_capacity {sample.buffer_capacity} must hold {group}.{number} {images} and be divisible by "
            f"{num_devices} devices; use {use}"
        )


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
    """The run with the network's parameters from its newest valid checkpoints, on every device of the mesh.

    An energy that was given away has one set of them, and no checkpoint.
    """
    if published.lies_in(folder):
        params, file = publishing.restored(folder, config, snapshots)
        params = on_all_devices(params, mesh)
        return TrainedRun(config, params, mesh, file.step, folder, {}, identity.class_names(folder))
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
