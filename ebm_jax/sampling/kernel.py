"""What a sampler is, two pure functions, and the one loop that runs it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ebm_jax.types import Energies, EnergyFn, Images, PRNGKey, Scalar

Project = Callable[[Images], Images]
Frames = Float[Array, "frames b *event"]


class Info(NamedTuple):
    """What a person wants to see of each chain: one entry a chain, and from `run` one row a step before that."""

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


def run(kernel: Kernel, key: PRNGKey, x: Images, energy_fn: EnergyFn, num_steps: int) -> tuple[Images, Info]:
    """`num_steps` steps of all chains `x` at once, as one `lax.scan`. Info fields are [num_steps, b]."""

    def body(state, key):
        return kernel.step(key, state, energy_fn)

    state, info = lax.scan(body, kernel.init(x, energy_fn), jax.random.split(key, num_steps))
    return state.x, info


Stages = Sequence[tuple[Kernel, int]]
"""What a whole chain does: kernels one after another, each with its number of steps."""


def run_stages(stages: Stages, key: PRNGKey, x: Images, energy_fn: EnergyFn) -> tuple[Images, Info]:
    """`run` of each kernel in turn, from where the one before ended. Info fields are [all steps, b]."""
    infos = []
    for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, len(stages)), strict=True):
        x, info = run(kernel, key_stage, x, energy_fn, num_steps)
        infos.append(info)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos)


class ScheduledState(NamedTuple):
    """The state of the kernel that runs, and how many steps it has run."""

    inner: Any
    count: Int[Array, ""]

    @property
    def x(self) -> Images:
        return self.inner.x


def scheduled(kernel_of: Callable[[Scalar], Kernel], values: Float[Array, " steps"]) -> Kernel:
    """The kernel whose step t is that of `kernel_of(values[t])`: annealing, where the values are temperatures.

    All kernels must share one kind of state. Steps beyond the last value use the last value.
    """

    def init(x: Images, energy_fn: EnergyFn) -> ScheduledState:
        return ScheduledState(kernel_of(values[0]).init(x, energy_fn), jnp.zeros((), jnp.int32))

    def step(key: PRNGKey, state: ScheduledState, energy_fn: EnergyFn) -> tuple[ScheduledState, Info]:
        inner, info = kernel_of(values[state.count]).step(key, state.inner, energy_fn)
        return ScheduledState(inner, state.count + 1), info

    return Kernel(init, step)


def resampled(kernel: Kernel, energy_of: Callable[[PRNGKey], EnergyFn]) -> Kernel:
    """`kernel` under an energy drawn anew at every step, such as a network's under dropout.

    The energy that the loop passes serves the start only. Metropolis kernels compare each proposal's own energy with
    the one that the old point was accepted under, so MALA's law is the mean of exp(-U/T) over the draws, up to its
    normaliser (the pseudo-marginal method, Andrieu & Roberts 2009), and so is that of HMC with a single leap; with
    more leaps a trajectory is not reversible, and HMC has no such law.
    """

    def step(key: PRNGKey, state: Any, energy_fn: EnergyFn) -> tuple[Any, Info]:
        del energy_fn
        key_energy, key_step = jax.random.split(key)
        return kernel.step(key_step, state, energy_of(key_energy))

    return Kernel(kernel.init, step)


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
    """Each chain at its proposed point with probability min(1, exp(log_ratio)), else at its old one.

    A proposal is refused where `project` would move it, where its energy is not finite, and where the ratio is NaN.
    """
    inside = (project(proposed.x) == proposed.x).all(tuple(range(1, proposed.x.ndim)))
    valid = inside & jnp.isfinite(proposed.energy) & ~jnp.isnan(log_ratio)
    acceptance = jnp.where(valid, jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    accepted = jax.random.uniform(key, acceptance.shape) < acceptance

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    moved = Point(*map(chosen, proposed, old))
    return moved, Info(moved.energy, norms(moved.grad), acceptance)


def energy_and_grad(energy_fn: EnergyFn, x: Images) -> tuple[Energies, Images]:
    """U(x) and ∇ₓU(x) of every chain, by one pass forth and back."""

    def total(x):
        energies = energy_fn(x)
        return energies.sum(), energies

    (_, energies), grads = jax.value_and_grad(total, has_aux=True)(x)
    return energies, grads


def norms(x: Images) -> Float[Array, " b"]:
    """L2 norm of each event of a batch."""
    return jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim))))


def unit_box(x: Images) -> Images:
    """The nearest point with every value in [0, 1]."""
    return jnp.clip(x, 0.0, 1.0)


def unbounded(x: Images) -> Images:
    """The projection that leaves everything where it is."""
    return x


def trace_stages(stages: Stages, key: PRNGKey, x: Images, energy_fn: EnergyFn, every: int) -> Frames:
    """The chains' positions after each `every` steps of all stages together, and at the end, without the start.

    The chain is that of `run_stages` with the same key. ceil(all steps / every) frames: where the steps are no multiple
    of `every`, the last frame comes after fewer steps than the others.
    """
    total = sum(num_steps for _, num_steps in stages)
    frames, before = jnp.broadcast_to(x, (-(-total // every), *x.shape)), 0  # each device's own, as its chains are
    for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, len(stages)), strict=True):

        def body(carry, now, kernel=kernel):
            (state, frames), (count, key) = carry, now
            state, _ = kernel.step(key, state, energy_fn)
            return (state, frames.at[count // every].set(state.x)), None  # the last to write to a frame stays

        now = before + jnp.arange(num_steps), jax.random.split(key_stage, num_steps)
        (state, frames), _ = lax.scan(body, (kernel.init(x, energy_fn), frames), now)
        x, before = state.x, before + num_steps
    return frames


def alternating(kernel: Kernel, energy_fns: Sequence[EnergyFn]) -> Kernel:
    """The kernel whose step t moves under `energy_fns[t mod n]`: composition by turns rather than by a sum of energies.

    As the step size goes to 0 its law goes to that of the mean of the energies, exp(-Σ U_i / n) / Z. Each turn starts
    `kernel` afresh from the positions, for what a state keeps of one energy is wrong under another; a schedule thus
    goes around it, `scheduled(lambda value: alternating(...), values)`. The energy that the loop passes is not used.
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
