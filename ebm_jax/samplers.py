"""Functions of weights and a key, made from a config: energies, and any number of samples on any number of devices.

The functions that `ebm_jax` exports check what they are given (`inputs.py`); the others, of which whole runs are made,
take it as it is.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ebm_jax import applications, arguments, assemble, chains, checks, inputs
from ebm_jax.assemble import make_apply
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.labels import label_shape, sample_labels
from ebm_jax.metrics import density
from ebm_jax.models import energy
from ebm_jax.sampling import pool, replay
from ebm_jax.sampling.kernel import Stages
from ebm_jax.sampling.pool import Pool
from ebm_jax.types import BadInput, Config, Energies, EnergyFn, Given, Images, Labels, Params, Places, PRNGKey

Chain = Callable[[PRNGKey, Images, EnergyFn, Stages], Any]
"""(key, start, energy, stages) -> a tree of arrays, one row for each chain; such as `applications.generate`."""


DENSITY_GRID = 400  # cells a side: 8 to the narrowest standard deviation; the checkerboard needs a multiple of ten


def make_density_report(config: Config) -> Callable[[Params], tuple[density.GridReport, np.ndarray]]:
    """The function params -> (the model's distance from its 2-D law, the model's log-density on a grid).

    The model's law is exp(-U / T) / Z at the temperature T of the chains that taught it, `chain.temperature`; at T = 1
    where they had no noise. The log-density is float64 [DENSITY_GRID²], in nats.
    """
    untempered, points = make_energy_fn(config), density.grid(DENSITY_GRID)
    log_density = true_log_density(config)

    def report_of(params: Params) -> tuple[density.GridReport, np.ndarray]:
        energy_fn = energy.tempered(lambda x: untempered(params, x), config.chain.temperature or 1.0)
        energies = density.grid_energies(energy_fn, points)
        report = density.report_of_energies(energies, log_density)
        return report, -energies - report.log_z

    return report_of


def true_log_density(config: Config) -> np.ndarray:
    """The log-density of the run's 2-D law on the grid of `make_density_report`: float64 [DENSITY_GRID²], in nats."""
    return sources.make_density(config).log_density(density.grid(DENSITY_GRID))


def init_params(config: Config, key: Given) -> Params:
    """Untrained parameters of the network, spectrally normalised where the config says so.

    Args:
      key: one typed PRNG key, `jax.random.key(SEED)`.

    Returns:
      A nested dict of float32 arrays, whatever x64 says.

    Raises:
      BadInput: the config cannot work, its network is none, or `key` is no such key.
    """
    config = checks.usable(config)
    arguments.check_key("key", key)
    return assemble.init_params(config, key)


def make_stages(config: Config) -> Stages:
    """A chain of the group `sample` for `ebm_jax.applications` and `sampling.kernel.run_stages`.

    Returns:
      Pairs (kernel, number of steps): `sample.num_steps` steps in all, the last `sample.quiet_steps` without noise.

    Raises:
      BadInput: the config cannot work, such as more quiet steps than steps.
    """
    return chains.make_stages(checks.usable(config))


def make_energy_fn(config: Config) -> Callable[..., Energies]:
    """The function `energy_fn(params, images, labels=None) -> energies`, low where images are likely.

    It is pure: it can be jitted, vmapped and differentiated. Its checks of shapes and types work there too and cost a
    compiled program nothing.

    Args of `energy_fn`:
      params: of this config's network, from `load`, `init_params` or training; those of `stack` are an ensemble, which
        has the mean of the members' energies.
      images: [b, *data.shape], b >= 1, of float32, bfloat16, float16 or float64; pixels in [0, 1]. The network sees
        float32.
      labels: classes, integers [b] of 0 to model.num_classes - 1, or vectors [b, k]; an unconditional model needs none,
        and a model with an energy of no class gives it to images without labels.

    Returns:
      `energy_fn`; its energies are float32 [b], whatever x64 says.

    Raises:
      BadInput: the config cannot work. `energy_fn` raises it for arguments of another shape or type, for parameters of
        another network and, outside jit, for a class out of range; inside jit such a class has the energy NaN.

    Examples:
      >>> import jax, ebm_jax
      >>> from configs import digits_contrastive
      >>> config = digits_contrastive.get_config()
      >>> config.model.width, config.sample.num_steps, config.sample.quiet_steps = 4, 3, 1  # small, for the example
      >>> params = ebm_jax.init_params(config, jax.random.key(0))  # or of `load`
      >>> energy_fn = ebm_jax.make_energy_fn(config)
      >>> images = jax.random.uniform(jax.random.key(1), (5, 8, 8, 1))
      >>> energy_fn(params, images).shape
      (5,)
      >>> jax.grad(lambda x: energy_fn(params, x).sum())(images).shape
      (5, 8, 8, 1)
    """
    takes = inputs.of(config)
    apply = energy.of_members(make_apply(takes.config))

    def energy_fn(params: Given, images: Given, labels: Given = None) -> Energies:
        takes.check_params(params)
        x = takes.images(images)
        return apply(params, x, takes.labels(labels, x.shape[0]))

    return energy_fn


def make_sample_fn(config: Config) -> Callable[..., Images]:
    """The function `sample_fn(params, key, *, labels=None, init=None) -> images`: chains of `sample.num_steps` steps.

    It is pure: it can be jitted, vmapped and called again. `init` or `labels` says how many chains there are, else
    `sample.num_images` does. Without labels a conditional model takes `sample.labels` in turn, or else its classes or
    the values of its condition.

    Args of `sample_fn`:
      params: as for `make_energy_fn`.
      key: one typed PRNG key, `jax.random.key(SEED)`.
      labels: as for `make_energy_fn`, one a chain.
      init: [n, *data.shape], n >= 1, where chains start, of float32, bfloat16, float16 or float64; None: noise of the
        law `chain.base`. The chains are float32 from the start.

    Returns:
      `sample_fn`; its images are float32 [n, *data.shape], in [0, 1] unless `chain.base` is normal.

    Raises:
      BadInput: as `make_energy_fn`; `sample_fn` raises it for its arguments.

    Examples:
      >>> import jax, ebm_jax
      >>> from configs import digits_contrastive
      >>> config = digits_contrastive.get_config()
      >>> config.model.width, config.sample.num_steps, config.sample.quiet_steps = 4, 3, 1  # small, for the example
      >>> params = ebm_jax.init_params(config, jax.random.key(0))  # or of `load`
      >>> sample_fn = jax.jit(ebm_jax.make_sample_fn(config))
      >>> sample_fn(params, jax.random.key(1)).shape  # sample.num_images chains from noise
      (64, 8, 8, 1)
    """
    takes = inputs.of(config)
    if takes.config.sample.keep < 1:
        raise BadInput(
            f"sample.keep {takes.config.sample.keep} chooses among finished samples, which this function cannot; use "
            "1, or the `sample` of a run (ebm_jax.open_run)"
        )
    draw = _sample_fn(takes.config)

    def sample_fn(params: Given, key: Given, *, labels: Given = None, init: Given = None) -> Images:
        takes.check_params(params)
        arguments.check_key("key", key)
        start = None if init is None else takes.images(init, "init")
        number = takes.config.sample.num_images if start is None else start.shape[0]
        if labels is None:
            labels = sample_labels(takes.config, jnp.arange(number, dtype=jnp.int32))
        return draw(params, key, takes.labels(labels, None if start is None else number), start)

    return sample_fn


def _sample_fn(config: Config) -> Callable[[Params, PRNGKey, Labels, Images | None], Images]:
    """The function (params, key, labels, init) -> images, without checks."""
    energy_of, run = assemble.make_chain_energy(config), make_chains(config)

    def draw(params: Params, key: PRNGKey, labels: Labels, init: Images | None) -> Images:
        return run(key, labels.shape[0] if init is None else init.shape[0], energy_of(params, labels), init)

    return draw


def make_chains(config: Config, chain: Chain = applications.generate) -> Callable[..., Any]:
    """The function (key, number, energy_fn, init=None) -> the result of `chain` for `number` chains.

    The chains start from `init`, or from the law of `chain.base`, and go through the stages of the group `sample`. All
    fresh samples of a run come from here.
    """
    stages, base = chains.make_stages(config), chains.make_base(config)

    def run(key: PRNGKey, number: Any, energy_fn: EnergyFn, init: Images | None = None) -> Any:
        key_init, key_chain = jax.random.split(key)
        return chain(key_chain, base.sample(key_init, number) if init is None else init, energy_fn, stages)

    return run


def over_places(config: Config, mesh: Mesh, program: Callable[[Any, PRNGKey, Places], Any]) -> Callable:
    """The compiled function (params, key, first) -> the tree of `program` for one batch of chains over all devices.

    A batch is `sample.batch_size` chains, at most `sample.num_images`, rounded up to a multiple of the devices. Chain i
    stands at place first + i. Each device runs the program on its own chains, with a key of its own.
    """
    share = _share(config, mesh)

    def local(params: Any, key: PRNGKey, first: int | jax.Array) -> Any:
        return program(parallel.varying(params), parallel.device_key(key), _places(first, share))

    return parallel.over_devices(local, mesh, (parallel.REPLICATED,) * 3, parallel.SHARDED)


def make_sampler(config: Config, mesh: Mesh) -> Callable:
    """The compiled function (params, key, first) -> (images, labels) of one batch of `over_places`.

    The chains start from noise; each has the label of its place (`labels.sample_labels`).
    """
    draw = _sample_fn(config)

    def program(params: Params, key: PRNGKey, places: Places) -> tuple[Images, Labels]:
        labels = sample_labels(config, places)
        return draw(params, key, labels, None), labels

    return over_places(config, mesh, program)


def make_labelled_sampler(config: Config, mesh: Mesh) -> Callable:
    """As `make_sampler`, of (params, labels [n]) in place of params: the chain at place i has the label i, modulo n.

    One program is for all labels, which `make_sampler` takes from the config for good.
    """
    draw = _sample_fn(config)

    def program(given: tuple[Params, jax.Array], key: PRNGKey, places: Places) -> tuple[Images, Labels]:
        params, labels = given  # as many labels as were asked for, not one a chain of the batch
        mine = labels[places % len(labels)]
        return draw(params, key, mine, None), mine

    return over_places(config, mesh, program)


def make_class_compare(config: Config) -> Callable[[Params, PRNGKey, Images, Places], Float[Array, "b k"]]:
    """The compiled function of what classes of images are compared by (`assemble.make_class_energies`).

    Its noise hangs on the key and on the place of the first image.

    Raises:
      BadInput: training never compared the classes of one image.
    """
    if not (assemble.compared_by_matching(config) or assemble.learns_to_classify(config)):
        raise BadInput(
            f"sample.keep {config.sample.keep} needs a model that tells its classes apart, and method.name "
            f"{config.method.name} never compared them; use 1"
        )
    apply = energy.of_members(make_apply(config))

    def fn(params: Params, key: PRNGKey, images: Images, places: Places) -> Float[Array, "b k"]:
        return assemble.make_class_energies(config, partial(apply, params))(jax.random.fold_in(key, places[0]), images)

    return jax.jit(fn)


def on_host(sampler: Callable, given: Any, key: PRNGKey, number: int) -> Iterator[Any]:
    """The trees of a sampler of `over_places`, batch by batch, until there are `number` rows in all.

    Args:
      given: what the sampler takes in the place of `params`.
    """
    done = 0
    for index in itertools.count():
        if done >= number:
            return
        batch = parallel.on_host(sampler(given, jax.random.fold_in(key, index), done))
        yield jax.tree.map(partial(_first_rows, number - done), batch)
        done += len(jax.tree.leaves(batch)[0])


def _first_rows(number: int, rows: np.ndarray) -> np.ndarray:
    return rows[:number]


def _share(config: Config, mesh: Mesh) -> int:
    """The chains of one batch on one device."""
    return -(-min(config.sample.num_images, config.sample.batch_size) // mesh.size)


def _places(first: int | jax.Array, share: int) -> Places:
    """The places of this device's chains among all; the batch begins at place `first`."""
    return first + jax.lax.axis_index(parallel.AXIS) * share + jnp.arange(share, dtype=jnp.int32)


def init_sampling_buffer(config: Config, key: Given) -> Pool:
    """A sampling buffer of `sample.buffer_capacity` chains of noise, for `make_buffered_sample_fn`.

    Args:
      key: one typed PRNG key, `jax.random.key(SEED)`.

    Raises:
      BadInput: the config cannot work, the buffer would hold no chain, or `key` is no such key.
    """
    config = checks.usable(config)
    arguments.check_key("key", key)
    if not config.sample.buffer_capacity:
        raise BadInput("sample.buffer_capacity 0 makes a buffer without chains; use 1000, for example")
    return _new_buffer(config, key)


def _new_buffer(config: Config, key: PRNGKey) -> Pool:
    dtype = jnp.dtype(config.buffer.dtype)
    return pool.init(key, config.sample.buffer_capacity, chains.make_base(config), dtype, label_shape(config))


def make_buffered_sample_fn(config: Config) -> Callable[..., tuple[Images, Labels, Pool]]:
    """The function `fn(params, key, buffer, labels) -> (images, labels, buffer)`: one round of a sampling buffer.

    The round draws one chain from the buffer for each label, runs it for `sample.num_steps` steps and puts it back. A
    chain restarts from noise with probability `sample.restart_prob` and then takes its new label; other chains take it
    with probability `sample.relabel_prob`. The members of stacked parameters (`ebm_jax.stack`) share the buffer: a
    round uses the mean of their energies, or one member, by turns (`sample.ensemble`).

    Args of `fn`:
      params, key: as for `make_sample_fn`.
      buffer: of `init_sampling_buffer`, or of the round before.
      labels: [n] or [n, k], at most as many as the buffer has chains.

    Returns:
      `fn`; it gives float32 [n, *data.shape], the labels of these chains, int32 [n] or float32 [n, k], and the buffer
      for the next call.

    Raises:
      BadInput: as `make_sample_fn`; `fn` raises it for its arguments.
    """
    takes = inputs.of(config)
    play = _round_fn(takes.config)

    def fn(params: Given, key: Given, buffer: Given, labels: Given) -> tuple[Images, Labels, Pool]:
        takes.check_params(params)
        arguments.check_key("key", key)
        fitting = takes.labels(labels)
        _check_buffer(takes.config, buffer, fitting.shape[0])
        return play(params, key, buffer, fitting)

    return fn


def _check_buffer(config: Config, buffer: Given, number: int) -> None:
    """Refuse what is no sampling buffer of this config, or too small for `number` chains."""
    cure = "give the buffer of ebm_jax.init_sampling_buffer, or of the round before"
    if not isinstance(buffer, Pool):
        raise BadInput(f"buffer is of the type {type(buffer).__name__}; {cure}")
    capacity = buffer.chains.images.shape[0]
    fitting = jax.eval_shape(partial(_new_buffer, config), jax.random.key(0)).chains
    rows, expected = buffer.chains.images, fitting.images
    if (rows.shape[1:], rows.dtype) != (expected.shape[1:], expected.dtype):
        raise BadInput(
            f"buffer has rows of {rows.shape[1]} values of {rows.dtype}; this config's have {expected.shape[1]} of "
            f"{expected.dtype}; {cure} under the same config"
        )
    if number > capacity:
        raise BadInput(f"{number} labels for a buffer of {capacity} chains; give at most {capacity} at once")


def _round_fn(config: Config) -> Callable[[Params, PRNGKey, Pool, Labels], tuple[Images, Labels, Pool]]:
    """The function of `make_buffered_sample_fn`, without checks."""
    of, stages, base = assemble.make_chain_energy(config), chains.make_stages(config), chains.make_base(config)
    in_turns = config.sample.ensemble == "turns"

    def fn(params: Params, key: PRNGKey, buffer: Pool, labels: Labels) -> tuple[Images, Labels, Pool]:
        members = energy.num_members(params)

        def energy_of(rounds: jax.Array, labels: Labels) -> EnergyFn:
            turn = energy.member(params, rounds % members) if in_turns and members else params
            return of(turn, labels)

        chances = {"restart_prob": config.sample.restart_prob, "relabel_prob": config.sample.relabel_prob}
        buffer, images, labels = pool.advance(key, buffer, labels, energy_of, stages, base, **chances)
        return images, labels, buffer

    return fn


def make_rounds(config: Config, mesh: Mesh) -> tuple[Callable, Callable, Any]:
    """The sampling buffer over all devices: compiled key -> buffer and (params, key, buffer) -> buffer, and a tree.

    The second function does one round and consumes its buffer. A round draws as many chains as `make_sampler` runs at
    once; its labels continue where the round before ended. The tree has the buffer's shapes, types and shardings.
    """
    sample_fn, share = _round_fn(config), _share(config, mesh)
    specs = pool.partition(parallel.SHARDED)
    init = jax.jit(partial(_new_buffer, config), out_shardings=parallel.shardings(mesh, specs))

    def local(params: Params, key: PRNGKey, buffer: Pool) -> Pool:
        key = parallel.device_key(jax.random.fold_in(key, buffer.rounds))
        labels = sample_labels(config, _places(buffer.rounds * share * mesh.size, share))
        return sample_fn(parallel.varying(params), key, buffer, labels)[2]

    advance = parallel.over_devices(local, mesh, (parallel.REPLICATED, parallel.REPLICATED, specs), specs, (2,))
    abstract = jax.eval_shape(partial(_new_buffer, config), jax.random.key(0))
    return init, advance, parallel.abstract(abstract, mesh, specs)


def oldest_chains(config: Config, buffer: Pool, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, labels, rounds since each began) of the `number` chains with the most rounds, on the host."""
    images, labels, visits = jax.device_get((buffer.chains.images, buffer.chains.labels, buffer.chains.visits))
    order = np.argsort(-visits, kind="stable")[:number]
    decoded = np.asarray(replay.as_images(jnp.asarray(images[order]), tuple(config.data.shape)))
    return decoded, labels[order], visits[order]
