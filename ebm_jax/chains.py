"""The chains of a run: the law that they start from, their kernel, and the stages that they go through."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ebm_jax import registry, schema
from ebm_jax.applications import Path, ProjectAt
from ebm_jax.methods import ORDERINGS, matching
from ebm_jax.sampling import KERNELS, base, correction
from ebm_jax.sampling.descent import descent
from ebm_jax.sampling.hmc import no_walls, unit_box_walls
from ebm_jax.sampling.kernel import Kernel, Project, Stages, along, hashing, projection, scheduled, unbounded
from ebm_jax.schema import value_of
from ebm_jax.types import BadInput, Config, Images, Scalar


def make_base(config: Config) -> base.Base:
    """The law that chains start from; they stay in its support."""
    return base.BASES[config.chain.base](tuple(config.data.shape))


def make_kernel(
    config: Config,
    temperature: float | Scalar,
    name: str = "",
    project: Project | None = None,
    step_size: float | None = None,
) -> Kernel:
    """The chain's kernel at a temperature >= 0; a kernel with a Metropolis test needs one above 0.

    Args:
      name: a kernel other than `chain.kernel`; empty: `chain.kernel`.
      project: maps images into the set that chains stay in; None: the support of the law that they start from.
      step_size: None: `chain.step_size`, and of another kernel `equivalent_step_size`.

    Raises:
      BadInput: there is no such kernel, or its factory refuses the keywords.
    """
    chain, name = config.chain, name or config.chain.kernel
    in_box = project is None and chain.base == "uniform"
    keys = schema.group_of(config, "chain", name)
    if name == "langevin":
        keys = {"noise_scale": None if keys["tied"] else keys["noise_scale"]}
    offers = {
        "step_size": lambda: step_size or (chain.step_size if name == chain.kernel else equivalent_step_size(config)),
        "temperature": lambda: temperature,
        "grad_clip": lambda: chain.grad_clip,
        "project": lambda: make_base(config).project if project is None else project,
        "reflect": lambda: unit_box_walls if in_box else no_walls,
        **{key: lambda value=value: value for key, value in keys.items()},
    }
    own = chain.own.to_dict() if name == chain.kernel else {}
    kernel = registry.called("chain.kernel", name, registry.named("chain.kernel", name, KERNELS), offers, own)
    return hashing(kernel) if chain.generator == "hash" else kernel


def equivalent_step_size(config: Config) -> float:
    """The s of the Langevin step x - s ∇U that matches one gradient of the kernel: ε²/2 for HMC with leap size ε."""
    chain = config.chain
    return chain.step_size**2 / 2 if chain.kernel == "hmc" else chain.step_size


def make_refiner(config: Config, project: Project) -> Kernel:
    """The chain's kernel at `eval.robustness.refine_temperature` under another projection, for refined classification.

    Raises:
      BadInput: the kernel is not Langevin; no gradient passes through the decisions of a Metropolis test.
    """
    if config.chain.kernel != "langevin":
        raise BadInput(
            f"eval.robustness.refine_steps {config.eval.robustness.refine_steps} is for chain.kernel langevin, not "
            f"{config.chain.kernel}; use 0"
        )
    return make_kernel(config, config.eval.robustness.refine_temperature, project=project)


def make_stages(config: Config, group: str = "sample") -> Stages:
    """The stages of a whole chain: `num_steps` of the config's kernel, the last `quiet_steps` of them without noise.

    A Langevin chain is one loop and ends at temperature 0. A Metropolis test has no temperature 0, so other kernels end
    with Langevin's noise-free descent. Its step is as long as one gradient of theirs (`equivalent_step_size`).

    A chain of the group "sample" begins with `sample.descent_steps` steps of descent, and ends in the set of images.
    Where Langevin steps without noise follow that descent, both are one loop: a network's gradient is compiled once.

    Args:
      group: has `num_steps`, `quiet_steps` and `anneal_from`: "chain" for training, "sample" for sampling.
    """
    if group != "sample":
        return _make_chain(config, group)
    finish, num_steps = make_base(config).finish, config.sample.descent_steps
    end = () if finish is unbounded else ((projection(finish), 1),)
    step_size = _descent_step(config, num_steps)
    if _descends_to_the_end(config):
        return (*_led(config, _descent_to_the_end(config, step_size), 0.0, step_size, config.sample.num_steps), *end)
    descent_stage = make_descent(config, num_steps, step_size)
    return (*_led(config, descent_stage, 0.0, step_size), *_make_chain(config, group), *end)


def _descends_to_the_end(config: Config) -> bool:
    """Whether a descent comes first, and the chain after it is descent as well: Langevin steps at temperature 0."""
    chain, sample = config.chain, config.sample
    quiet = chain.kernel == "langevin" and 0 < sample.num_steps == sample.quiet_steps and chain.grad_clip == np.inf
    return quiet and sample.descent_steps > 0 and chain.descent.stop == 0


def _descent_to_the_end(config: Config, step_size: float | None) -> Stages:
    """The descent from noise and the quiet Langevin steps after it, as one stage; step size as `make_kernel`."""
    chain, project = config.chain, make_base(config).project
    counts = config.sample.descent_steps, config.sample.num_steps
    sizes, aheads = (step_size or chain.step_size, chain.step_size), (chain.descent.look_ahead, 0.0)

    def kernel_at(values: Float[Array, "2"]) -> Kernel:
        return descent(values[0], project=project, look_ahead=values[1])

    values = np.repeat(np.transpose([sizes, aheads]), counts, axis=0)
    return ((scheduled(kernel_at, jnp.asarray(values, jnp.float32)), sum(counts)),)


def _make_chain(config: Config, group: str, project: Project | None = None) -> Stages:
    """The stages of `make_stages` between the descent and the end; `project` as for `make_kernel`."""
    steps, quiet = value_of(config, f"{group}.num_steps"), value_of(config, f"{group}.quiet_steps")
    last = config.chain.temperature
    first = value_of(config, f"{group}.anneal_from") or last
    temperatures = np.geomspace(first, last, steps - quiet) if first != last else np.full(steps - quiet, last)
    langevin_at = partial(make_kernel, config, name="langevin", project=project)
    if config.chain.kernel == "langevin":
        return (_stage(langevin_at, np.concatenate([temperatures, np.zeros(quiet)])),)
    step = _descent_step(config, steps - quiet) if group == "sample" and _by_descent(config) else None
    noisy = _stage(partial(make_kernel, config, project=project, step_size=step), temperatures)
    led = _led(config, (noisy,), 0.0, step) if group == "sample" and _by_descent(config) else (noisy,)
    return tuple(stage for stage in (*led, _stage(langevin_at, np.zeros(quiet))) if stage[1])


def make_path(config: Config, share: float) -> Path | None:
    """How a measurement leads the run's descent from noise; None: the energy does not order images by their noise.

    Args:
      share: in [0, 1): of the start in the first images, beside noise.
    """
    if config.method.name not in ORDERINGS:
        return None
    base, descent_of = make_base(config), _descent_along(config, share)

    def stages_of(project_at: ProjectAt | None) -> Stages:
        led, project_at = project_at is not None, project_at or (lambda share: unbounded)

        def finish(x: Images) -> Images:
            return base.finish(project_at(1.0)(x))

        rest = () if _by_descent(config) else _make_chain(config, "sample", project_at(1.0))
        return (*descent_of(project_at, led), *rest, (projection(finish), 1))

    return Path(base, share, stages_of)


def make_composition(config: Config, divided: bool) -> Stages:
    """The stages of a whole chain under a product of energies.

    Without division or corrections (`sample.correction`), they are those of `make_stages`.

    Args:
      divided: whether the product is divided by the energy of no class.
    """
    if config.method.name not in ORDERINGS or not divided or not config.sample.correction:
        return make_stages(config)
    base = make_base(config)
    rest = () if _by_descent(config) else _make_chain(config, "sample")
    return (*_descent_along(config, 0.0)(lambda share: base.project, True), *rest, (projection(base.finish), 1))


def _by_descent(config: Config) -> bool:
    """Whether the steps of sampling are themselves descent, none before them."""
    return config.chain.kernel == "descent"


def _descent_along(config: Config, first: float) -> Callable[[ProjectAt, bool], Stages]:
    """Sampling's descent from the share `first` of data, each step with the projection of the share it ends at.

    The bool: whether a correction of the size `sample.correction` follows each step that ends below the share
    `correction.LAST`.
    """
    base, keys, size = make_base(config), decay_of(config), config.sample.correction
    num_steps = config.sample.num_steps if _by_descent(config) else config.sample.descent_steps
    step_size = _descent_step(config, num_steps) or config.chain.step_size
    shares = matching.shares(first, num_steps, step_size / base.scale**2, **keys)
    below = int((shares < correction.LAST).sum()) if size else 0

    def stages_of(project_at: ProjectAt, corrected: bool) -> Stages:
        far = below if corrected else 0

        def plain(share: Scalar) -> Kernel:
            return make_kernel(config, 0.0, name="descent", project=project_at(share), step_size=step_size)

        def with_correction(share: Scalar) -> Kernel:
            way = matching.decay(share.reshape(1), **keys)[0]
            return correction.corrected(plain(share), base, share, way, size, project_at(share))

        parts = (with_correction, shares[:far]), (plain, shares[far:])
        stages = tuple((scheduled(kernel_at, jnp.asarray(part)), len(part)) for kernel_at, part in parts if len(part))
        return _led(config, stages, first, step_size)

    return stages_of


def decay_of(config: Config) -> dict[str, float]:
    """The arguments of `matching.decay` that the config gives, of a method of `ORDERINGS`."""
    if config.method.name == "energy_matching":
        return matching.CONSTANT
    keys = schema.group_of(config, "method", "equilibrium")
    return {name: keys[name] for name in ("flat_until", "start", "strength")}


def _descent_step(config: Config, num_steps: int) -> float | None:
    """The step size of sampling's descent, so that one from noise ends at `sample.last_share`; None: the chain's.

    A descent from the midst of the path takes the same steps: its measurement holds what more of them would whiten.
    """
    last = config.sample.last_share
    if config.method.name not in ORDERINGS or not num_steps or not last:
        return None
    return make_base(config).scale ** 2 * matching.step_between(0.0, last, num_steps, **decay_of(config))


def make_descent(config: Config, num_steps: int, step_size: float | None = None) -> Stages:
    """The stage of so many steps of noise-free descent from noise; none if there are 0; step size as `make_kernel`."""
    kernel = partial(make_kernel, config, 0.0, name="descent", step_size=step_size)
    return ((kernel(), num_steps),) if num_steps else ()


def guided_in_part(config: Config) -> bool:
    """Whether `sample.guidance` holds in a part of the descent from noise only."""
    sample = config.sample
    return sample.guidance > 0 and (sample.guidance_from, sample.guidance_until) != (0.0, 1.0)


def _led(config: Config, stages: Stages, first: float, step_size: float | None, at_data: int = 0) -> Stages:
    """Stages of descent from the share `first` of data that tell an energy how far they are, if guidance asks for it.

    Args:
      step_size: None: the chain's.
      at_data: the number of last steps that are of no path, but at the data.
    """
    total = sum(num_steps for _, num_steps in stages) - at_data
    if not guided_in_part(config) or not total:
        return stages
    size = (step_size or config.chain.step_size) / make_base(config).scale ** 2
    path = matching.shares(first, total, size, **decay_of(config))[:-1]
    shares = np.concatenate([[first], path, np.ones(at_data)])
    starts = np.cumsum([0, *(num_steps for _, num_steps in stages)])
    return tuple(
        (along(kernel, jnp.asarray(shares[start : start + num_steps], jnp.float32)), num_steps)
        for start, (kernel, num_steps) in zip(starts[:-1], stages, strict=True)
    )


def _stage(kernel_at: Callable[[float | Scalar], Kernel], temperatures: np.ndarray) -> tuple[Kernel, int]:
    """One kernel that goes through the temperatures; the plain kernel if they are all equal."""
    if len(set(temperatures)) == 1:
        return kernel_at(float(temperatures[0])), len(temperatures)
    return scheduled(kernel_at, jnp.asarray(temperatures, jnp.float32)), len(temperatures)
