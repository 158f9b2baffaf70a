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
from ebm_jax.labels import example_labels, label_shape
from ebm_jax.methods import METHODS, label, losses
from ebm_jax.methods.contrastive import healthy
from ebm_jax.methods.method import Limits, Method, weighted_sum
from ebm_jax.models import energy, spectral
from ebm_jax.models.layers import ACTIVATIONS
from ebm_jax.models.network import Network, as_network
from ebm_jax.models.network import check as check_network
from ebm_jax.models.networks import NETWORKS
from ebm_jax.sampling import KERNELS, base
from ebm_jax.sampling.hmc import no_walls, unit_box_walls
from ebm_jax.sampling.kernel import Kernel, Project, Stages, scheduled
from ebm_jax.schema import value_of
from ebm_jax.training.optimizer import clipped_adam
from ebm_jax.types import BadInput, Config, Params, PRNGKey, Scalar


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
    of_some = {"attention": lambda: model.resnet.attention, "dropout": lambda: model.resnet.dropout}
    if callable(factory):
        offers |= {key: of_some[key] for key in inspect.signature(factory).parameters if key in of_some}
    made = registry.called("model.name", name, factory, offers, model.own.to_dict())
    try:
        return as_network(made)
    except BadInput as error:
        raise BadInput(f"model.name '{name}': {error}") from error


def make_apply(config: Config) -> energy.ApplyFn:
    """The network as the pure function apply(params, images, labels=None, dropout_key=None) -> energies."""
    return make_network(config).apply


def make_base(config: Config) -> base.Base:
    """The law that chains start from; they stay in its support."""
    return base.BASES[config.chain.base](tuple(config.data.shape))


def make_kernel(config: Config, temperature: float | Scalar, name: str = "", project: Project | None = None) -> Kernel:
    """The chain's kernel at a temperature >= 0; a kernel with a Metropolis test needs one above 0.

    Args:
      name: a kernel other than `chain.kernel`; empty: `chain.kernel`. Another one moves by `equivalent_step_size`.
      project: maps images into the set that chains stay in; None: the support of the law that they start from.

    Raises:
      BadInput: there is no such kernel, or its factory refuses the keywords.
    """
    chain, name = config.chain, name or config.chain.kernel
    in_box = project is None and chain.base == "uniform"
    keys = schema.group_of(config, "chain", name)
    if name == "langevin":
        keys = {"noise_scale": None if keys["tied"] else keys["noise_scale"]}
    offers = {
        "step_size": lambda: chain.step_size if name == chain.kernel else equivalent_step_size(config),
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

    Args:
      group: has `num_steps`, `quiet_steps` and `anneal_from`: "chain" for training, "sample" for sampling.
    """
    steps, quiet = value_of(config, f"{group}.num_steps"), value_of(config, f"{group}.quiet_steps")
    last = config.chain.temperature
    first = value_of(config, f"{group}.anneal_from") or last
    temperatures = np.geomspace(first, last, steps - quiet) if first != last else np.full(steps - quiet, last)
    langevin_at = partial(make_kernel, config, name="langevin")
    if config.chain.kernel == "langevin":
        return (_stage(langevin_at, np.concatenate([temperatures, np.zeros(quiet)])),)
    noisy = _stage(partial(make_kernel, config), temperatures)
    descent = _stage(langevin_at, np.zeros(quiet))
    return tuple(stage for stage in (noisy, descent) if stage[1])


def _stage(kernel_at: Callable[[float | Scalar], Kernel], temperatures: np.ndarray) -> tuple[Kernel, int]:
    """One kernel that goes through the temperatures; the plain kernel if they are all equal."""
    if len(set(temperatures)) == 1:
        return kernel_at(float(temperatures[0])), len(temperatures)
    return scheduled(kernel_at, jnp.asarray(temperatures, jnp.float32)), len(temperatures)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with the paper's per-element clip of the gradient (release custom_adam.py:155)."""
    optim = config.optim
    return clipped_adam(optim.learning_rate, optim.b1, optim.b2, optim.clip_scale, optim.clip_offset)


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
    conditional = config.model.num_classes > 1 or label_shape(config) is not None
    try:
        check_network(network, images, labels, conditional)
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


def make_method(config: Config) -> Method:
    """The training method that `method.name` names, plus the label contrast if `loss.label_weight` is above 0.

    The method's factory gets the values that its signature names, from `_offers` and from the method's group of the
    config, and all of `method.own`.

    Raises:
      BadInput: there is no such method, or its factory asks for a value that nobody offers.
    """
    name, offers, weight = config.method.name, _offers(config), config.loss.label_weight
    keys = {key: lambda value=value: value for key, value in schema.group_of(config, "method", name).items()}
    factory = registry.named("method.name", name, METHODS)
    method = registry.called("method.name", name, factory, offers | keys, config.method.own.to_dict())
    if not weight:
        return method
    contrast = registry.called("method.name", "label", label.label_contrast, offers, {})
    return weighted_sum([(1.0, method), (weight, contrast)])


def _offers(config: Config) -> dict[str, Callable[[], Any]]:
    """The values that a method's factory can ask for, by parameter name."""
    model, buffer, loss = config.model, config.buffer, config.loss
    return {
        "base": lambda: make_base(config),
        "stages": lambda: make_stages(config, "chain"),
        "objective": lambda: losses.regularised(
            registry.named("loss.objective", loss.objective, losses.OBJECTIVES),
            loss.energy_l2,
            registry.named("loss.energy_l2_form", loss.energy_l2_form, losses.PENALTIES),
        ),
        "limits": lambda: make_limits(config),
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
