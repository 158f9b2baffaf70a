"""The algebra of energies: it makes functions of images from a network, and new energies from old ones.

An energy U has the law q(x) = exp(-U(x)) / Z. Each operation does this to the laws:

    conjunction     q₁ q₂ / Z            both: a product of experts
    disjunction     w₁ Z₁ q₁ + w₂ Z₂ q₂  either: a mixture, weighted by the unknown normalisers
    weighted        q^w / Z              w > 1 sharpens, 0 < w < 1 flattens
    negation        1 / q                not: a law only inside a conjunction, and only on a bounded set
    tempered        q^(1/T) / Z
    bridge          q₀^(1-β) q₁^β / Z
    clamped         q(x_free | x_known)
    ensemble        (q₁ ... q_M)^(1/M) / Z
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ebm_jax.distributed.parallel import over_members
from ebm_jax.types import Along, BadInput, Energies, EnergyFn, Images, Labels, Params, PRNGKey, Scalar, at_share

ApplyFn = Callable[..., Energies]


def from_module(module: nn.Module) -> ApplyFn:
    """The pure function `apply(params, images, labels=None, dropout_key=None) -> energies` of a Flax network.

    A `dropout_key` gives the module the random stream "dropout"; the module asks `self.has_rng("dropout")`. A module
    that takes images alone gets no labels.
    """
    takes_labels = takes(module.__call__, 2)

    def apply(
        params: Params, images: Images, labels: Labels | None = None, dropout_key: PRNGKey | None = None
    ) -> Energies:
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        inputs = (images, labels) if takes_labels else (images,)
        return cast(Energies, module.apply({"params": params}, *inputs, rngs=rngs))

    return apply


def takes(fn: Callable, number: int) -> bool:
    """Whether a function accepts `number` positional arguments."""
    try:
        inspect.signature(fn).bind(*range(number))
    except TypeError:
        return False
    return True


def bind(apply: ApplyFn, params: Params, labels: Labels | None = None, dropout_key: PRNGKey | None = None) -> EnergyFn:
    """The energy of images alone: it fixes the parameters, the labels (one an image, if given) and the dropout mask."""
    return lambda images: apply(params, images, labels, dropout_key=dropout_key)


def conjunction(*energy_fns: EnergyFn) -> EnergyFn:
    """Images likely under all of the energies: U = Σ U_i, the product of the laws.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> left, right = (lambda x: (x[:, 0] + 1) ** 2), (lambda x: (x[:, 0] - 1) ** 2)
      >>> x = jnp.array([[-1.0], [0.0], [1.0]])
      >>> energy.conjunction(left, right)(x).tolist()  # least between the two
      [4.0, 2.0, 4.0]
    """
    return _along(lambda *fns: lambda images: reduce(operator.add, (fn(images) for fn in fns)), *energy_fns)


def product_of_classes(energy_fns: Sequence[EnergyFn], of_no_class: EnergyFn) -> EnergyFn:
    """Images of all the classes at once: U = Σ U_i - (n - 1) U₀, for n energies U(x, y_i) and the one of no class, U₀.

    If the classes are independent given the image, p(x | y_1 ... y_n) ∝ Π p(x | y_i) / p(x)^(n - 1), and the gradients
    of energies by matching add up alike (Liu et al. 2022, arXiv 2206.01714, section 3.2). The weights add up to 1, so
    chains take the same steps as under one energy.
    """
    return conjunction(*energy_fns, weighted(of_no_class, 1.0 - len(energy_fns)))


def disjunction(*energy_fns: EnergyFn, weights: Sequence[float | Scalar] | None = None) -> EnergyFn:
    """Images likely under any of the energies: U = -log Σ w_i exp(-U_i), a mixture of the unnormalised laws.

    Args:
      weights: w_i >= 0, one for each energy; None sets all to 1. They are shares of the mixture only if all Z_i are
        equal.

    Raises:
      ValueError: there are more weights than energies, or fewer.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> left, right = (lambda x: (x[:, 0] + 1) ** 2), (lambda x: (x[:, 0] - 1) ** 2)
      >>> x = jnp.array([[-1.0], [0.0], [1.0]])
      >>> [f"{value:.2f}" for value in energy.disjunction(left, right)(x)]  # low at either
      ['-0.02', '0.31', '-0.02']
    """
    weights = [1.0] * len(energy_fns) if weights is None else weights

    def of(*fns: EnergyFn) -> EnergyFn:
        terms = [(jnp.log(weight), fn) for weight, fn in zip(weights, fns, strict=True)]
        return lambda images: -jax.nn.logsumexp(jnp.stack([log - fn(images) for log, fn in terms]), axis=0)

    return _along(of, *energy_fns)


def weighted(energy_fn: EnergyFn, weight: float | Scalar) -> EnergyFn:
    """weight · U.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> left, right = (lambda x: (x[:, 0] + 1) ** 2), (lambda x: (x[:, 0] - 1) ** 2)
      >>> x = jnp.array([[-1.0], [0.0], [1.0]])
      >>> energy.weighted(left, 3.0)(x).tolist()
      [0.0, 3.0, 12.0]
    """
    return _along(lambda fn: lambda images: weight * fn(images), energy_fn)


def negation(energy_fn: EnergyFn) -> EnergyFn:
    """-U: likely images become unlikely. Weight the result and put it into a conjunction.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> left, right = (lambda x: (x[:, 0] + 1) ** 2), (lambda x: (x[:, 0] - 1) ** 2)
      >>> x = jnp.array([[-1.0], [0.0], [1.0]])
      >>> energy.conjunction(right, energy.weighted(energy.negation(left), 0.5))(x).tolist()  # right, not left
      [4.0, 0.5, -2.0]
    """
    return weighted(energy_fn, -1.0)


def tempered(energy_fn: EnergyFn, temperature: float | Scalar) -> EnergyFn:
    """U / T, T > 0.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> left, right = (lambda x: (x[:, 0] + 1) ** 2), (lambda x: (x[:, 0] - 1) ** 2)
      >>> x = jnp.array([[-1.0], [0.0], [1.0]])
      >>> energy.tempered(left, 2.0)(x).tolist()  # hotter, flatter
      [0.0, 0.5, 2.0]
    """
    return _along(lambda fn: lambda images: fn(images) / temperature, energy_fn)


def bridge(start: EnergyFn, end: EnergyFn, share: float | Scalar) -> EnergyFn:
    """(1 - β) U₀ + β U₁, β = `share` in [0, 1]: annealing goes this way from one law to the other.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> left, right = (lambda x: (x[:, 0] + 1) ** 2), (lambda x: (x[:, 0] - 1) ** 2)
      >>> x = jnp.array([[-1.0], [0.0], [1.0]])
      >>> energy.bridge(left, right, 0.25)(x).tolist()
      [1.0, 1.0, 3.0]
    """
    return conjunction(weighted(start, 1.0 - share), weighted(end, share))


def clamped(energy_fn: EnergyFn, images: Images, known: Bool[Array, "b *event"]) -> EnergyFn:
    """The energy of the free values; the known values are fixed to those in `images`.

    A chain may move the known values, but this changes no energy. So any kernel samples q(free | known); put the known
    values back into its result.

    Args:
      known: true where `images` gives the value.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax.models import energy
      >>> images, known = jnp.array([[0.0, 1.0]]), jnp.array([[True, False]])
      >>> energy.clamped(lambda x: x.sum(-1), images, known)(jnp.array([[5.0, 0.5]])).tolist()  # 0 is known
      [0.5]
    """
    return _along(lambda fn: lambda x: fn(jnp.where(known, images, x)), energy_fn)


def _along(make: Callable[..., EnergyFn], *energy_fns: EnergyFn) -> EnergyFn:
    """`make(*energy_fns)`, which changes along a descent from noise where one of the energies does (`types.Along`)."""
    if not any(isinstance(energy_fn, Along) for energy_fn in energy_fns):
        return make(*energy_fns)
    return Along(lambda share: make(*(at_share(energy_fn, share) for energy_fn in energy_fns)))


def class_energies(apply: ApplyFn, params: Params, num_classes: int) -> Callable[[Images], Float[Array, "b k"]]:
    """The function from images to U(x, y) for every class y, [b, num_classes]: a classifier's negated logits."""

    def energies_of(images: Images) -> Float[Array, "b k"]:
        labels = jnp.tile(jnp.arange(num_classes, dtype=jnp.int32)[:, None], len(images))
        return jax.lax.map(lambda labels: apply(params, images, labels), labels).T

    return energies_of


def guided(apply: ApplyFn, unlabelled: Callable[[Labels], Labels], weight: float) -> ApplyFn:
    """`apply` with the energy U(x, y) + w (U(x, y) - U(x)): classifier-free guidance (Ho & Salimans 2022) as an energy.

    Its law is q(x | y) (q(x | y) / q(x))^w, so w > 0 prefers images whose class is plain. Without labels it is U(x).

    Args:
      unlabelled: labels -> as many labels under which `apply` gives U(x).
      weight: w >= 0.
    """

    def of(
        params: Params, images: Images, labels: Labels | None = None, dropout_key: PRNGKey | None = None
    ) -> Energies:
        if labels is None:
            return apply(params, images, labels, dropout_key=dropout_key)
        both = jnp.concatenate([images, images]), jnp.concatenate([labels, unlabelled(labels)])
        energies, n = apply(params, *both, dropout_key=dropout_key), images.shape[0]  # which an export leaves open
        return energies[:n] + weight * (energies[:n] - energies[n:])

    return of


def within(inside: Callable[[float | Scalar], Any], energy_fn: EnergyFn, otherwise: EnergyFn) -> EnergyFn:
    """The energy that is `energy_fn` where `inside` holds of the share of data along a descent, else `otherwise`.

    Only the one that holds is computed.
    """
    return Along(lambda share: lambda images: jax.lax.cond(inside(share), energy_fn, otherwise, images))


class Stacked(NamedTuple):
    """The parameters of several networks of one architecture; all that takes parameters treats them as an ensemble."""

    params: Params
    """One network's tree, with every leaf [members, ...]."""


def stack(members: Sequence[Params]) -> Stacked:
    """The parameters of several networks of one architecture, stacked: an ensemble for all that takes parameters.

    Args:
      members: nested dicts of float32 arrays, one for each network, 1 or more.

    Returns:
      Their arrays as float32 [members, ...].

    Raises:
      BadInput: there are none, or two differ in architecture.

    Examples:
      >>> import jax, ebm_jax
      >>> config, params = ebm_jax.load("two_moons")
      >>> pair = ebm_jax.stack([params, params])
      >>> {leaf.shape[0] for leaf in jax.tree.leaves(pair)}
      {2}
      >>> points = jax.random.uniform(jax.random.key(0), (5, 2))
      >>> ebm_jax.make_energy_fn(config)(pair, points).shape  # the mean of both energies
      (5,)
    """
    if not members:
        raise BadInput("an ensemble of 0 members has no energy; give at least one")
    shapes = [_shapes(member) for member in members]
    for index, other in enumerate(shapes):
        for name in sorted(shapes[0].keys() | other.keys()):
            if shapes[0].get(name) != other.get(name):
                there, here = other.get(name, "absent"), shapes[0].get(name, "absent")
                raise BadInput(
                    f"member {index} of the ensemble has another architecture than member 0: {name} is {there} there "
                    f"and {here} in member 0; use runs of one model config"
                )
    return Stacked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def num_members(params: Params) -> int | None:
    """The number of members of stacked parameters; None for a single network's."""
    return len(jax.tree.leaves(params)[0]) if isinstance(params, Stacked) else None


def member(params: Stacked, index: int | Array) -> Params:
    """The parameters of one member."""
    return jax.tree.map(lambda leaf: leaf[index], params.params)


def members(params: Params) -> list[Params]:
    """The parameters of each member; a list of one for a single network."""
    if not isinstance(params, Stacked):
        return [params]
    return [member(params, index) for index in range(num_members(params) or 0)]


def of_members(apply: ApplyFn) -> ApplyFn:
    """`apply` that also accepts stacked parameters: it then gives the mean of the members' energies, [b]."""

    def mean(
        params: Params, images: Images, labels: Labels | None = None, dropout_key: PRNGKey | None = None
    ) -> Energies:
        if not isinstance(params, Stacked):
            return apply(params, images, labels, dropout_key=dropout_key)
        return over_members(lambda one: apply(one, images, labels, dropout_key=dropout_key), params.params).mean(0)

    return mean
