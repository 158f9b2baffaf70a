"""Functions of weights and a key, made from a config: energies, and any number of samples on any number of devices."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import applications
from ebm_jax.assemble import make_apply, make_base, make_stages
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.labels import check_labels, label_shape, sample_labels
from ebm_jax.metrics import density
from ebm_jax.models import energy
from ebm_jax.sampling import pool, replay
from ebm_jax.sampling.kernel import Stages
from ebm_jax.sampling.pool import Pool
from ebm_jax.types import Config, Energies, EnergyFn, Images, Labels, Params, Places, PRNGKey

Chain = Callable[[PRNGKey, Images, EnergyFn, Stages], Any]
"""(key, start, energy, stages) -> a tree of arrays, one row for each chain; such as `applications.generate`."""


DENSITY_GRID = 400  # cells a side: 8 to the narrowest standard deviation; the checkerboard needs a multiple of ten


def make_density_report(config: Config) -> Callable[[Params], tuple[density.GridReport, np.ndarray]]:
    """The function params -> (the model's distance from its 2-D law, the model's log-density on a grid).

    The log-density is float64 [DENSITY_GRID²], in nats.
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

    It raises BadInput for labels of the wrong shape and, outside jit, for classes out of range; inside jit such a
    class has the energy NaN.
    """
    apply = energy.of_members(make_apply(config))

    def energy_fn(params: Params, images: Images, labels: Labels | None = None) -> Energies:
        if labels is not None:
            check_labels(config, labels, images.shape[0])
        return apply(params, images, labels)

    return energy_fn


def make_sample_fn(config: Config) -> Callable[..., Images]:
    """`sample_fn(params, key, *, labels=None, init=None) -> images`: float32 [n, h, w, c].

    The images lie in [0, 1] if `chain.base` is uniform. The chains take `sample.num_steps` steps from `init`
    [n, h, w, c], or from the law of `chain.base`. The function is pure: it can be jitted, vmapped and called again.
    `init` or `labels` ([n] or [n, k]) gives n, else `sample.num_images` does. Without labels a conditional model takes
    `sample.labels` in turn, or else its classes or the values of its condition. It checks labels as `make_energy_fn`
    does.
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
    """The function (key, number, energy_fn, init=None) -> the result of `chain` for `number` chains.

    The chains start from `init`, or from the law of `chain.base`, and go through the stages of the group `sample`. All
    fresh samples of a run come from here.
    """
    stages, base = make_stages(config), make_base(config)

    def chains(key: PRNGKey, number: Any, energy_fn: EnergyFn, init: Images | None = None) -> Any:
        key_init, key_chain = jax.random.split(key)
        return chain(key_chain, base.sample(key_init, number) if init is None else init, energy_fn, stages)

    return chains


def over_places(config: Config, mesh: Mesh, program: Callable[[Params, PRNGKey, Places], Any]) -> Callable:
    """The compiled function (params, key, first) -> the tree of `program` for one batch of chains over all devices.

    A batch is `sample.batch_size` chains, at most `sample.num_images`, rounded up to a multiple of the devices. Chain i
    stands at place first + i. Each device runs the program on its own chains, with a key of its own.
    """
    share = _share(config, mesh)

    def local(params: Params, key: PRNGKey, first: int | jax.Array) -> Any:
        return program(parallel.varying(params), parallel.device_key(key), _places(first, share))

    return parallel.over_devices(local, mesh, (parallel.REPLICATED,) * 3, parallel.SHARDED)


def make_sampler(config: Config, mesh: Mesh) -> Callable:
    """The compiled function (params, key, first) -> (images, labels, energies) of one batch of `over_places`.

    The chains start from noise; each has the label of its place (`labels.sample_labels`).
    """
    sample_fn, energy_fn = make_sample_fn(config), make_energy_fn(config)

    def program(params: Params, key: PRNGKey, places: Places) -> tuple[Images, Labels, Energies]:
        labels = sample_labels(config, places)
        images = sample_fn(params, key, labels=labels)
        return images, labels, energy_fn(params, images, labels)

    return over_places(config, mesh, program)


def on_host(sampler: Callable, params: Params, key: PRNGKey, number: int) -> Iterator[Any]:
    """The trees of a sampler of `over_places`, batch by batch, until there are `number` rows in all."""
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
    """The places of this device's chains among all; the batch begins at place `first`."""
    return first + jax.lax.axis_index(parallel.AXIS) * share + jnp.arange(share)


def init_sampling_buffer(config: Config, key: PRNGKey) -> Pool:
    """A sampling buffer of `sample.buffer_capacity` chains of noise, for `make_buffered_sample_fn`."""
    dtype = jnp.dtype(config.buffer.dtype)
    return pool.init(key, config.sample.buffer_capacity, make_base(config), dtype, label_shape(config))


def make_buffered_sample_fn(config: Config) -> Callable[..., tuple[Images, Labels, Pool]]:
    """`fn(params, key, buffer, labels) -> (images, labels, buffer)`: one round of a sampling buffer.

    The round draws one chain from the buffer for each label, runs it for `sample.num_steps` steps and puts it back. A
    chain restarts from noise with probability `sample.restart_prob` and then takes its new label; other chains take it
    with probability `sample.relabel_prob`. The members of stacked parameters (`ebm_jax.stack`) share the buffer: a
    round uses the mean of their energies, or one member, by turns (`sample.ensemble`).

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
    """The sampling buffer over all devices: compiled key -> buffer and (params, key, buffer) -> buffer, and a tree.

    The second function does one round and consumes its buffer. A round draws as many chains as `make_sampler` runs at
    once; its labels continue where the round before ended. The tree has the buffer's shapes, types and shardings.
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
    """(images, labels, rounds since each began) of the `number` chains with the most rounds, on the host."""
    images, labels, visits = jax.device_get((buffer.chains.images, buffer.chains.labels, buffer.chains.visits))
    order = np.argsort(-visits, kind="stable")[:number]
    decoded = np.asarray(replay.as_images(jnp.asarray(images[order]), tuple(config.data.shape)))
    return decoded, labels[order], visits[order]
