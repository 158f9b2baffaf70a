"""How long a plan will take on a CPU, counted before its first step."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ebm_jax import program
from ebm_jax.report import pace
from ebm_jax.schema import with_values
from ebm_jax.types import Config

FEW = 10_000  # steps: a plan of so few is not counted, for that takes 3 to 7 seconds; `pace` times it after two calls
SIDE = 1024  # of the matrices that this machine's rate is measured with
SHARE = 0.75  # of that rate: a training step's, 0.63 to 1.06 where it was measured on images (docs/performance.md)


def warn(config: Config, mesh: Mesh, say: Callable[[str], None]) -> None:
    """Say in one line, with the estimate and a smaller plan, that the plan will take beyond `pace.LONG` on this CPU.

    Args:
      mesh: of devices of this CPU.
      say: takes the line.
    """
    num_steps = config.train.num_steps
    if num_steps <= FEW:
        return
    seconds = plan_flops(config, mesh) / (SHARE * rate())
    if seconds > pace.LONG:
        say(
            f"this plan will take about {_rounded(seconds / pace.LONG)} days on this CPU, by a count before its first "
            f"step, which may be wrong by a factor of 2; {pace.smaller(int(num_steps * pace.LONG / seconds))}"
        )


def _rounded(days: float) -> str:
    """Two digits: no more are known."""
    return f"{float(f'{days:.2g}'):,g}"


def plan_flops(config: Config, mesh: Mesh) -> int:
    """Floating-point operations of the convolutions and matrix products of all steps, on all devices."""
    after = min(config.method.then.after, config.train.num_steps)
    stages = {0: after, 1: config.train.num_steps - after} if after else {None: config.train.num_steps}
    return sum(steps * step_flops(config, mesh, stage) for stage, steps in stages.items() if steps)


def step_flops(config: Config, mesh: Mesh, stage: int | None = None) -> int:
    """Floating-point operations of the convolutions and matrix products of a step, on all devices.

    Args:
      stage: as for `program.make_step`.
    """
    one = with_values(config, {"train.steps_per_call": 1})
    step = program.make_step(one, mesh, stage=stage)
    traced = jax.make_jaxpr(step)(program.abstract_state(one, mesh), program.abstract_batch(one, mesh))
    return mesh.size * flops(traced.jaxpr)


def flops(jaxpr: Any) -> int:
    """Floating-point operations, multiplications and additions, of a jaxpr's convolutions and matrix products.

    A loop whose turns are not known counts once, of branches the longest counts, and what falls on padding counts.
    """
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        taps = kernel.size // kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * taps // math.prod(parameters["lhs_dilation"])
    if name == "cond":
        return max(flops(branch.jaxpr) for branch in _taken(**parameters))
    turns = parameters["length"] if name == "scan" else 1
    return turns * sum(flops(inner) for inner in _inside(parameters))


def _taken(branches: tuple[Any, ...], branches_platforms: Any = None, **_: Any) -> tuple[Any, ...]:
    """The branches that a CPU may take: of those for platforms its own."""
    own = [i for i, platforms in enumerate(branches_platforms or ()) if platforms and "cpu" in platforms]
    return tuple(branches[i] for i in own) or branches


def _inside(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def rate(clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations a second in a product of float32 matrices, on all cores, as busy as they are now."""
    product = jax.jit(jnp.matmul)
    matrix = jnp.ones((SIDE, SIDE), jnp.float32)
    product(matrix, matrix).block_until_ready()
    times = []
    for _ in range(5):
        began = clock()
        product(matrix, matrix).block_until_ready()
        times.append(clock() - began)
    return 2 * SIDE**3 / sorted(times)[2]
