"""From a config to functions of weights and a key: energies, and samples of any number on any number of devices."""

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
