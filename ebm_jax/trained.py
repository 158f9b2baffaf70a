"""A trained run as one value, from which its energies, its samples and its data follow."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import applications
from ebm_jax.assemble import abstract_state, make_apply, make_base, make_stages
from ebm_jax.data import sources
from ebm_jax.data.memory import Dataset
from ebm_jax.distributed import parallel
from ebm_jax.labels import check_labels, label_shape, sample_labels
from ebm_jax.metrics import density
from ebm_jax.models import energy
from ebm_jax.report import console
from ebm_jax.sampling import pool, replay
from ebm_jax.sampling.kernel import Stages
from ebm_jax.sampling.pool import Pool
from ebm_jax.schema import flat, with_values
from ebm_jax.storage import bucket, checkpoint
from ebm_jax.storage.workdir import describe, read, read_config
from ebm_jax.training.state import TrainState, network_params
from ebm_jax.types import BadInput, Config, Energies, EnergyFn, Folder, Images, Labels, Params, Places, PRNGKey

Note = Callable[[str], None]
"""Takes a few words on how far a long piece of work is, for the person who waits."""
Chain = Callable[[PRNGKey, Images, EnergyFn, Stages], Any]
"""What is done from a start, such as `applications.generate`: a tree of arrays, one row for each chain."""
DENSITY_GRID = 400  # cells a side: 8 in the narrowest feature's standard deviation; the checkerboard needs tens


def make_density_report(config: Config) -> Callable[[Params], tuple[density.GridReport, np.ndarray]]:
    """The function params -> (how far the model is from its 2-D law, its log-density on a grid).

    The log-density is float64 [side · side], in nats.
    """
    energy_fn, points = make_energy_fn(config), density.grid(DENSITY_GRID)
    log_density = sources.make_density(config).log_density(points)

    def report_of(params: Params) -> tuple[density.GridReport, np.ndarray]:
        energies = density.grid_energies(lambda x: energy_fn(params, x), points)
        report = density.report_of_energies(energies, log_density)
        return report, -energies - report.log_z

    return report_of


def make_energy_fn(config: Config) -> Callable[..., Energies]:
    """`energy_fn(params, images, labels=None) -> energies`: images [b, h, w, c] in [0, 1], labels [b], energies [b].

    It raises BadInput for labels of another shape or, but for inside jit, out of range: there their energy is NaN.
    """
    apply = energy.of_members(make_apply(config))

    def energy_fn(params: Params, images: Images, labels: Labels | None = None) -> Energies:
        if labels is not None:
            check_labels(config, labels, images.shape[0])
        return apply(params, images, labels)

    return energy_fn


def make_sample_fn(config: Config) -> Callable[..., Images]:
    """`sample_fn(params, key, *, labels=None, init=None) -> images`: float32 [n, h, w, c] in [0, 1].

    Chains of `sample.num_steps` steps from `init` [n, h, w, c], or from the law of `chain.base`; a pure function, to be jitted, vmapped
    and called again. n is that of `init` or of `labels` ([n] or [n, k]), else `sample.num_images`. Without labels a
    conditional model goes through its classes in turn, or through the values of its condition. Labels are checked as by
    `make_energy_fn`.
    """
    apply, chains = energy.of_members(make_apply(config)), make_chains(config)

    def sample_fn(params: Params, key: PRNGKey, *, labels: Labels | None = None, init: Images | None = None) -> Images:
        if labels is None:
            labels = sample_labels(config, jnp.arange(config.sample.num_images if init is None else len(init)))
        number = labels.shape[0] if init is None else init.shape[0]
        check_labels(config, labels, number)
        return chains(key, number, energy.bind(apply, params, labels), init)

    return sample_fn


def make_chains(config: Config, chain: Chain = applications.generate) -> Callable[..., Any]:
    """The function (key, number, energy_fn, init=None) -> what `chain` makes of so many chains by the keys of `sample`.

    They start from `init`, or from the law of `chain.base`. All samples of a run, wherever they are drawn, come from here.
    """
    stages, base = make_stages(config), make_base(config)

    def chains(key: PRNGKey, number: Any, energy_fn: EnergyFn, init: Images | None = None) -> Any:
        key_init, key_chain = jax.random.split(key)
        return chain(key_chain, base.sample(key_init, number) if init is None else init, energy_fn, stages)

    return chains


def over_places(config: Config, mesh: Mesh, program: Callable[[Params, PRNGKey, Places], Any]) -> Callable:
    """The compiled (params, key, first) -> the tree of `program` for one batch of chains over all devices.

    A batch is `sample.batch_size` chains, at most `sample.num_images`, rounded up to a multiple of the devices. Chain i
    stands at place first + i. Each device runs the program on its own chains, with a key of its own.
    """
    share = _share(config, mesh)

    def local(params: Params, key: PRNGKey, first: int | jax.Array) -> Any:
        return program(parallel.varying(params), parallel.device_key(key), _places(first, share))

    return parallel.over_devices(local, mesh, (parallel.REPLICATED,) * 3, parallel.SHARDED)


def make_sampler(config: Config, mesh: Mesh) -> Callable:
    """The compiled (params, key, first) -> (images, labels, energies) of one batch of `over_places`, from noise.

    The chain at a place has the place's label (`labels.sample_labels`).
    """
    sample_fn, energy_fn = make_sample_fn(config), make_energy_fn(config)

    def program(params: Params, key: PRNGKey, places: Places) -> tuple[Images, Labels, Energies]:
        labels = sample_labels(config, places)
        images = sample_fn(params, key, labels=labels)
        return images, labels, energy_fn(params, images, labels)

    return over_places(config, mesh, program)


def on_host(sampler: Callable, params: Params, key: PRNGKey, number: int) -> Iterator[Any]:
    """The trees of a sampler of `over_places`, batch by batch, until they have `number` rows together."""
    done = 0
    for index in itertools.count():
        if done >= number:
            return
        batch = jax.device_get(sampler(params, jax.random.fold_in(key, index), done))
        yield jax.tree.map(partial(_first_rows, number - done), batch)
        done += len(jax.tree.leaves(batch)[0])


def _first_rows(number: int, rows: np.ndarray) -> np.ndarray:
    return rows[:number]


def _share(config: Config, mesh: Mesh) -> int:
    """The chains of one batch on one device."""
    return -(-min(config.sample.num_images, config.sample.batch_size) // mesh.size)


def _places(first: int | jax.Array, share: int) -> Places:
    """Where this device's chains stand among all, the batch beginning at place `first`."""
    return first + jax.lax.axis_index(parallel.AXIS) * share + jnp.arange(share)


def init_sampling_buffer(config: Config, key: PRNGKey) -> Pool:
    """A sampling buffer of `sample.buffer_capacity` chains of noise, for `make_buffered_sample_fn`."""
    dtype = jnp.dtype(config.buffer.dtype)
    return pool.init(key, config.sample.buffer_capacity, make_base(config), dtype, label_shape(config))


def make_buffered_sample_fn(config: Config) -> Callable[..., tuple[Images, Labels, Pool]]:
    """`fn(params, key, buffer, labels) -> (images, labels, buffer)`: a round of chains that wait in a sampling buffer.

    As many chains as `labels` are drawn from the buffer, run for `sample.num_steps` and put back; a chain restarts from
    noise with `sample.restart_prob` and takes its new label then or with `sample.relabel_prob`. Under stacked
    parameters (`ebm_jax.stack`) the members share the buffer: at the mean of their energies, or in turns, one member a
    round (`sample.ensemble`).

    Returns:
      float32 [n, h, w, c] in [0, 1], the labels [n] of these chains, and the buffer for the next call.
    """
    apply, stages, base = energy.of_members(make_apply(config)), make_stages(config), make_base(config)
    in_turns = config.sample.ensemble == "turns"

    def fn(params: Params, key: PRNGKey, buffer: Pool, labels: Labels) -> tuple[Images, Labels, Pool]:
        check_labels(config, labels, labels.shape[0])
        members = energy.num_members(params)

        def energy_of(rounds: jax.Array, labels: Labels) -> EnergyFn:
            turn = energy.member(params, rounds % members) if in_turns and members else params
            return energy.bind(apply, turn, labels)

        chances = {"restart_prob": config.sample.restart_prob, "relabel_prob": config.sample.relabel_prob}
        buffer, images, labels = pool.advance(key, buffer, labels, energy_of, stages, base, **chances)
        return images, labels, buffer

    return fn


def make_rounds(config: Config, mesh: Mesh) -> tuple[Callable, Callable, Any]:
    """The sampling buffer over all devices: its compiled (key) -> buffer and (params, key, buffer) -> buffer.

    A round draws as many chains as `make_sampler` runs at once; its labels go on from round to round. The second
    function consumes its buffer. The last value is the buffer's tree of shapes, types and shardings.
    """
    sample_fn, share = make_buffered_sample_fn(config), _share(config, mesh)
    specs = pool.partition(parallel.SHARDED)
    init = jax.jit(partial(init_sampling_buffer, config), out_shardings=parallel.shardings(mesh, specs))

    def local(params: Params, key: PRNGKey, buffer: Pool) -> Pool:
        key = parallel.device_key(jax.random.fold_in(key, buffer.rounds))
        labels = sample_labels(config, _places(buffer.rounds * share * mesh.size, share))
        return sample_fn(parallel.varying(params), key, buffer, labels)[2]

    advance = parallel.over_devices(local, mesh, (parallel.REPLICATED, parallel.REPLICATED, specs), specs, (2,))
    abstract = jax.eval_shape(partial(init_sampling_buffer, config), jax.random.key(0))
    return init, advance, parallel.abstract(abstract, mesh, specs)


def oldest_chains(config: Config, buffer: Pool, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, labels, rounds since each began) of the `number` chains that went the most rounds, on the host."""
    images, labels, visits = jax.device_get((buffer.chains.images, buffer.chains.labels, buffer.chains.visits))
    order = np.argsort(-visits, kind="stable")[:number]
    decoded = np.asarray(replay.as_images(jnp.asarray(images[order]), tuple(config.data.shape)))
    return decoded, labels[order], visits[order]


def load(workdir: str | Folder, *, snapshots: int = 1) -> tuple[Config, Params]:
    """The config of the run in `workdir` and the network's parameters from its newest valid checkpoint.

    The parameters are those that `sample.weights` names, "ema" or "raw", and fit `make_energy_fn(config)` and
    `make_sample_fn(config)`. They lie on the first device. Those of a run of several models, and those of more than one
    checkpoint, are stacked: an ensemble. `open_run` gives the run as one value.

    Args:
      snapshots: how many of the newest valid checkpoints to take, each a member.

    Raises:
      BadInput: no run, no checkpoint, only damaged ones, or fewer than `snapshots`.
    """
    folder = bucket.folder_of(workdir)
    found = _restored(folder, _read(folder), _first_device(), snapshots)
    return found.config, found.params


class Generated(NamedTuple):
    """Where chains from noise ended."""

    images: np.ndarray
    """float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n] or float32 [n, k]: what each was sampled under."""
    energies: np.ndarray
    """float32 [n]."""


class TrainedRun(NamedTuple):
    """A trained run, or an ensemble of several: config, weights, and where they are from.

    What it gives follows its config: `run._replace(config=...)` is the same run, asked for something else.
    """

    config: Config
    params: Params
    """Of the network, or of several, stacked, which are an ensemble; on every device of the mesh."""
    mesh: Mesh
    step: int
    """Of the newest checkpoint that was taken."""
    folder: Folder
    skipped: dict[int, str]
    """What is wrong with each damaged checkpoint that was passed over, by its step; who opens the run says it."""

    def energy_fn(self, labels: Labels | None = None) -> EnergyFn:
        """The energy of images under these labels [b] or [b, k]; None for an unconditional model."""
        energy_fn = make_energy_fn(self.config)
        return lambda images: energy_fn(self.params, images, labels)

    def energy_of(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The energies float32 [n] of any number of images on the host, `sample.batch_size` at a time."""
        return self.map(
            lambda energy_of, x, y: energy_of(x, y), images, labels, batch_size=self.config.sample.batch_size
        )

    def map(self, fn: Callable[..., Any], *rows: np.ndarray, batch_size: int, note: Note = lambda words: None) -> Any:
        """`fn(energy_of, *rows of a batch)` over all rows, `batch_size` at a time, spread over all devices.

        Args:
          fn: of energy_of, (images, labels=None) -> energies, and of arrays of one batch, [b, ...]; it is compiled.
          rows: arrays [n, ...], n >= 1.

        Returns:
          The tree that `fn` gives, its leaves [n, ...] on the host.
        """
        apply, n, devices = energy.of_members(make_apply(self.config)), len(rows[0]), self.mesh.size
        size = -(-min(batch_size, n) // devices) * devices
        compiled = jax.jit(lambda params, *batch: fn(partial(apply, params), *batch))
        parts = []
        for start in range(0, n, size):
            places = np.minimum(np.arange(start, start + size), n - 1)  # the last batch repeats the last row
            batch = parallel.place_batch(self.mesh, tuple(array[places] for array in rows))
            parts.append(jax.device_get(compiled(self.params, *batch)))
            note(f"{min(start + size, n):,} of {n:,} images")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)

    def samples(self, key: PRNGKey, note: Note = lambda words: None) -> Generated:
        """`sample.num_images` chains from noise under the labels of `sample.labels`, or under all in turn."""
        number = self.config.sample.num_images
        images = np.empty((number, *self.config.data.shape), np.float32)  # two copies of the largest sets do not fit
        others, done = [], 0
        note(f"sampling {number}, the first batch")
        for batch, labels, energies in on_host(make_sampler(self.config, self.mesh), self.params, key, number):
            images[done : done + len(batch)] = batch
            others.append((labels, energies))
            done += len(batch)
            note(f"{done} of {number} sampled")
        return Generated(images, *(np.concatenate(column) for column in zip(*others, strict=True)))

    def chains(
        self,
        key: PRNGKey,
        chain: Chain = applications.generate,
        *,
        energy_of: Callable[[Params, Places], EnergyFn] | None = None,
        params: Params | None = None,
    ) -> Any:
        """What another chain, or a chain under another energy, makes of the noise that `samples` begins from.

        Args:
          energy_of: parameters, and places among the `sample.num_images` chains -> the energy of the chains there; None
            is the run's own, under the labels of `samples`.
          params: what `energy_of` takes, on every device of the mesh; None is the run's own.

        Returns:
          The chain's tree of arrays, [n, ...] on the host.
        """
        config, apply = self.config, energy.of_members(make_apply(self.config))
        chains = make_chains(config, chain)

        def own(params: Params, places: Places) -> EnergyFn:
            return energy.bind(apply, params, sample_labels(config, places))

        def program(params: Params, key: PRNGKey, places: Places) -> Any:
            return chains(key, len(places), (energy_of or own)(params, places))

        sampler = over_places(config, self.mesh, program)
        batches = on_host(sampler, self.params if params is None else params, key, config.sample.num_images)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def data(self, split: str, rows_of: Callable[[int], np.ndarray] = np.arange) -> Dataset:
        """All images uint8 of a split of the run's own data, preprocessed as in training, with the data's labels.

        An unconditional model's have the data's labels too, though it never saw them.

        Args:
          rows_of: the number of images -> those rows of them that are read.

        Raises:
          BadInput: there is no such split, or it cannot be read.
        """
        return sources.load_dataset(with_split(self.config, split), console.warn, rows_of)


def open_run(
    folder: str | Folder, config: Config | None = None, mesh: Mesh | None = None, *, ensemble: bool = True
) -> TrainedRun:
    """The run in a folder with the weights of its newest valid checkpoints: `sample.snapshots`, `sample.weights`.

    Args:
      config: the run's own, perhaps with other values in the groups `sample` and `eval`; None is the run's own.
      mesh: the devices to work on; None is the first one alone.
      ensemble: whether the runs of `sample.with_runs`, each with as many checkpoints, are members beside it.

    Raises:
      BadInput: no run, no checkpoint, only damaged ones, or fewer than asked for; a member's network is another one.
    """
    folder = bucket.folder_of(folder)
    asked = _read(folder) if config is None else config
    found = _restored(folder, asked, _first_device() if mesh is None else mesh, asked.sample.snapshots)
    parts = [found.params]
    for other in other_runs(asked) if ensemble else []:
        check_member(asked, other)
        parts.append(load(other, snapshots=asked.sample.snapshots)[1])
    return found._replace(params=together(on_all_devices(parts, found.mesh)))


def on_all_devices(params: Params, mesh: Mesh) -> Params:
    """Parameters, such as those that `load` gives on the first device, on every device of the mesh."""
    return jax.device_put(params, parallel.shardings(mesh, parallel.REPLICATED))


def with_split(config: Config, split: str) -> Config:
    """The config whose data is another split."""
    return with_values(config, {"data.split": split})


def check_member(config: Config, folder: Folder) -> None:
    """Refuse a run that cannot be a member of an ensemble with a run of `config`.

    Raises:
      BadInput: its network or images are others.
    """
    mine, other = flat(config), flat(read_config(folder))
    keys = [key for key in mine if key.startswith("model.") or key == "data.shape"]
    if differing := {key: (other.get(key, "absent"), mine[key]) for key in keys if other.get(key) != mine[key]}:
        raise BadInput(f"{folder} cannot be a member of this ensemble: {describe(differing)}; use runs of one network")


def check_sampling_buffer(config: Config, group: str, number: str, num_devices: int) -> None:
    """Refuse turns without a sampling buffer, and one too small for `group`'s images and batches, or not divisible.

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
    return [bucket.folder_of(name.strip()) for name in config.sample.with_runs.split(",") if name.strip()]


def _read(folder: Folder) -> Config:
    """The config of a run; what was filled in for one of an earlier version is told in one line."""
    config, note = read(folder)
    if note:
        console.warn(note)
    return config


def _first_device() -> Mesh:
    return parallel.device_mesh(jax.local_devices()[:1])


def _restored(folder: Folder, config: Config, mesh: Mesh, snapshots: int) -> TrainedRun:
    """The run with the network's parameters from its newest valid checkpoints, on every device of the mesh."""
    abstract, ema = abstract_state(config, mesh), config.sample.weights == "ema"
    newest = restore(folder, abstract)
    taken, skipped = [network_params(newest.state, ema)], dict(newest.skipped)
    newest_step = step = newest.step or 0
    while len(taken) < snapshots:
        older = restore(folder, abstract, before=step)
        if older.step is None:
            raise BadInput(
                f"{folder} has {len(taken)} valid checkpoints, not {snapshots}; use at most that many snapshots, or "
                "train with a larger checkpoint.keep"
            )
        taken.append(network_params(older.state, ema))
        skipped, step = skipped | older.skipped, older.step
    return TrainedRun(config, together(taken), mesh, newest_step, folder, skipped)


def together(parts: Sequence[Params]) -> Params:
    """One tree of several parameters, each of one network or stacked: itself where it is one, else all stacked."""
    if len(parts) == 1:
        return parts[0]
    return energy.stack([member for part in parts for member in energy.members(part)])


def restore(workdir: Folder, abstract: TrainState, before: float | int = math.inf) -> checkpoint.Restored:
    """The newest valid checkpoint of a run that has one; with `before`, the newest of an earlier step, or none.

    Raises:
      BadInput: it has none, or only damaged ones.
    """
    if not checkpoint.exists(workdir):
        raise BadInput(f"{workdir} has no checkpoint to sample from; train first, or give another --workdir")
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        restored = checkpoint.restore_newest(manager, abstract, before)
    if restored.step is None and before == math.inf:
        raise BadInput(checkpoint.all_damaged(workdir, restored))
    return restored
