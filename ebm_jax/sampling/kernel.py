"""A sampler as two pure functions, and the one loop that runs it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ebm_jax import arguments, noise
from ebm_jax.types import BadInput, Energies, EnergyFn, Given, Images, PRNGKey, Scalar, at_share

HAIR = 1e-6  # of pixels in [0, 1]; a float32 near 1 still sees it
Project = Callable[[Images], Images]
Frames = Float[Array, "frames b *event"]


class Info(NamedTuple):
    """What a person wants to see of each chain: [b] from a step, [steps, b] from `run`."""

    energy: Float[Array, "*steps b"]
    """U where the gradient was taken."""
    grad_norm: Float[Array, "*steps b"]
    """L2 norm of ∇U there, before any clipping."""
    acceptance: Float[Array, "*steps b"]
    """Probability in [0, 1] that the move was accepted; 1 for kernels without a Metropolis test."""


class Kernel(NamedTuple):
    """A Markov kernel with its hyper-parameters bound. Every state has a field `x`, the chains' positions."""

    init: Callable[[Images, EnergyFn], Any]
    """(x, energy_fn) -> state"""
    step: Callable[[PRNGKey, Any, EnergyFn], tuple[Any, Info]]
    """(key, state, energy_fn) -> (state, info)"""
    move: Callable[[Any], Any] | None = None
    """state -> state, of a kernel whose step follows no energy and only reports it; None: the step follows one."""


def run(kernel: Kernel, key: Given, x: Given, energy_fn: EnergyFn, num_steps: int) -> tuple[Images, Info]:
    """`num_steps` steps of all chains at once, as one `lax.scan`.

    Args:
      key: one typed PRNG key.
      x: [b, *event], b >= 1, where the chains start: float32, or bfloat16 and float16, which become float32. Under x64
        a start in float64 makes chains in float64.
      num_steps: 0 or more.

    Returns:
      [b, *event], and an Info with fields [num_steps, b].

    Raises:
      BadInput: one of these is none of that.

    Examples:
      >>> import jax
      >>> from ebm_jax.sampling.kernel import run, unit_box
      >>> from ebm_jax.sampling.langevin import langevin
      >>> start = jax.random.uniform(jax.random.key(0), (64, 8, 8, 1))
      >>> darkness = lambda x: 10 * x.sum((1, 2, 3))
      >>> x, info = run(langevin(0.001, project=unit_box), jax.random.key(1), start, darkness, 50)
      >>> x.shape, info.energy.shape, bool(info.energy[-1].mean() < info.energy[0].mean())
      ((64, 8, 8, 1), (50, 64), True)
    """
    x = _checked(key, x)
    arguments.check_whole("num_steps", num_steps, 0)

    def body(state, key):
        return kernel.step(key, state, energy_fn)

    state, info = lax.scan(body, kernel.init(x, energy_fn), jax.random.split(key, num_steps))
    return state.x, info


Stages = Sequence[tuple[Kernel, int]]
"""The kernels of a whole chain in order, each with its number of steps."""


def run_stages(stages: Stages, key: Given, x: Given, energy_fn: EnergyFn) -> tuple[Images, Info]:
    """`run` each kernel in turn from where the one before ended. Info fields are [all steps, b].

    Raises:
      BadInput: there is no stage; or as `run`.

    Examples:
      >>> import jax, ebm_jax
      >>> start = jax.random.normal(jax.random.key(0), (8, 2))
      >>> coarse, fine = (ebm_jax.langevin(step, project=ebm_jax.unbounded) for step in (0.1, 0.01))
      >>> bowl = lambda x: 0.5 * (x**2).sum(1)
      >>> x, info = ebm_jax.run_stages([(coarse, 20), (fine, 5)], jax.random.key(1), start, bowl)
      >>> x.shape, info.energy.shape
      ((8, 2), (25, 8))
    """
    x, infos = _checked(key, x, stages), []
    for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, len(stages)), strict=True):
        x, info = run(kernel, key_stage, x, energy_fn, num_steps)
        infos.append(info)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos)


def end_of_stages(stages: Stages, key: Given, x: Given, energy_fn: EnergyFn) -> Images:
    """Where `run_stages` with the same key ends, [b, *event], to rounding; nothing is computed to be reported alone.

    Raises:
      BadInput: as `run_stages`.
    """
    x = _checked(key, x, stages)
    for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, len(stages)), strict=True):

        def body(state, key, kernel=kernel):
            return kernel.move(state) if kernel.move else kernel.step(key, state, energy_fn)[0], None

        x = lax.scan(body, kernel.init(x, energy_fn), jax.random.split(key_stage, num_steps))[0].x
    return x


def _checked(key: Given, x: Given, stages: Stages | None = None) -> Images:
    """The start as chains take it; refuse another key, start or number of stages."""
    arguments.check_key("key", key)
    arguments.check_images("x", x)
    if stages is not None and not stages:
        raise BadInput("stages is empty; give pairs (kernel, number of steps), such as those of ebm_jax.make_stages")
    return arguments.as_floats(x)


class ScheduledState(NamedTuple):
    """The inner kernel's state, and the number of steps done."""

    inner: Any
    count: Int[Array, ""]

    @property
    def x(self) -> Images:
        return self.inner.x


def scheduled(kernel_of: Callable[[Float[Array, "*value"]], Kernel], values: Float[Array, "steps *value"]) -> Kernel:
    """The kernel that makes step t with `kernel_of(values[t])`: annealing, if the values are temperatures.

    All kernels must share one kind of state. Steps beyond the last value use the last value.
    """

    def init(x: Images, energy_fn: EnergyFn) -> ScheduledState:
        return ScheduledState(kernel_of(values[0]).init(x, energy_fn), jnp.zeros((), jnp.int32))

    def step(key: PRNGKey, state: ScheduledState, energy_fn: EnergyFn) -> tuple[ScheduledState, Info]:
        inner, info = kernel_of(values[state.count]).step(key, state.inner, energy_fn)
        return ScheduledState(inner, state.count + 1), info

    return Kernel(init, step)


def along(kernel: Kernel, shares: Float[Array, " steps"]) -> Kernel:
    """`kernel` whose step t sees an energy that changes along a descent (`types.Along`) at the share `shares[t]`.

    Steps beyond the last share use the last one. Another energy stays as it is.
    """

    def init(x: Images, energy_fn: EnergyFn) -> ScheduledState:
        return ScheduledState(kernel.init(x, at_share(energy_fn, shares[0])), jnp.zeros((), jnp.int32))

    def step(key: PRNGKey, state: ScheduledState, energy_fn: EnergyFn) -> tuple[ScheduledState, Info]:
        inner, info = kernel.step(key, state.inner, at_share(energy_fn, shares[state.count]))
        return ScheduledState(inner, state.count + 1), info

    return Kernel(init, step)


def resampled(kernel: Kernel, energy_of: Callable[[PRNGKey], EnergyFn]) -> Kernel:
    """`kernel` under an energy drawn anew at every step, such as a network's energy under dropout.

    The loop's energy serves the start only. A Metropolis kernel compares two energies: the proposal's new draw, and the
    draw under which it accepted the old point. So the law of MALA, and of HMC with one leap, is the mean of exp(-U/T)
    over the draws, up to its normaliser (the pseudo-marginal method, Andrieu & Roberts 2009). HMC with more leaps has
    no such law, because its trajectories are not reversible.
    """

    def step(key: PRNGKey, state: Any, energy_fn: EnergyFn) -> tuple[Any, Info]:
        del energy_fn
        key_energy, key_step = jax.random.split(key)
        return kernel.step(key_step, state, energy_of(key_energy))

    return Kernel(kernel.init, step)


def hashing(kernel: Kernel) -> Kernel:
    """`kernel` with random numbers that are a hash of a counter (`noise.hashed`), from the same keys."""

    def step(key: PRNGKey, state: Any, energy_fn: EnergyFn) -> tuple[Any, Info]:
        return kernel.step(noise.hashed(key), state, energy_fn)

    return Kernel(kernel.init, step)


class Positions(NamedTuple):
    """The state of a kernel that needs nothing but the chains' positions."""

    x: Images


def projection(project: Project) -> Kernel:
    """The kernel that only projects: at the end of a chain it moves the positions into another set."""

    def init(x: Images, energy_fn: EnergyFn) -> Positions:
        del energy_fn
        return Positions(x)

    def move(state: Positions) -> Positions:
        return Positions(project(state.x))

    def step(key: PRNGKey, state: Positions, energy_fn: EnergyFn) -> tuple[Positions, Info]:
        del key
        energy, grad = energy_and_grad(energy_fn, state.x)
        return move(state), Info(energy, norms(grad), jnp.ones_like(energy))

    return Kernel(init, step, move)


class Point(NamedTuple):
    """Where the chains are: the state of a kernel with a Metropolis test."""

    x: Images
    energy: Energies
    grad: Images
    """∇U(x)"""


def point(x: Images, energy_fn: EnergyFn) -> Point:
    """The positions with the energy and its gradient there."""
    return Point(x, *energy_and_grad(energy_fn, x))


def metropolis(key: PRNGKey, old: Point, proposed: Point, log_ratio: Energies, project: Project) -> tuple[Point, Info]:
    """Move each chain to its proposed point with probability min(1, exp(log_ratio)); else leave it at its old one.

    A proposal is refused if `project` would move it, if its energy is not finite, or if the ratio is NaN.
    """
    inside = (project(proposed.x) == proposed.x).all(tuple(range(1, proposed.x.ndim)))
    valid = inside & jnp.isfinite(proposed.energy) & ~jnp.isnan(log_ratio)
    acceptance = jnp.where(valid, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    accepted = jax.random.uniform(key, acceptance.shape, acceptance.dtype) < acceptance

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    moved = Point(*map(chosen, proposed, old))
    return moved, Info(moved.energy, norms(moved.grad), acceptance)


def energy_and_grad(energy_fn: EnergyFn, x: Images) -> tuple[Energies, Images]:
    """U(x) [b] and ∇ₓU(x) [b, *event] of every chain, from one forward and one backward pass.

    Raises:
      BadInput: the energy gives another number of values than one for each chain.
    """

    def total(x):
        energies = energy_fn(x)
        if energies.shape != x.shape[:1]:
            raise BadInput(
                f"the energy of {x.shape} has the shape {energies.shape}; return one for each, {x.shape[:1]}"
            )
        return energies.sum(), energies

    (_, energies), grads = jax.value_and_grad(total, has_aux=True)(x)
    return energies, grads


def norms(x: Images) -> Float[Array, " b"]:
    """L2 norm of each event of a batch."""
    return jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim))))


def off_faces(x: Images, project: Project, depth: float | Scalar) -> Images:
    """The points `x` of a support, with every coordinate that lies on a face of it moved inwards by `depth`.

    All else stays as it is, bit for bit. Data and clamped samples have many pixels at 0 or 1. From there every second
    proposal of each such pixel leaves the box, so a Metropolis test would refuse all moves of an image for ever.

    Args:
      project: works on each coordinate alone, as `unit_box` does.
    """
    on_face = (project(x + HAIR) < x + HAIR) | (project(x - HAIR) > x - HAIR)
    inwards = project(project(project(x - depth) + 2.0 * depth) - depth)
    return jnp.where(on_face, inwards, x)


def unit_box(x: Images) -> Images:
    """The nearest point with every value in [0, 1]."""
    return jnp.clip(x, 0.0, 1.0)


def unbounded(x: Images) -> Images:
    """The projection that leaves everything where it is."""
    return x


def trace_stages(stages: Stages, key: Given, x: Given, energy_fn: EnergyFn, every: int) -> Frames:
    """The chains' positions after every `every` steps, counted over all stages, and at the end, without the start.

    The chains move as in `run_stages` with the same key. There are ceil(all steps / every) frames. If `every` does not
    divide the number of steps, the last frame comes after fewer steps than the others.

    Raises:
      BadInput: as `run_stages`.
    """
    x = _checked(key, x, stages)
    total = sum(num_steps for _, num_steps in stages)
    frames, before = jnp.broadcast_to(x, (-(-total // every), *x.shape)), 0  # from x: varies over devices as x does
    for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, len(stages)), strict=True):

        def body(carry, now, kernel=kernel):
            (state, frames), (count, key) = carry, now
            state, _ = kernel.step(key, state, energy_fn)
            return (state, frames.at[count // every].set(state.x)), None  # the last write to a frame stays

        now = before + jnp.arange(num_steps, dtype=jnp.int32), jax.random.split(key_stage, num_steps)
        (state, frames), _ = lax.scan(body, (kernel.init(x, energy_fn), frames), now)
        x, before = state.x, before + num_steps
    return frames


def alternating(kernel: Kernel, energy_fns: Sequence[EnergyFn]) -> Kernel:
    """The kernel that makes step t under `energy_fns[t mod n]`: it composes energies by turns, not by their sum.

    As the step size goes to 0, its law goes to exp(-Σ U_i / n) / Z, the law of the mean energy. Each turn starts
    `kernel` afresh from the positions, because a state that remembers one energy is wrong under another. So a schedule
    must go around it: `scheduled(lambda value: alternating(...), values)`. The loop's energy is not used.
    """

    def turn(energy_fn: EnergyFn) -> Callable[[PRNGKey, Images], tuple[Any, Info]]:
        return lambda key, x: kernel.step(key, kernel.init(x, energy_fn), energy_fn)

    turns = [turn(energy_fn) for energy_fn in energy_fns]

    def init(x: Images, energy_fn: EnergyFn) -> ScheduledState:
        del energy_fn
        return ScheduledState(kernel.init(x, energy_fns[0]), jnp.zeros((), jnp.int32))

    def step(key: PRNGKey, state: ScheduledState, energy_fn: EnergyFn) -> tuple[ScheduledState, Info]:
        del energy_fn
        inner, info = lax.switch(state.count % len(turns), turns, key, state.x)
        return ScheduledState(inner, state.count + 1), info

    return Kernel(init, step)
