"""A trained run as one value that gives its energies, its samples and its data."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import applications, arguments, checks, choice, identity, inputs, publishing, trust
from ebm_jax.assemble import labels_for, make_apply, make_chain_energy
from ebm_jax.data import sources
from ebm_jax.data.memory import Dataset
from ebm_jax.distributed import parallel
from ebm_jax.labels import as_array, in_words, label_shape, names_of, numbered, sample_labels
from ebm_jax.models import energy
from ebm_jax.report import console, style
from ebm_jax.samplers import (
    Chain,
    make_chains,
    make_class_compare,
    make_energy_fn,
    make_labelled_sampler,
    on_host,
    over_places,
)
from ebm_jax.schema import of_run, with_values
from ebm_jax.storage import bucket
from ebm_jax.storage.workdir import read_config
from ebm_jax.types import Along, BadInput, Config, EnergyFn, Folder, Given, Params, Places, PRNGKey, Scalar, at_share

Note = Callable[[str], None]
"""Takes a few words on the progress of a long piece of work, for the person who waits."""


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
        return of_published(target, read_config(target), self.mesh)

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


def of_published(folder: Folder, config: Config, mesh: Mesh, snapshots: int = 1) -> TrainedRun:
    """An energy that was given away, on every device of the mesh: it has one set of parameters, and no checkpoint.

    Raises:
      BadInput: as `publishing.restored`.
    """
    params, file = publishing.restored(folder, config, snapshots)
    return TrainedRun(config, on_all_devices(params, mesh), mesh, file.step, folder, {}, identity.class_names(folder))


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


def on_all_devices(params: Params, mesh: Mesh) -> Params:
    """Copy parameters, which `load` gives on the first device, to every device of the mesh."""
    return jax.device_put(params, parallel.shardings(mesh, parallel.REPLICATED))


def with_split(config: Config, split: str) -> Config:
    """The config with another split of its data."""
    return with_values(config, {"data.split": split})


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
