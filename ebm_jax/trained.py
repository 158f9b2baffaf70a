"""A trained run as functions: energies, samples, and the parameters in its folder."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import applications, random
from ebm_jax.assemble import abstract_state, make_apply, make_base, make_stages
from ebm_jax.checks import check_member
from ebm_jax.choices import check_labels, choice, label_shape, other_runs, sample_labels
from ebm_jax.data.sources import make_density
from ebm_jax.distributed import parallel
from ebm_jax.metrics import density
from ebm_jax.models import energy
from ebm_jax.sampling import pool, replay
from ebm_jax.sampling.pool import Pool
from ebm_jax.schema import as_config
from ebm_jax.storage import bucket, checkpoint
from ebm_jax.storage.workdir import CONFIG, read_config
from ebm_jax.training.state import TrainState, network_params
from ebm_jax.types import BadInput, Config, Energies, EnergyFn, Folder, Images, Labels, Params, Places, PRNGKey

DENSITY_GRID = 400  # cells a side: 8 in the narrowest feature's standard deviation; the checkerboard needs tens


def make_density_report(config: Config) -> Callable[[Params], tuple[density.GridReport, np.ndarray]]:
    """The function params -> (how far the model is from its 2-D law, its log-density on a grid).

    The log-density is float64 [side · side], in nats.
    """
    energy_fn, points = make_energy_fn(config), density.grid(DENSITY_GRID)
    log_density = make_density(config).log_density(points)

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

    Chains of `sample.num_steps` steps from `init` [n, h, w, c], or from U[0, 1]; a pure function, to be jitted, vmapped
    and called again. n is that of `init` or of `labels` ([n] or [n, k]), else `sample.num_images`. Without labels a
    conditional model goes through its classes in turn, or through the values of its condition. Labels are checked as by
    `make_energy_fn`.
    """
    apply = energy.of_members(make_apply(config))
    stages = make_stages(config)
    shape = tuple(config.data.shape)
    num_images = config.sample.num_images

    def sample_fn(params: Params, key: PRNGKey, *, labels: Labels | None = None, init: Images | None = None) -> Images:
        key_init, key_chain = jax.random.split(key)
        if init is None:
            n = num_images if labels is None else len(labels)
            init = random.uniform(key_init, (n, *shape))
        if labels is None:
            labels = sample_labels(config, jnp.arange(len(init)))
        check_labels(config, labels, init.shape[0])
        energy_fn = energy.bind(apply, params, labels)
        return applications.generate(key_chain, init, energy_fn, stages)

    return sample_fn


def make_sampler(config: Config, mesh: Mesh) -> Callable:
    """The compiled (params, key, first) -> (images, labels, energies) of one batch of chains over all devices.

    A batch is `sample.batch_size` chains, at most `sample.num_images`, rounded up to a multiple of the devices. Chain i
    has the label of place first + i (`choices.sample_labels`).
    """
    sample_fn, energy_fn = make_sample_fn(config), make_energy_fn(config)
    share = _share(config, mesh)

    def local(params: Params, key: PRNGKey, first: int | jax.Array) -> tuple[Images, Labels, Energies]:
        params = parallel.varying(params)
        labels = sample_labels(config, _places(first, share))
        images = sample_fn(params, parallel.device_key(key), labels=labels)
        return images, labels, energy_fn(params, images, labels)

    return parallel.over_devices(local, mesh, (parallel.REPLICATED,) * 3, parallel.SHARDED)


def fresh_batches(
    config: Config, mesh: Mesh, params: Params, key: PRNGKey
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(images, labels, energies) of `sample.num_images` chains from noise, batch by batch, on the host."""
    sampler, total, wanted = make_sampler(config, mesh), 0, config.sample.num_images
    for index in itertools.count():
        if total >= wanted:
            return
        batch = jax.device_get(sampler(params, jax.random.fold_in(key, index), total))
        yield tuple(part[: wanted - total] for part in batch)  # pyright: ignore[reportReturnType]
        total += len(batch[0])


def _share(config: Config, mesh: Mesh) -> int:
    """The chains of one batch on one device."""
    return -(-min(config.sample.num_images, config.sample.batch_size) // mesh.size)


def _places(first: int | jax.Array, share: int) -> Places:
    """Where this device's chains stand among all, the batch beginning at place `first`."""
    return first + jax.lax.axis_index(parallel.AXIS) * share + jnp.arange(share)


def init_sampling_buffer(config: Config, key: PRNGKey) -> Pool:
    """A sampling buffer of `sample.buffer_capacity` chains of noise, for `make_buffered_sample_fn`."""
    dtype = choice(config, "buffer.dtype")
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
    in_turns = choice(config, "sample.ensemble")

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


def read_run(workdir: Folder) -> Config:
    """The config of the run in `workdir`, locked, with all keys and each of its kind.

    Raises:
      BadInput: there is no run, or its config.json is damaged or of another version of this project.
    """
    cure = "it was made by another version of this project: use that one, or add what is missing"
    return as_config(read_config(workdir), str(workdir / CONFIG), cure)


def load(workdir: str | Folder, *, snapshots: int = 1) -> tuple[Config, Params]:
    """The config of the run in `workdir` and the network's parameters from its newest valid checkpoint.

    The parameters are those that `sample.weights` names, "ema" or "raw", and fit `make_energy_fn(config)` and
    `make_sample_fn(config)`. They lie on the first device. Those of a run of several models, and those of more than one
    checkpoint, are stacked: an ensemble.

    Args:
      snapshots: how many of the newest valid checkpoints to take, each a member.

    Raises:
      BadInput: no run, no checkpoint, only damaged ones, or fewer than `snapshots`.
    """
    folder = bucket.folder_of(workdir)
    config = read_run(folder)
    mesh = parallel.device_mesh(jax.local_devices()[:1])
    return config, restore_params(folder, config, mesh, snapshots).params


class Weights(NamedTuple):
    """What `restore_params` found."""

    params: Params
    step: int | None
    """Of the newest checkpoint that was taken."""
    skipped: dict[int, str]
    """What is wrong with each damaged checkpoint that was passed over, by its step."""


def restore_params(workdir: Folder, config: Config, mesh: Mesh, snapshots: int = 1) -> Weights:
    """The network's parameters from the newest valid checkpoints, on every device of the mesh, as `load` has them."""
    abstract, ema = abstract_state(config, mesh), choice(config, "sample.weights")
    newest = restore(workdir, abstract)
    taken, skipped = [network_params(newest.state, ema)], dict(newest.skipped)
    step = newest.step
    while len(taken) < snapshots:
        older = restore(workdir, abstract, before=step or 0)
        if older.step is None:
            raise BadInput(
                f"{workdir} has {len(taken)} valid checkpoints, not {snapshots}; use at most that many snapshots, or "
                "train with a larger checkpoint.keep"
            )
        taken.append(network_params(older.state, ema))
        skipped, step = skipped | older.skipped, older.step
    return Weights(together(taken), newest.step, skipped)


def restore_ensemble(workdir: Folder, config: Config, mesh: Mesh) -> Weights:
    """As `restore_params`, together with the parameters of the runs of `sample.with_runs`: members of one ensemble.

    Each gives as many checkpoints as `sample.snapshots`.

    Raises:
      BadInput: as `restore_params`, or a run's network is another one.
    """
    found = restore_params(workdir, config, mesh, config.sample.snapshots)
    parts = [found.params]
    for other in other_runs(config):
        check_member(config, other)
        parts.append(load(other, snapshots=config.sample.snapshots)[1])
    everywhere = jax.device_put(parts, parallel.shardings(mesh, parallel.REPLICATED))  # `load` gives the first device's
    return found._replace(params=together(everywhere))


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
