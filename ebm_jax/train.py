"""The verb that trains: data in, steps, and whatever leaves the machine: metrics, pictures, checkpoints."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ebm_jax import assemble, capacity, checks, choices, trained
from ebm_jax.data import sources
from ebm_jax.distributed import parallel, processes
from ebm_jax.report import console
from ebm_jax.sampling import replay
from ebm_jax.storage import checkpoint, workdir
from ebm_jax.training import guard, recovery
from ebm_jax.training.guard import Diverged
from ebm_jax.training.state import TrainState, network_params
from ebm_jax.types import Batch, Config, Folder, Metrics

GRID = 64  # images in a grid


class _Stop(NamedTuple):
    """How a run is told to stop early."""

    signals: list[int]
    """Those that this process got."""
    is_due: Callable[[int], bool]
    """Whether the run stops after this call, the n-th; asked after every call, and of the same answer on all processes.

    JAX, who answers where there are several processes, misses what it decided on if a number is left out.
    """


def train(config: Config, folder: Folder) -> int:
    """Train until `train.num_steps`, going on from the newest valid checkpoint in `folder` if there is one.

    Returns:
      The exit status: 0, or 130 after Ctrl-C. Both leave a checkpoint of the last step.

    Raises:
      BadInput: before the first step.
      Diverged: the run is ill again after its last rescue; the newest checkpoint is its last healthy state.
    """
    parallel.split_cpu(config.train.cpu_devices, config.train.batch_size, config.buffer.capacity)
    workdir.require_same(folder, config)
    with processes.agreed():
        mesh = parallel.device_mesh()
        checks.check(config, mesh.size)
        capacity.check_memory(config, mesh)
        if processes.is_first():
            workdir.check(folder, config)
    with contextlib.ExitStack() as stack:
        with processes.agreed():
            batches = stack.enter_context(sources.open_batches(config, console.warn))
        with processes.agreed():
            if processes.is_first():
                stack.enter_context(workdir.locked(folder))
                workdir.claim(folder, config)
        workdir.require_shared(folder)
        manager = stack.enter_context(checkpoint.open_manager(folder, config.checkpoint.keep))
        beginning = recovery.begin(config, mesh, manager, folder)
        if beginning.step >= config.train.num_steps:
            console.say(f"{folder} has done its {beginning.step} steps; raise train.num_steps to go on")
            return 0
        if beginning.step:
            console.say(f"going on from step {beginning.step}")
        console.say(
            f"training {config.data.name} on {mesh.size} {mesh.devices.flat[0].device_kind} device(s) in {folder}"
        )
        reporter = stack.enter_context(console.Reporter(folder, beginning.step, config.train.num_steps))
        stop = stack.enter_context(_stop_signal())
        with processes.announced(alike=(Diverged,)):
            done = _loop(config, mesh, manager, folder, reporter, batches, beginning, stop)
    if done < config.train.num_steps:
        console.say(f"stopped and saved at step {done}; the same command goes on from there")
    else:
        kept = f"{folder / console.METRICS}, TensorBoard events, {folder / 'images'}"
        console.say(f"wrote {kept} and the checkpoint of step {done}")
        console.say(f"sample with: python run.py --mode=sample --workdir={folder}")
    return 130 if stop.signals[:1] == [signal.SIGINT] and done < config.train.num_steps else 0


def _loop(
    config: Config,
    mesh: Mesh,
    manager: ocp.CheckpointManager,
    folder: Folder,
    reporter: console.Reporter,
    batches: Callable[[int], Batch],
    beginning: recovery.Beginning,
    stop: _Stop,
) -> int:
    """Steps until the last one or a signal, with rescues in between; the step of the last checkpoint."""
    watcher = _density_watcher if config.data.source == "density" else _picture_maker
    draw_pictures = watcher(config, mesh, reporter)
    while True:
        try:
            return _stretch(config, mesh, manager, reporter, batches, beginning, stop, draw_pictures)
        except guard.Ill as caught:
            illness = caught.with_traceback(None)  # whose frames would keep the ill state in the devices' memory
        try:
            beginning, event = recovery.roll_back(config, mesh, manager, folder, illness)
        except Diverged as end:
            reporter.event(illness.step, str(end))
            raise
        reporter.go_back(beginning.step)
        reporter.event(illness.step, event)
        console.warn(event)


class _Kept(NamedTuple):
    """A copy of a state that becomes a checkpoint as soon as the step after it is known to be healthy."""

    step: int
    state: TrainState
    non_finite: jax.Array


def _stretch(
    config: Config,
    mesh: Mesh,
    manager: ocp.CheckpointManager,
    reporter: console.Reporter,
    batches: Callable[[int], Batch],
    beginning: recovery.Beginning,
    stop: _Stop,
    draw_pictures: Callable[[int, TrainState], None],
) -> int:
    """Steps until the last one or a signal; the step of the last checkpoint.

    Metrics are fetched while the next call, of `train.steps_per_call` steps, already runs. Those of a step are taken
    before its update, so a state is known to be healthy, and is saved, only when the step after it is; after the last
    step that step is taken for its metrics alone. Pictures and checkpoints are of the first state of a call at or after
    the step that they are due at.

    Raises:
      Ill: the guard's judgement.
    """
    train_steps, keep = assemble.make_steps(config, mesh, beginning.rescues), assemble.make_keeper(config, mesh)
    limits, number = assemble.make_method(config).limits, config.train.steps_per_call
    health, state, end = guard.HEALTHY, beginning.state, config.train.num_steps
    unseen: tuple[int, Metrics] | None = None
    kept: _Kept | None = None
    wanted, saved = False, beginning.step

    def look() -> None:
        """Wait for the metrics that were not seen yet, judge and show them, and save what they prove healthy."""
        nonlocal health, unseen, kept, wanted, saved
        if unseen is None:
            return
        (first, metrics), unseen = (unseen[0], jax.device_get(unseen[1])), None
        for done, of_step in enumerate(_by_step(metrics, number), first):
            if done > end + 1:
                return
            health, illness = guard.judge(health, of_step, limits)
            if illness is not None:
                raise guard.Ill(done, illness)
            if done <= end:
                trends = {
                    f"{name}_trend": np.reshape(trend, np.shape(of_step[name])) for name, trend in health.trends.items()
                }
                reporter.progress(done, _by_member(of_step | trends), config.log.every)
            if kept is not None and not health.symptom:
                if count := int(kept.non_finite):
                    raise guard.Ill(kept.step, f"{count} values of the state are not finite")
                if saved == beginning.step:
                    checkpoint.discard_after(manager, beginning.step)
                checkpoint.save(manager, kept.step, kept.state)
                wanted, saved = False, kept.step
            kept = None

    def due(every: int, step: int) -> bool:
        return step > beginning.step and step // every > (step - number) // every

    for step in itertools.count(beginning.step, number):
        last, regular = step == end, due(config.checkpoint.every, step)
        pictures = config.log.images_every and due(config.log.images_every, step)
        if last or regular or pictures or (wanted and kept is None):
            look()
        wanted = wanted or last or regular
        if wanted and kept is None and not health.symptom:
            kept, health = _Kept(step, *keep(state)), guard.HEALTHY
        if pictures and not last:
            draw_pictures(step, state)
        final = kept
        of_call = [batches(index) for index in range(step, step + number)]
        state, metrics = train_steps(state, assemble.place_batches(config, mesh, of_call))
        look()
        unseen = (step + 1, metrics)
        if last:
            look()
            if wanted and end == config.train.num_steps:
                raise guard.Ill(step, f"the last steps are outside the healthy region: {health.symptom}")
            if wanted:
                console.warn(f"the steps after {saved} are outside the healthy region and not saved")
            elif final is not None and end == config.train.num_steps:  # after a signal there may be no time for it
                draw_pictures(step, final.state)
            return saved
        if stop.is_due(step // number + 1):
            end = step + number
    raise AssertionError("the last step always returns")


def _by_step(metrics: Mapping[str, np.ndarray], number: int) -> list[dict[str, np.ndarray]]:
    """The metrics of each step of a call."""
    if number == 1:
        return [dict(metrics)]
    return [{name: np.asarray(value[index]) for name, value in metrics.items()} for index in range(number)]


def _by_member(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics as numbers; of several models the mean under the metric's name, and each under NAME_0, NAME_1 ..."""
    numbers = {name: float(np.mean(value)) for name, value in metrics.items()}
    each = {f"{name}_{m}": float(one) for name, value in metrics.items() if value.ndim for m, one in enumerate(value)}
    return numbers | each


def _picture_maker(config: Config, mesh: Mesh, reporter: console.Reporter) -> Callable[[int, TrainState], None]:
    """The function that writes a grid of the replay buffer, and one of chains from fresh noise, of a state."""
    few = config.copy_and_resolve_references()
    few.sample.num_images = few.sample.batch_size = GRID
    sampler, chains = trained.make_sampler(few, mesh), assemble.make_method(config).chains
    each = -(-GRID // config.train.num_models)

    def first_rows(buffer: replay.ReplayBuffer) -> jax.Array:
        return replay.as_images(buffer.images[..., :each, :], tuple(config.data.shape))

    first_rows = jax.jit(first_rows, out_shardings=parallel.shardings(mesh, parallel.REPLICATED))

    def draw(step: int, state: TrainState) -> None:
        key = jax.random.key(config.sample.seed)  # the same at every step, so that pictures can be compared
        if (waiting := chains(state.memory)) is not None:
            rows = np.asarray(first_rows(waiting))
            reporter.image("buffer", step, rows.reshape(-1, *config.data.shape)[:GRID])
        images, _, _ = sampler(network_params(state, choices.choice(config, "sample.weights")), key, 0)
        reporter.image("chains", step, parallel.on_host(images)[:GRID])

    return draw


def _density_watcher(config: Config, mesh: Mesh, reporter: console.Reporter) -> Callable[[int, TrainState], None]:
    """The function that measures a state's model against the 2-D law it learns, and writes both beside its samples."""
    sampler, report_of = trained.make_sampler(config, mesh), trained.make_density_report(config)
    data_points = sources.make_density(config).sample(
        np.random.default_rng(config.sample.seed), config.sample.num_images
    )

    def draw(step: int, state: TrainState) -> None:
        params = network_params(state, choices.choice(config, "sample.weights"))
        points, _, _ = sampler(params, jax.random.key(config.sample.seed), 0)
        points, params = parallel.on_host((points, params))
        if processes.is_first():
            result, log_q = report_of(jax.device_put(params))
            reporter.density(step, data_points, points, log_q, result._asdict())

    return draw


@contextlib.contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Turn the first Ctrl-C or SIGTERM into something to be asked for; the second acts as it always did.

    Where there is a coordinator it is JAX that takes SIGTERM and lets all processes stop after the same step; Ctrl-C
    then is passed on as one.
    """
    received: list[int] = []
    joined = processes.are_joined()

    def handler(signum: int, frame: object) -> None:
        received.append(signum)
        signal.signal(signum, previous[signal.Signals(signum)])
        os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")
        if joined:
            os.kill(os.getpid(), signal.SIGTERM)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        taken = (signal.SIGINT,) if joined else (signal.SIGINT, signal.SIGTERM)
        previous = {signum: signal.signal(signum, handler) for signum in taken}
    try:
        yield _Stop(received, processes.stop_is_due if joined else lambda step: bool(received))
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
