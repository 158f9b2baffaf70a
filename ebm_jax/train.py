"""The verb that trains: it reads data, takes steps, and writes metrics, pictures and checkpoints."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ebm_jax import assemble, capacity, checks, duration, identity, program, registry, samplers, trust
from ebm_jax.data import found, sources
from ebm_jax.data.found import Record
from ebm_jax.distributed import parallel, processes
from ebm_jax.evaluators import during
from ebm_jax.labels import in_words, names_of, numbered
from ebm_jax.report import bars, console, pace, progress, rewriting, style, trackers
from ebm_jax.report.page import NAME as PAGE
from ebm_jax.report.reporter import EVALUATION, METRICS, Reporter
from ebm_jax.sampling import replay
from ebm_jax.schema import KEYS, flat, with_values
from ebm_jax.storage import bucket, checkpoint, provenance, workdir
from ebm_jax.training import guard, loop, recovery
from ebm_jax.training.guard import Diverged, Ill
from ebm_jax.training.state import TrainState, network_params
from ebm_jax.types import BadInput, Batch, Config, Folder, Metrics

GRID = 64  # images in a grid
DEFAULTS = {name: key.default for name, key in KEYS.items()}


class _Watchers(NamedTuple):
    """Functions (step, state) that look at a state and change nothing of the run."""

    draw: Callable[[int, TrainState], None]
    evaluate: Callable[[int, TrainState], None]


class _Stop(NamedTuple):
    """How a run is stopped early."""

    take_over: Callable[[], None]
    """Save the step that the run has reached when a signal comes, from now on; before, there is nothing to save."""

    signals: list[int]
    """The signals that this process got."""
    is_due: Callable[[int], bool]
    """Whether to stop after call n. Ask after every call; all processes get the same answer.

    With several processes JAX answers; if a call leaves out a number, JAX misses its own decision.
    """


def train(config: Config, folder: str | Folder) -> int:
    """Train for `train.num_steps` steps; go on from the newest valid checkpoint in `folder` if there is one.

    Returns:
      The exit status: 0, or 130 after Ctrl-C. Both leave a checkpoint of the last step.

    Raises:
      BadInput: the config, the data or the folder cannot be used; before the first step.
      Diverged: the run is ill again after its last rescue; the newest checkpoint is its last healthy state.
    """
    folder = bucket.folder_of(folder)
    parallel.split_cpu(config.train.cpu_devices, config.train.batch_size, config.buffer.capacity)
    workdir.require_same(folder, config)
    with processes.agreed():
        config = workdir.as_it_began(folder, config)
        mesh = parallel.device_mesh()
        checks.check(config, mesh.size)
        during.check(config)
        asked_trackers = trackers.named(config.log.trackers)
        capacity.check_memory(config, mesh)
        if processes.is_first():
            workdir.check(folder, config)
    with contextlib.ExitStack() as stack:
        board = stack.enter_context(progress.Board(f"training {config.data.name} in {folder}"))
        if _is_cpu(mesh) and processes.is_first() and not (folder / workdir.CONFIG).exists():
            with progress.phase("counting the work of the plan"):
                duration.warn(config, mesh, console.warn)
        with processes.agreed(), progress.phase(f"reading {config.data.name} {config.data.split}"), bars.as_notes():
            batches, record = stack.enter_context(sources.open_data(config, console.warn))
            config = numbered(config, record.class_names) if record else config
        with processes.agreed():
            if processes.is_first():
                stack.enter_context(workdir.locked(folder, console.warn))
                _claim(folder, config, record)
        workdir.require_shared(folder)
        manager = stack.enter_context(checkpoint.open_manager(folder, config.checkpoint.keep, warn=console.warn))
        beginning = recovery.begin(config, mesh, manager, folder)
        if beginning.step >= config.train.num_steps:
            console.say(f"{folder} has done its {beginning.step} steps; raise train.num_steps to go on")
            return 0
        if processes.is_first():
            provenance.record(folder, beginning.step)
        if beginning.step:
            console.say(f"going on from step {beginning.step}")
        console.say(
            f"training {config.data.name} on {mesh.size} {mesh.devices.flat[0].device_kind} device(s) in {folder}"
        )
        steps = beginning.step, config.train.num_steps
        told = {"page": config.log.report, "first_stage": config.method.then.after}
        reporter = stack.enter_context(Reporter(folder, *steps, board, asked_trackers, **told))
        reporter.hyperparameters({key: value for key, value in flat(config).items() if value != DEFAULTS.get(key)})
        stop = stack.enter_context(_stop_signal())
        with processes.announced(alike=(Diverged,)):
            shown = config, mesh, folder.name, reporter
            draw = _picture_maker(*shown, record) if record else _density_watcher(*shown)
            watchers = _Watchers(draw, _evaluation(config, mesh, folder, reporter))
            done = _run(config, mesh, manager, folder, reporter, batches, beginning, watchers, stop)
    if config.log.report and processes.is_first():
        rewriting.write(folder)  # once more: the last checkpoint is whole only now
    _say_what_comes_next(folder, done, config)
    return 130 if stop.signals[:1] == [signal.SIGINT] and done < config.train.num_steps else 0


def _is_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _say_what_comes_next(folder: Folder, done: int, config: Config) -> None:
    if done < config.train.num_steps:
        console.say(f"stopped and saved at step {done}; the same command goes on from there")
        return
    pages = [PAGE] if config.log.report else []
    kept = [str(folder / name) for name in (METRICS, EVALUATION, "images", *pages) if (folder / name).exists()]
    events = ", TensorBoard events" if trackers.TENSORBOARD in trackers.named(config.log.trackers) else ""
    console.say(f"wrote {', '.join(kept)}{events} and the checkpoint of step {done}")
    if config.model.name.startswith(registry.PYTHON):
        console.say(f"open with: ebm_jax.open_run({str(folder)!r}, net=...)")
        return
    console.say(console.next_command("sample with", folder, "sample"))


def _claim(folder: Folder, config: Config, record: Record | None) -> None:
    """Make the folder the run's, with what is known of its data, or go on with the run that is there; say which data.

    Raises:
      BadInput: as `workdir.claim` and `identity.continued`.
    """
    going_on = identity.continued(folder, config, record) if record else None
    notes = [workdir.claim(folder, config)]
    trust.remember(config)
    if record and going_on:
        workdir.write_data(folder, found.as_json(going_on.records))
        console.say(found.line(record))
        notes.append(going_on.note)
    for note in filter(None, notes):
        console.warn(note)


def _run(
    config: Config,
    mesh: Mesh,
    manager: ocp.CheckpointManager,
    folder: Folder,
    reporter: Reporter,
    batches: Callable[[int], Batch],
    beginning: recovery.Beginning,
    watchers: _Watchers,
    stop: _Stop,
) -> int:
    """Take steps until the last one or a signal, with rescues in between; return the step of the last checkpoint."""

    def stretch(start: recovery.Beginning) -> int:
        plan = loop.Plan(
            start.step,
            config.train.num_steps,
            config.train.steps_per_call,
            config.checkpoint.every,
            config.log.images_every,
            config.eval.during,
        )
        actions = _actions(config, mesh, manager, reporter, batches, start.rescues, watchers, stop)
        return loop.run(plan, actions, start.state)

    ill_at: list[int] = []

    def rescue(illness: Ill) -> recovery.Beginning:
        again = illness.step in ill_at[-1:]
        ill_at.append(illness.step)
        try:
            with progress.phase("going back to a healthy checkpoint"):
                start, event = recovery.roll_back(config, mesh, manager, folder, illness, again=again)
        except Diverged as end:
            reporter.event(illness.step, str(end))
            raise
        reporter.go_back(start.step)
        reporter.event(illness.step, event)
        console.warn(event)
        return start

    return loop.run_with_rescues(beginning, stretch, rescue)


def _actions(
    config: Config,
    mesh: Mesh,
    manager: ocp.CheckpointManager,
    reporter: Reporter,
    batches: Callable[[int], Batch],
    rescues: int,
    watchers: _Watchers,
    stop: _Stop,
) -> loop.Actions:
    """The loop's actions on the devices, the run's folder and the terminal, after `rescues` rescues."""
    number, compiled = config.train.steps_per_call, set()
    steps_of = cache(partial(program.make_steps, config, mesh, rescues))
    judge = guard.make_judge(
        assemble.make_method(config).limits, lambda: float(processes.from_first(repr(program.untrained_energy(config))))
    )

    def advance(step: int, state: TrainState) -> tuple[TrainState, Metrics]:
        stage = program.stage_of(config, step)
        of_call = program.place_batches(config, mesh, [batches(index) for index in range(step, step + number)])
        if stage in compiled:
            return steps_of(stage)(state, of_call)
        compiled.add(stage)
        with progress.phase(f"compiling the training step{' of the second stage' if stage else ''}"):
            return steps_of(stage)(state, of_call)

    announce = pace.announcer(config.train.num_steps, number, console.warn)
    on_cpu = _is_cpu(mesh) and processes.is_first()

    def show(step: int, numbers: dict[str, float]) -> None:
        stop.take_over()
        if on_cpu:
            announce(step)
        reporter.progress(step, numbers, config.log.every)

    keeper = program.make_keeper(config, mesh)

    def keep(state: TrainState) -> tuple[TrainState, jax.Array]:
        with progress.phase("copying the state"):
            return keeper(state)

    def save(step: int, state: TrainState) -> None:
        with progress.phase(f"saving step {step:,}"):
            failure = checkpoint.save(manager, step, state)
        if failure:
            console.warn(failure)

    return loop.Actions(
        advance=advance,
        keep=keep,
        judge=judge,
        show=show,
        draw=watchers.draw,
        evaluate=watchers.evaluate,
        discard_after=partial(checkpoint.discard_after, manager),
        save=save,
        must_stop=stop.is_due,
        warn=console.warn,
    )


def _picture_maker(
    config: Config, mesh: Mesh, run: str, reporter: Reporter, record: Record
) -> Callable[[int, TrainState], None]:
    """The function (step, state) that writes two grids of images: the replay buffer, and chains from fresh noise."""

    def write(name: str, step: int, images: np.ndarray, labels: np.ndarray, what: str, how: str) -> None:
        captions, classes = (words(config, labels[:GRID], record.class_names) for words in (names_of, in_words))
        title = style.title(run, step, f"{len(images[:GRID])} {what}", how)
        reporter.image(name, step, images[:GRID], captions, title, classes)

    few = with_values(config, {"sample.num_images": GRID, "sample.batch_size": GRID})
    sampler, chains = samplers.make_sampler(few, mesh), assemble.make_method(config).chains
    each = -(-GRID // config.train.num_models)

    def first_rows(buffer: replay.ReplayBuffer) -> tuple[jax.Array, jax.Array]:
        images = replay.as_images(buffer.images[..., :each, :], tuple(config.data.shape))
        return images, buffer.labels[..., :each]  # of no meaning for vectors, which have no names

    first_rows = jax.jit(first_rows, out_shardings=parallel.shardings(mesh, parallel.REPLICATED))

    def draw(step: int, state: TrainState) -> None:
        key = jax.random.key(config.sample.seed)  # the same at every step, so that pictures can be compared
        if (waiting := chains(state.memory)) is not None:
            rows, labels = map(np.asarray, first_rows(waiting))
            moved = f"start: earlier chains or noise; {config.chain.num_steps:,} chain steps at each draw"
            write(
                "buffer", step, rows.reshape(-1, *config.data.shape), labels.reshape(-1), "of the replay buffer", moved
            )
        with progress.phase(f"sampling {GRID} pictures"):
            images, labels = parallel.on_host(sampler(network_params(state, config.sample.weights == "ema"), key, 0))
            write("chains", step, images, labels, "new samples", style.of_noise(config))

    return draw


def _density_watcher(config: Config, mesh: Mesh, run: str, reporter: Reporter) -> Callable[[int, TrainState], None]:
    """The function (step, state) that measures the model against its 2-D law and draws both, and samples."""
    sampler, report_of = samplers.make_sampler(config, mesh), samplers.make_density_report(config)
    log_p = samplers.true_log_density(config)

    @progress.phase("comparing the density with the truth")
    def draw(step: int, state: TrainState) -> None:
        params = network_params(state, config.sample.weights == "ema")
        points, _ = sampler(params, jax.random.key(config.sample.seed), 0)
        points, params = parallel.on_host((points, params))
        if processes.is_first():
            result, log_q = report_of(jax.device_put(params))
            title = style.title(run, step, config.data.name, style.of_noise(config))
            reporter.density(step, log_p, points, log_q, result._asdict(), title)

    return draw


def _evaluation(config: Config, mesh: Mesh, folder: Folder, reporter: Reporter) -> Callable[[int, TrainState], None]:
    """The function (step, state) that reports the classifier distance of fresh samples, and keeps the best state.

    Raises:
      BadInput: `eval.during` asks for it, and the data cannot be judged.
    """
    if not config.eval.during:
        return lambda step, state: None
    with progress.phase("preparing the classifier of eval.during"):
        report_of = during.make_reporter(config, mesh, folder)

    @progress.phase(f"evaluating {during.DISTANCE} of {config.eval.during_samples:,} fresh samples")
    def evaluate(step: int, state: TrainState) -> None:
        best = ""
        try:
            report = report_of(network_params(state, config.sample.weights == "ema"))
        except BadInput as failure:
            console.warn(f"step {step} is not judged: {failure}")
            report = {}
        if report:
            best = "best" if report[during.DISTANCE] < reporter.smallest(during.DISTANCE) else ""
            reporter.evaluation(step, report, during.in_words(report, config.eval.during_samples))
        if processes.from_first(best):
            checkpoint.keep_best(folder, step, state, console.warn)

    return evaluate


@contextlib.contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Once `take_over` is called, turn the first Ctrl-C or SIGTERM into a request to stop; the second acts as usual.

    With a coordinator, JAX takes SIGTERM and stops all processes after the same step. The handler then passes Ctrl-C on
    as SIGTERM.
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

    def take_over() -> None:
        if not previous and threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT,) if joined else (signal.SIGINT, signal.SIGTERM):
                previous[signum] = signal.signal(signum, handler)

    try:
        yield _Stop(take_over, received, processes.stop_is_due if joined else lambda step: bool(received))
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
