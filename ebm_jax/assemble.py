"""The pure parts of a run: network, kernel, optimiser, state and step."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ebm_jax import registry, schema
from ebm_jax.applications import Path, ProjectAt
from ebm_jax.labels import checked_labels, example_labels, is_conditional, label_shape
from ebm_jax.methods import METHODS, ORDERINGS, label, losses, matching
from ebm_jax.methods.contrastive import healthy
from ebm_jax.methods.method import Limits, Method, idle, staged, weighted_sum
from ebm_jax.models import energy, spectral
from ebm_jax.models.layers import ACTIVATIONS
from ebm_jax.models.network import Network, as_network
from ebm_jax.models.network import check as check_network
from ebm_jax.models.networks import NETWORKS
from ebm_jax.sampling import KERNELS, base, correction
from ebm_jax.sampling.hmc import no_walls, unit_box_walls
from ebm_jax.sampling.kernel import Kernel, Project, Stages, projection, scheduled, unbounded
from ebm_jax.schema import value_of
from ebm_jax.training.optimizer import clipped_adam, schedule
from ebm_jax.types import BadInput, Config, Given, Images, Labels, Params, PRNGKey, Scalar


def make_network(config: Config) -> Network:
    """The network that `model.name` names: a row of NETWORKS, or the user's own by its import path.

    Its factory gets the keys of the group `model` that its signature names, and all of `model.own`.

    Raises:
      BadInput: there is no such name, the factory refuses the keywords, or it does not make a network.
    """
    name, model = config.model.name, config.model
    factory = registry.named("model.name", name, NETWORKS)
    offers = {
        "width": lambda: model.width,
        "num_classes": lambda: model.num_classes,
        "activation": lambda: registry.named("model.activation", model.activation, ACTIVATIONS),
        "spectral_norm": lambda: model.spectral_norm,
        "dtype": lambda: jnp.dtype(model.dtype),
    }
    of_some = schema.group_of(config, "model", name) or schema.group_of(config, "model", "resnet")
    if callable(factory):
        named = inspect.signature(factory).parameters
        offers |= {key: lambda value=value: value for key, value in of_some.items() if key in named}
    made = registry.called("model.name", name, factory, offers, model.own.to_dict())
    try:
        return as_network(made)
    except BadInput as error:
        raise BadInput(f"model.name '{name}': {error}") from error


def make_apply(config: Config) -> energy.ApplyFn:
    """The network as the pure function apply(params, images, labels=None, dropout_key=None) -> energies."""
    return make_network(config).apply


def make_chain_apply(config: Config) -> energy.ApplyFn:
    """The energy that sampling's chains follow: `make_apply`, of an ensemble too, guided by `sample.guidance`.

    Raises:
      BadInput: as `make_network`; or the network has no energy of no class, which guidance needs.
    """
    apply, weight = energy.of_members(make_apply(config)), config.sample.guidance
    if not weight:
        return apply
    if (unlabelled := unlabelled_of(config)) is None:
        raise BadInput(
            f"sample.guidance {weight} needs an energy of no class, and this model has none: train model.name unet by "
            "method.name equilibrium with method.equilibrium.class_dropout above 0; or use 0"
        )
    return energy.guided(apply, unlabelled, weight)


def unlabelled_of(config: Config) -> Callable[[Labels], Labels] | None:
    """What makes labels for "no class" of labels, if the run's energy of no class was taught; else None."""
    taught = config.method.name in ORDERINGS and config.method.equilibrium.class_dropout > 0
    return make_network(config).unlabelled if taught and is_conditional(config) else None


def labels_for(config: Config, labels: Given, num_images: Any = None) -> Labels:
    """`labels.checked_labels`; but a model that has an energy of no class gives it to images without labels.

    Raises:
      BadInput: as `checked_labels`.
    """
    if labels is None and num_images is not None and (unlabelled := unlabelled_of(config)) is not None:
        return unlabelled(example_labels(config, jnp.zeros(num_images, jnp.int32)))
    return checked_labels(config, labels, num_images)


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
    return registry.called("chain.kernel", name, registry.named("chain.kernel", name, KERNELS), offers, own)


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

    Args:
      group: has `num_steps`, `quiet_steps` and `anneal_from`: "chain" for training, "sample" for sampling.
    """
    chain = _make_chain(config, group)
    if group != "sample":
        return chain
    finish, num_steps = make_base(config).finish, config.sample.descent_steps
    end = () if finish is unbounded else ((projection(finish), 1),)
    return (*make_descent(config, num_steps, _descent_step(config, num_steps)), *chain, *end)


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
    return tuple(stage for stage in (noisy, _stage(langevin_at, np.zeros(quiet))) if stage[1])


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


def make_composition(config: Config) -> Stages:
    """The stages of a whole chain under a product of energies.

    Without an energy of no class, or without corrections (`sample.correction`), they are those of `make_stages`.
    """
    if config.method.name not in ORDERINGS or unlabelled_of(config) is None or not config.sample.correction:
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
    base, keys, size = make_base(config), _decay(config), config.sample.correction
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
        return tuple((scheduled(kernel_at, jnp.asarray(part)), len(part)) for kernel_at, part in parts if len(part))

    return stages_of


def _decay(config: Config) -> dict[str, float]:
    """The arguments of `matching.decay` that the config gives."""
    keys = schema.group_of(config, "method", "equilibrium")
    return {name: keys[name] for name in ("flat_until", "start", "strength")}


def _descent_step(config: Config, num_steps: int) -> float | None:
    """The step size of sampling's descent, so that one from noise ends at `sample.last_share`; None: the chain's.

    A descent from the midst of the path takes the same steps: its measurement holds what more of them would whiten.
    """
    last = config.sample.last_share
    if config.method.name not in ORDERINGS or not num_steps or not last:
        return None
    return make_base(config).scale ** 2 * matching.step_between(0.0, last, num_steps, **_decay(config))


def make_descent(config: Config, num_steps: int, step_size: float | None = None) -> Stages:
    """The stage of so many steps of noise-free descent from noise; none if there are 0; step size as `make_kernel`."""
    kernel = partial(make_kernel, config, 0.0, name="descent", step_size=step_size)
    return ((kernel(), num_steps),) if num_steps else ()


def _stage(kernel_at: Callable[[float | Scalar], Kernel], temperatures: np.ndarray) -> tuple[Kernel, int]:
    """One kernel that goes through the temperatures; the plain kernel if they are all equal."""
    if len(set(temperatures)) == 1:
        return kernel_at(float(temperatures[0])), len(temperatures)
    return scheduled(kernel_at, jnp.asarray(temperatures, jnp.float32)), len(temperatures)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with the paper's per-element clip of the gradient (release custom_adam.py:155)."""
    optim = config.optim
    rate = schedule(optim.learning_rate, optim.warmup_steps, optim.decay_steps, optim.final_share)
    return clipped_adam(rate, optim.b1, optim.b2, optim.clip_scale, optim.clip_offset, optim.clip_norm)


def raw_params(config: Config, key: PRNGKey) -> tuple[Params, spectral.Vectors]:
    """Parameters before spectral normalisation, and the vectors of its power iteration ({} without it).

    Do not call it under jit: one program with a random draw for each of many kernels compiles for half a minute;
    separate draws compile once a shape.

    Raises:
      BadInput: as `make_network`; or the user's own network does not fit the images and labels.
    """
    key_params, key_vectors = jax.random.split(key)
    images, labels = _abstract_inputs(config, 1)
    network = make_network(config)
    if config.model.name not in NETWORKS:
        _check_own(config, network)
    params = network.init(key_params, images, labels)
    return params, spectral.init(key_vectors, params, network.spectral_form) if config.model.spectral_norm else {}


def _check_own(config: Config, network: Network) -> None:
    """Refuse the user's own network if it does not fit the images and labels of the config.

    Raises:
      BadInput: as `models.network.check`.
    """
    images, labels = _abstract_inputs(config, 3)
    try:
        check_network(network, images, labels, is_conditional(config))
    except BadInput as error:
        raise BadInput(f"model.name '{config.model.name}': {error}") from error


def _abstract_inputs(config: Config, number: int) -> tuple[Any, Any]:
    """Shapes and types of `number` images and their labels."""
    return jax.eval_shape(
        lambda: (
            jnp.zeros((number, *config.data.shape), jnp.float32),
            example_labels(config, jnp.zeros(number, jnp.int32)),
        )
    )


def abstract_params(config: Config) -> Any:
    """Shapes and types of one network's parameters.

    Raises:
      BadInput: as `raw_params`.
    """
    network = make_network(config)
    if config.model.name not in NETWORKS:
        _check_own(config, network)
    return jax.eval_shape(network.init, jax.random.key(0), *_abstract_inputs(config, 1))


def abstract_raw_params(config: Config) -> tuple[Any, Any]:
    """Shapes and types of what `raw_params` gives for one model."""
    return jax.eval_shape(partial(raw_params, config), jax.random.key(0))


def init_params(config: Config, key: PRNGKey) -> Params:
    """Untrained parameters of the network, spectrally normalised where the config says so."""
    return spectral.normalise(*raw_params(config, key))


def make_method(config: Config, stage: int | None = None) -> Method:
    """The training method that `method.name` names, plus the label contrast if `loss.label_weight` is above 0.

    After `method.then.after` steps, if that is not 0, contrastive divergence joins them, times `method.then.weight`.

    The method's factory gets the values that its signature names, from `_offers` and from the method's group of the
    config, and all of `method.own`.

    Args:
      stage: 0 or 1: its loss is for steps before, or after, contrastive divergence joins (`method.staged`).

    Raises:
      BadInput: there is no such method, or its factory asks for a value that nobody offers.
    """
    then, weight = config.method.then, config.loss.label_weight
    method = _method_of(config, config.method.name, config.method.own.to_dict())
    if weight:
        method = weighted_sum([(1.0, method), (weight, _method_of(config, "label", {}))])
    if not then.after:
        return method
    chains = staged(idle(method.base), then.after, _method_of(config, "contrastive", {}), stage=stage)
    return weighted_sum([(1.0, method), (then.weight, chains)])


def _method_of(config: Config, name: str, own: dict[str, Any]) -> Method:
    keys = {key: lambda value=value: value for key, value in schema.group_of(config, "method", name).items()}
    factory = registry.named("method.name", name, METHODS)
    return registry.called("method.name", name, factory, _offers(config, name) | keys, own)


def _offers(config: Config, name: str) -> dict[str, Callable[[], Any]]:
    """The values that the factory of the method of this name can ask for, by parameter name."""
    model, buffer, loss = config.model, config.buffer, config.loss
    return {
        "base": lambda: make_base(config),
        "stages": lambda: make_stages(config, "chain"),
        "objective": lambda: losses.regularised(
            registry.named("loss.objective", loss.objective, losses.OBJECTIVES),
            loss.energy_l2,
            registry.named("loss.energy_l2_form", loss.energy_l2_form, losses.PENALTIES),
        ),
        "limits": lambda: matching_limits(config) if name in ORDERINGS else make_limits(config),
        "unlabelled": lambda: _dropped_to(config),
        "start_stages": lambda: make_descent(config, buffer.descent_steps),
        "data_noise": lambda: loss.data_noise,
        "patience": lambda: config.guard.patience,
        "capacity": lambda: buffer.capacity,
        "dtype": lambda: jnp.dtype(buffer.dtype),
        "restart_prob": lambda: buffer.restart_prob,
        "relabel_prob": lambda: buffer.relabel_prob,
        "ring": lambda: buffer.ring,
        "dropout_in_chains": lambda: model.resnet.dropout > 0 and model.resnet.dropout_in_chains,
        "num_classes": lambda: model.num_classes,
        "label_shape": lambda: label_shape(config),
        "label_margin": lambda: loss.label_margin,
        "wrong_labels": lambda: registry.named("loss.wrong_labels", loss.wrong_labels, label.WRONG_LABELS),
    }


def _dropped_to(config: Config) -> Callable[[Labels], Labels] | None:
    """`unlabelled_of`, for class dropout; None if there are no classes to drop.

    Raises:
      BadInput: there are, and the network has no energy of no class.
    """
    share = config.method.equilibrium.class_dropout
    if share and is_conditional(config) and make_network(config).unlabelled is None:
        raise BadInput(
            f"method.equilibrium.class_dropout {share} needs a network with an energy of no class, and model.name "
            f"{config.model.name} has none; use 0, or unet"
        )
    return unlabelled_of(config)


def matching_limits(config: Config) -> Limits:
    """The healthy region of a matching. Without the guard only non-finite values are ill."""
    guard = config.guard
    error = guard.max_matching_error if guard.enabled else math.inf
    return Limits(matching.healthy(error=error), guard.patience, guard.window, guard.at_once)


def make_limits(config: Config) -> Limits:
    """The healthy region of contrastive divergence. Without the guard only non-finite values are ill."""
    limits = config.guard
    if not limits.enabled:
        return Limits(healthy(energy=math.inf, of_untrained=0.0, separation=math.inf, chain_grad=(0.0, math.inf)))
    energy_l2 = max(config.loss.energy_l2, limits.least_energy_l2)
    grad_unit = math.sqrt(math.prod(config.data.shape)) / equivalent_step_size(config)
    ranges = healthy(
        energy=limits.max_energy / (2 * energy_l2),
        of_untrained=limits.max_of_untrained,
        separation=limits.max_separation / energy_l2,
        chain_grad=(limits.min_chain_grad * grad_unit, limits.max_chain_grad * grad_unit),
    )
    return Limits(ranges, limits.patience, limits.window, limits.at_once)
