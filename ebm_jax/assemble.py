"""The pure parts of a run but its chains: network, energy, optimiser, parameters and method."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ebm_jax import chains, registry, schema
from ebm_jax.labels import checked_labels, example_labels, is_conditional, label_shape
from ebm_jax.methods import COMPARING, METHODS, ORDERINGS, label, losses, matching
from ebm_jax.methods.contrastive import healthy
from ebm_jax.methods.method import Limits, Method, idle, staged, weighted_sum
from ebm_jax.models import energy, spectral
from ebm_jax.models.layers import ACTIVATIONS
from ebm_jax.models.network import Network, as_network
from ebm_jax.models.network import check as check_network
from ebm_jax.models.networks import NETWORKS, UNETS
from ebm_jax.sampling import augment
from ebm_jax.training.optimizer import clipped_adam, schedule
from ebm_jax.types import (
    BadInput,
    Config,
    Energies,
    EnergyFn,
    Given,
    Images,
    Labels,
    Params,
    PRNGKey,
    Scalar,
    Unlabelled,
)


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
    family = "unet" if name in UNETS else name
    of_some = schema.group_of(config, "model", family) or schema.group_of(config, "model", "resnet")
    of_some = {key.replace(".", "_"): value for key, value in of_some.items()}  # transformer.width: transformer_width
    if callable(factory):
        named = inspect.signature(factory).parameters
        if model.logits or "logits" in named:  # a factory of before, which passes all keywords on, knows no logits
            offers["logits"] = lambda: model.logits
        offers |= {key: lambda value=value: value for key, value in of_some.items() if key in named}
    made = registry.called("model.name", name, factory, offers, model.own.to_dict())
    try:
        return as_network(made)
    except BadInput as error:
        raise BadInput(f"{registry.of_network(name)}: {error}") from error


def make_apply(config: Config) -> energy.ApplyFn:
    """The network as the pure function apply(params, images, labels=None, dropout_key=None) -> energies."""
    return make_network(config).apply


def make_chain_energy(config: Config) -> Callable[[Params, Labels | None], EnergyFn]:
    """From parameters, of an ensemble too, and labels to the energy that sampling's chains follow.

    It is `make_apply`'s, guided by `sample.guidance`: in a descent from noise only between the shares of data
    `sample.guidance_from` and `sample.guidance_until` (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    Raises:
      BadInput: as `make_network`; or the network has no energy of no class, which guidance needs.
    """
    apply, weight = energy.of_members(make_apply(config)), config.sample.guidance
    if not weight:
        return partial(energy.bind, apply)
    if (unlabelled := unlabelled_of(config)) is None:
        raise BadInput(
            f"sample.guidance {weight} needs an energy of no class, and this model has none: train model.name unet by "
            "method.name equilibrium or energy_matching with its class_dropout above 0, or with model.logits; or use 0"
        )
    guided = energy.guided(apply, unlabelled, weight)
    if not chains.guided_in_part(config):
        return partial(energy.bind, guided)

    first, last = config.sample.guidance_from, config.sample.guidance_until

    def inside(share: float | Scalar) -> Any:
        return (share >= first) & ((share < last) | (last == 1.0))

    def of(params: Params, labels: Labels | None) -> EnergyFn:
        return energy.within(inside, *(energy.bind(one, params, labels) for one in (guided, apply)))

    return of


def make_class_energies(
    config: Config, energy_of: Callable[..., Energies]
) -> Callable[[PRNGKey, Images], Float[Array, "b k"]]:
    """The function (key, images) -> what classes are compared by, [b, k], the least for the likeliest class.

    These are the energies U(x, y); where they come from a matching that never compared them, the errors of the matching
    (`matching.class_errors`), which alone are random.

    Args:
      energy_of: (images, labels) -> energies [b].
    """
    num_classes = config.model.num_classes
    if not compared_by_matching(config):
        plain = energy.class_energies(lambda _, images, labels: energy_of(images, labels), None, num_classes)
        return lambda key, images: plain(images)
    length = partial(matching.decay, **chains.decay_of(config))
    return matching.class_errors(
        chains.make_base(config),
        lambda labels: lambda images: energy_of(images, labels),
        num_classes,
        length=length,
        draws=config.sample.class_draws,
    )


def compared_by_matching(config: Config) -> bool:
    """Whether classes are compared by the errors of a matching, and not by energies."""
    return config.method.name in ORDERINGS and not learns_to_classify(config)


def learns_to_classify(config: Config) -> bool:
    """Whether training compares energies of one image under several classes; a method of the user's own may."""
    names = (config.method.name, config.method.then.name if config.method.then.after else "")
    return config.loss.label_weight > 0 or any(name in COMPARING or ":" in name for name in names)


def unlabelled_of(config: Config) -> Unlabelled | None:
    """What makes labels for "no class" of labels, if the run's energy of no class was taught; else None."""
    taught = config.model.logits or _class_dropout(config) > 0
    return make_network(config).unlabelled if taught and is_conditional(config) else None


def _class_dropout(config: Config) -> float:
    """The share of images that a matching trains on as ones of no class; 0 for other methods."""
    name = config.method.name
    return schema.value_of(config, f"method.{name}.class_dropout") if name in ORDERINGS else 0.0


def labels_for(config: Config, labels: Given, num_images: Any = None) -> Labels:
    """`labels.checked_labels`; but a model that has an energy of no class gives it to images without labels.

    Raises:
      BadInput: as `checked_labels`.
    """
    if labels is None and num_images is not None and (unlabelled := unlabelled_of(config)) is not None:
        return unlabelled(example_labels(config, jnp.zeros(num_images, jnp.int32)))
    return checked_labels(config, labels, num_images)


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
        raise BadInput(f"{registry.of_network(config.model.name)}: {error}") from error


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

    After `method.then.after` steps, if that is not 0, `method.then.name` joins them, times `method.then.weight`.

    The method's factory gets the values that its signature names, from `_offers` and from the method's group of the
    config, and all of `method.own`.

    Args:
      stage: 0 or 1: its loss is for steps before, or after, the second method joins (`method.staged`).

    Raises:
      BadInput: there is no such method, or its factory asks for a value that nobody offers.
    """
    then, weight = config.method.then, config.loss.label_weight
    method = _method_of(config, config.method.name, config.method.own.to_dict())
    if weight:
        method = weighted_sum([(1.0, method), (weight, _method_of(config, "label", {}))])
    if not then.after:
        return method
    by_chains = staged(idle(method.base), then.after, _method_of(config, then.name, {}), stage=stage)
    return weighted_sum([(1.0, method), (then.weight, by_chains)])


def _method_of(config: Config, name: str, own: dict[str, Any]) -> Method:
    keys = {key: lambda value=value: value for key, value in schema.group_of(config, "method", name).items()}
    factory = registry.named("method.name", name, METHODS)
    return registry.called("method.name", name, factory, _offers(config, name) | keys, own)


def _offers(config: Config, name: str) -> dict[str, Callable[[], Any]]:
    """The values that the factory of the method of this name can ask for, by parameter name."""
    model, buffer, loss = config.model, config.buffer, config.loss
    return {
        "base": lambda: chains.make_base(config),
        "stages": lambda: chains.make_stages(config, "chain"),
        "objective": lambda: losses.regularised(
            registry.named("loss.objective", loss.objective, losses.OBJECTIVES),
            loss.energy_l2,
            registry.named("loss.energy_l2_form", loss.energy_l2_form, losses.PENALTIES),
        ),
        "limits": lambda: matching_limits(config) if name in ORDERINGS else make_limits(config),
        "unlabelled": lambda: _dropped_to(config) if name in ORDERINGS else _no_class(config),
        "step_size": lambda: chains.equivalent_step_size(config),
        "grad_clip": lambda: config.chain.grad_clip,
        "marginal": lambda: _method_of(config, "contrastive", {}),
        "start_stages": lambda: chains.make_descent(config, buffer.descent_steps),
        "data_noise": lambda: loss.data_noise,
        "augment": lambda: make_augment(config),
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


def make_augment(config: Config) -> augment.Augment | None:
    """What chains undergo when they are drawn from the buffer; None: nothing."""
    if not config.buffer.augment:
        return None
    return augment.some(partial(augment.strong, least_area=config.buffer.least_area), config.buffer.augment)


def _dropped_to(config: Config) -> Unlabelled | None:
    """`unlabelled_of`, for class dropout; None if there are no classes to drop.

    Raises:
      BadInput: there are, and the network has no energy of no class.
    """
    share = _class_dropout(config)
    if share and is_conditional(config) and make_network(config).unlabelled is None:
        raise BadInput(
            f"method.{config.method.name}.class_dropout {share} needs a network with an energy of no class, and "
            f"model.name {config.model.name} has none; use 0, or unet"
        )
    return unlabelled_of(config)


def _no_class(config: Config) -> Unlabelled:
    """What makes labels for "no class" of labels.

    Raises:
      BadInput: the network has no energy of no class.
    """
    if (found := make_network(config).unlabelled) is None or not is_conditional(config):
        raise BadInput(
            f"method.name {config.method.name} needs a classifier, and model.name {config.model.name} has no logits; "
            "use model.logits=True with model.num_classes above 1"
        )
    return found


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
    grad_unit = math.sqrt(math.prod(config.data.shape)) / chains.equivalent_step_size(config)
    ranges = healthy(
        energy=limits.max_energy / (2 * energy_l2),
        of_untrained=limits.max_of_untrained,
        separation=limits.max_separation / energy_l2,
        chain_grad=(limits.min_chain_grad * grad_unit, limits.max_chain_grad * grad_unit),
    )
    return Limits(ranges, limits.patience, limits.window, limits.at_once)
