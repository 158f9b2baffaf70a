"""Classes that come two at a time and never again: an energy model beside a softmax classifier on the same stream.

    python -m benchmarks.continual                                          # digits, ten seeds
    python -m benchmarks.continual --data fashion_mnist --data-dir DIR --seeds 1

The protocol is the paper's class-incremental split MNIST. Five tasks of two classes each follow one another, and each
image is seen in its own task alone. A test image comes without its task, and is judged among all ten classes. The paper
leaves the rest open. Here the energy model takes the project's own training step, and its replay buffer goes on from
task to task. All its negatives take a label of the batch at hand (`buffer.relabel_prob` 1; the release does the same,
since its buffer stores no labels): negatives under the label of an old class would raise its energy with no data to
lower it. The contrast with wrong labels (`loss.label_weight`) makes energies comparable from class to class. It takes
its wrong labels from the task's other class (`loss.wrong_labels=batch`), which leaves old classes alone.

The softmax classifier is the same network with the same number of parameters and -U(x, y) for logits, under the same
optimiser and batches. Only the objective differs: the cross-entropy over ten classes. A joint classifier gets the same
number of batches of all classes at once, and shows what the network could do. All are judged by running means of their
weights over about the last 1 / (1 - EMA_DECAY) steps, far less than a task.
"""

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ebm_jax import assemble, checks, program
from ebm_jax.data import sources
from ebm_jax.data.memory import Dataset, make_batches
from ebm_jax.distributed import parallel
from ebm_jax.models import energy
from ebm_jax.random import dequantise
from ebm_jax.report import console
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.training.state import network_params
from ebm_jax.types import Batch, Config, Images, Labels, Params

TASKS, CLASSES = 5, 10
CONFIGS = {"digits": "digits_contrastive", "fashion_mnist": "fashion_mnist_contrastive"}
"""From the name of the data to that of its config."""
EMA_DECAY = 0.95
CHUNK = 500  # test images at once


class Scores(NamedTuple):
    """Shares of test images that are right, among all ten classes."""

    by_task: np.ndarray
    """[trained, seeds, tasks]: after so many tasks, on the images of each task."""
    overall: np.ndarray
    """[seeds]: at the end, on all test images."""


class Learner(NamedTuple):
    """Something that learns for several seeds side by side."""

    init: Callable[[], Any]
    """-> state"""
    step: Callable[[Any, list[Batch]], Any]
    """(state, a batch for each seed) -> state"""
    params: Callable[[Any], list[Params]]
    """The weights that classify, of each seed."""


def of_task(dataset: Dataset, task: int) -> Dataset:
    """The images of the two classes of a task, 0 to 4."""
    rows = dataset.labels // (CLASSES // TASKS) == task
    return Dataset(dataset.images[rows], dataset.labels[rows], dataset.num_classes)


def stream(parts: list[Dataset], seed: int, batch_size: int, steps: int) -> Callable[[int], Batch]:
    """step -> a batch of the part at hand, each part for `steps` steps."""
    batches = [make_batches(part, seed, batch_size) for part in parts]
    return lambda step: batches[step // steps](step % steps)


def configured(name: str, words: argparse.Namespace) -> Config:
    """The config of the energy model: the data set's, made conditional and changed by the words."""
    config = importlib.import_module(f"configs.{CONFIGS[name]}").get_config()
    config.data.dir = words.data_dir
    config.model.num_classes, config.model.width = CLASSES, words.width
    config.chain.num_steps, config.buffer.capacity = words.chain_steps, words.capacity
    config.buffer.relabel_prob, config.loss.label_weight = words.relabel_prob, words.label_weight
    config.loss.label_margin, config.optim.ema_decay = words.label_margin, EMA_DECAY
    config.loss.wrong_labels = words.wrong_labels
    config.train.num_models, config.train.batch_size = words.seeds, words.batch_size
    config.optim.learning_rate = words.learning_rate
    return config


def energy_learner(config: Config) -> Learner:
    """The project's training step, on one device."""
    mesh = parallel.device_mesh(jax.devices()[:1])  # models this small gain nothing from a second one
    checks.check(config, mesh.size)
    train_step = program.make_step(config, mesh)

    def step(state: Any, batches: list[Batch]) -> Any:
        return train_step(state, program.place_batch(config, mesh, stacked(batches)))[0]

    def params(state: Any) -> list[Params]:
        return energy.members(jax.device_put(network_params(state, ema=True), jax.devices()[0]))

    return Learner(lambda: program.make_state(config, mesh), step, params)


def stacked(batches: list[Batch]) -> Batch:
    """The batches along a first axis of members. A single model's batch has no such axis."""
    return batches[0] if len(batches) == 1 else Batch(*map(np.stack, zip(*batches, strict=True)))  # pyright: ignore


def softmax_learner(config: Config) -> Learner:
    """The same network, optimiser and seeds, trained on the cross-entropy of -U(x, y) over all classes."""
    apply, optim = assemble.make_apply(config), config.optim
    optimizer = clipped_adam(optim.learning_rate, optim.b1, optim.b2, optim.clip_scale, optim.clip_offset)
    seeds = range(config.train.seed, config.train.seed + config.train.num_models)

    def init() -> list[Any]:
        each = [assemble.init_params(config, jax.random.key(seed)) for seed in seeds]
        return [
            (params, params, optimizer.init(params), jax.random.key(seed))
            for params, seed in zip(each, seeds, strict=True)
        ]

    def logits(params: Params, images: Images) -> jax.Array:
        """All classes in one batch: on a CPU the gradient of a convolution's kernel is slow in a loop over them."""
        labels = jnp.repeat(jnp.arange(CLASSES), len(images))
        return -apply(params, jnp.tile(images, (CLASSES, 1, 1, 1)), labels).reshape(CLASSES, -1).T

    @jax.jit
    def one(member: Any, batch: Batch) -> Any:
        params, ema, opt_state, key = member
        key, key_data = jax.random.split(key)
        images = dequantise(key_data, batch.images)

        def loss(params: Params) -> jax.Array:
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits(params, images), batch.labels)
            return losses.mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, optax.incremental_update(params, ema, 1.0 - EMA_DECAY), opt_state, key

    def step(state: list[Any], batches: list[Batch]) -> list[Any]:
        return [one(member, batch) for member, batch in zip(state, batches, strict=True)]

    return Learner(init, step, lambda state: [ema for _, ema, _, _ in state])


def learn(learner: Learner, batches: list[Callable[[int], Batch]], steps: int, tasks: int) -> Iterator[list[Params]]:
    """The weights after each task."""
    state = learner.init()
    for task in range(tasks):
        for index in range(task * steps, (task + 1) * steps):
            state = learner.step(state, [batch_at(index) for batch_at in batches])
        yield learner.params(state)


def make_right(config: Config) -> Callable[[Params, Dataset], np.ndarray]:
    """(weights, test set) -> whether each image has its lowest energy under its label, among all classes."""
    apply = assemble.make_apply(config)

    @jax.jit
    def predicted(params: Params, images: Images) -> Labels:
        return energy.class_energies(apply, params, CLASSES)(images).argmin(1)

    def right(params: Params, test: Dataset) -> np.ndarray:
        parts = np.array_split(test.images.astype(np.float32) / 255.0, -(-len(test.images) // CHUNK))
        return np.concatenate([np.asarray(predicted(params, jnp.asarray(part))) for part in parts]) == test.labels

    return right


def scores(
    learner: Learner, batches: list[Callable[[int], Batch]], steps: int, tasks: int, test: Dataset, right
) -> Scores:
    """A learner's results after each task."""
    task_of = test.labels // (CLASSES // TASKS)
    rights = [[right(params, test) for params in after] for after in learn(learner, batches, steps, tasks)]
    by_task = [[[one[task_of == task].mean() for task in range(TASKS)] for one in each] for each in rights]
    return Scores(np.array(by_task), np.array([one.mean() for one in rights[-1]]))


def compare(config: Config, train: Dataset, test: Dataset, steps: int) -> dict[str, Scores]:
    """Energy model and softmax classifier on the same stream, and a softmax classifier on all classes at once."""
    size, seeds = config.train.batch_size, range(config.train.seed, config.train.seed + config.train.num_models)
    parts = [of_task(train, task) for task in range(TASKS)]
    streams = [stream(parts, seed, size, steps) for seed in seeds]
    joint = [stream([train], seed, size, TASKS * steps) for seed in seeds]
    right, softmax = make_right(config), softmax_learner(config)
    return {
        "energy model": scores(energy_learner(config), streams, steps, TASKS, test, right),
        "softmax classifier": scores(softmax, streams, steps, TASKS, test, right),
        "softmax classifier, all classes at once": scores(softmax, joint, TASKS * steps, 1, test, right),
    }


def table(found: dict[str, Scores]) -> str:
    """Percent, mean and standard deviation over seeds: at the end on all ten classes and on each task, and on each task
    just after it."""
    lines = []
    for name, score in found.items():
        overall, end = score.overall, score.by_task[-1]
        spread = f" ({100 * overall.std(ddof=1):.2f})" if len(overall) > 1 else ""
        each = " ".join(f"{100 * share:.1f}" for share in end.mean(0))
        line = f"{name}: {100 * overall.mean():.2f}{spread} of all classes; tasks 1 to 5 at the end: {each}"
        if len(score.by_task) == TASKS:
            fresh = [score.by_task[task, :, task].mean() for task in range(TASKS)]
            line += f"; each just after it: {' '.join(f'{100 * share:.1f}' for share in fresh)}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Print the table, and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(CONFIGS), default="digits")
    parser.add_argument("--data-dir", default="", help="where TFDS keeps Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="of each task")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--chain-steps", type=int, default=15)
    parser.add_argument("--capacity", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--relabel-prob", type=float, default=1.0)
    parser.add_argument("--label-weight", type=float, default=1.0)
    parser.add_argument("--label-margin", type=float, default=0.02)
    parser.add_argument("--wrong-labels", choices=["any", "batch"], default="batch")
    words = parser.parse_args()
    config = configured(words.data, words)
    sets = []
    for split in ("train", "test"):
        config.data.split = split
        sets.append(sources.load_dataset(config, console.warn))
    start = time.perf_counter(), time.process_time()
    print(table(compare(config, sets[0], sets[1], words.steps)))
    print(f"{time.perf_counter() - start[0]:.0f} s, {time.process_time() - start[1]:.0f} CPU seconds")


if __name__ == "__main__":
    main()
