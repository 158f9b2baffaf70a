"""The tasks that `--mode=sample` can do with a trained run, one module a task."""

from ebm_jax import registry, trained
from ebm_jax.tasks import (
    classify,
    colourise,
    compose,
    film,
    generate,
    inpaint,
    neighbours,
    restore,
    super_resolve,
    transition,
)
from ebm_jax.tasks.common import Task
from ebm_jax.types import BadInput, Config

TASKS: dict[str, Task] = {
    "generate": Task(generate.check, generate.run),
    "film": Task(film.check, film.run),
    "transition": Task(transition.check, transition.run),
    "compose": Task(compose.check, compose.run, ensemble=False),
    "inpaint": Task(inpaint.check, inpaint.run),
    "restore": Task(restore.check, restore.run),
    "super_resolve": Task(super_resolve.check, super_resolve.run),
    "colourise": Task(colourise.check, colourise.run),
    "classify": Task(classify.check, classify.run),
    "neighbours": Task(neighbours.check, neighbours.run),
}
"""By the task's name in `sample.task`; `package.module:Name` there names the user's own task."""


def task_of(config: Config) -> Task:
    """The task of `sample.task`.

    Raises:
      BadInput: no task has this name; or the user's own object has no `check` or no `run`.
    """
    found = registry.named("sample.task", config.sample.task, TASKS)
    if isinstance(found, Task):
        return found
    for part in Task._fields[:2]:
        if not callable(getattr(found, part, None)):
            raise BadInput(
                f"sample.task '{config.sample.task}' has no function {part}; give an object with check(config) and "
                "run(trained_run, key), such as an ebm_jax.tasks.common.Task"
            )
    return Task(found.check, found.run)


def check(config: Config, num_devices: int) -> None:
    """Refuse a config that `--mode=sample` cannot work with, beyond the refusals of `checks.check`.

    Raises:
      BadInput: with the key, its value, the limit and what to do.
    """
    task, name = task_of(config), config.sample.task
    task.check(config)
    if config.sample.buffer_capacity and name != "generate":
        raise BadInput(f"sample.buffer_capacity is for sample.task generate, not {name}; use 0")
    trained.check_sampling_buffer(config, "sample", "num_images", num_devices)
