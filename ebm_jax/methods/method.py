"""A method: two pure functions, the law that its chains start from, and the region where it is healthy."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from ebm_jax.distributed.parallel import REPLICATED
from ebm_jax.models import energy
from ebm_jax.random import dequantise
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.replay import ReplayBuffer
from ebm_jax.types import BadInput, Batch, Energies, EnergyFn, Images, Labels, Metrics, Params, PRNGKey, Scalar

Memory = Any
"""What a method keeps from step to step: a tree of arrays, a part of the training state."""
STAGE = "stage"


class Model(NamedTuple):
    """The network as a method sees it. Gradients flow into `params` unless the model is frozen."""

    apply: energy.ApplyFn
    params: Params
    """After spectral normalisation."""
    of_chains: Params | None = None
    """The parameters that chains follow; None: `params`."""

    def energy(self, labels: Labels | None = None, dropout_key: PRNGKey | None = None) -> EnergyFn:
        """The energy of images, with one label an image if given; dropout acts only if there is a key."""
        return energy.bind(self.apply, self.params, labels, dropout_key)

    def frozen(self) -> "Model":
        """The same network; its parameters get no gradient."""
        return self._replace(params=lax.stop_gradient(self.params))

    def followed(self) -> "Model":
        """The network that chains follow, frozen."""
        return Model(self.apply, self.params if self.of_chains is None else self.of_chains).frozen()


class Range(NamedTuple):
    """The range of one metric in a healthy run; inf means no limit."""

    metric: str
    least: float
    most: float
    ahead: int = 0
    """Also judge where the metric's trend leads in this many steps; the trend is a mean over about as many steps."""
    given: tuple[tuple[str, float], ...] = ()
    """(metric, value): judge only steps in which these metrics have these values."""
    followed: tuple[float, float] = (-math.inf, math.inf)
    """The trend is that of the metric clipped to this interval: changes outside it lead nowhere."""
    of_untrained: float = 0.0
    """The range reaches at least this many times the untrained network's largest |mean U|, on both sides."""


class Limits(NamedTuple):
    """The healthy region. A value that is not finite is outside every region."""

    ranges: tuple[Range, ...] = ()
    patience: int = 1
    """A run is ill once so many of the last `window` steps were outside the region."""
    window: int = 1
    """At least `patience`; a smaller one counts as `patience`: steps in a row."""
    at_once: float = math.inf
    """A run is ill at once if a value lies further than this many times its limit."""


def no_memory(key: PRNGKey) -> Memory:
    """The memory of a method that keeps nothing."""
    del key
    return ()


def replicated(rows: Any) -> Any:
    """The spec of a memory that lies on every device as a copy."""
    del rows
    return REPLICATED


def keep_memory(key: PRNGKey, model: "Model", batch: Batch, memory: Memory) -> Memory:
    """What a method does at its first step that needs no network to begin: nothing."""
    del key, model, batch
    return memory


def no_chains(memory: Memory) -> ReplayBuffer | None:
    """The chains of a method that has none: None."""
    del memory


def nothing_derived(metrics: Metrics) -> Metrics:
    """The derived metrics of a method that has none: {}."""
    del metrics
    return {}


class Keys(NamedTuple):
    """The random streams of a step that compares energies; a key is used once."""

    data: PRNGKey
    draw: PRNGKey
    chain: PRNGKey
    dropout: PRNGKey
    store: PRNGKey
    wrong: PRNGKey


class Asked(NamedTuple):
    """The energies that a comparison asks for, and the loss that it makes of them."""

    pairs: tuple[tuple[Images, Labels], ...]
    loss: Callable[..., tuple[Scalar, Metrics]]
    """The energies [b] of each pair -> (loss, metrics)"""
    memory: Memory
    """The memory for the next step."""
    metrics: Metrics
    """The metrics that need no energies."""
    beside: Callable[[Model], tuple[Scalar, Metrics]] | None = None
    """A term of the loss that needs more of the network than these energies, and its metrics: of the live model."""


class Comparison(NamedTuple):
    """A method that only compares energies of images. Several comparisons share one call of the network."""

    ask: Callable[[Keys, Model, Batch, Memory], Asked]
    """(keys, frozen model, batch of float images, memory) -> Asked"""
    streams: tuple[str, ...]
    """The names of the keys that it uses; `data` and `dropout` are the caller's."""


class Method(NamedTuple):
    """A way to learn an energy, with its hyper-parameters bound by a factory.

    A method runs on each device, on the device's share of the batch and of the memory. Losses and metrics are means
    over that share; the training step takes the mean over the devices.
    """

    init: Callable[[PRNGKey], Memory]
    """The memory before the first step."""
    loss: Callable[[PRNGKey, Model, Batch, Memory], tuple[Scalar, tuple[Memory, Metrics]]]
    """(key, model, batch, memory) -> (loss, (memory, metrics)); the step takes the gradient in the model's params."""
    base: Base
    """The law that chains start from, in training and in sampling."""
    limits: Limits
    partition: Callable[[Any], Any] = replicated
    """The spec of rows over devices -> the memory's specs, as a prefix of its tree."""
    chains: Callable[[Memory], ReplayBuffer | None] = no_chains
    """The negatives that wait in the memory, for pictures and evaluation."""
    derived: Callable[[Metrics], Metrics] = nothing_derived
    """More metrics, computed from the others' means over all devices."""
    comparison: Comparison | None = None
    """The comparison that `loss` answers, if the method only compares energies."""
    begin: Callable[[PRNGKey, Model, Batch, Memory], Memory] = keep_memory
    """(key, frozen model, batch, memory) -> the memory for the method's first step after another method's steps."""


def answered(
    comparison: Comparison,
) -> Callable[[PRNGKey, Model, Batch, Memory], tuple[Scalar, tuple[Memory, Metrics]]]:
    """The `loss` of a comparison: one call of the network, under one dropout mask, gives all energies.

    It computes a pair once if the comparison asks for the same two arrays twice.
    """

    def loss(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> tuple[Scalar, tuple[Memory, Metrics]]:
        return _value(*_asked(comparison, key, model.followed(), batch, memory), model)

    return loss


def prepared(
    method: Method, key: PRNGKey, model: Model, batch: Batch, memory: Memory
) -> Callable[[Model], tuple[Scalar, tuple[Memory, Metrics]]]:
    """The loss as a function of the model alone, to be asked several times: chains have followed `model` already.

    A method that is no comparison runs its chains each time, but under the weights of `model` too.
    """
    frozen = model.frozen()
    if method.comparison is None:
        return lambda live: method.loss(jax.random.clone(key), live._replace(of_chains=frozen.params), batch, memory)
    asked = _asked(method.comparison, key, frozen, batch, memory)
    return lambda live: _value(*asked, live)


def _asked(comparison: Comparison, key: PRNGKey, frozen: Model, batch: Batch, memory: Memory) -> tuple[Asked, PRNGKey]:
    """What the comparison asks for, and the key of the dropout mask."""
    keys = Keys(*jax.random.split(key, len(Keys._fields)))
    batch = batch._replace(images=dequantise(keys.data, batch.images))
    return comparison.ask(keys, frozen, batch, memory), keys.dropout


def _value(asked: Asked, dropout_key: PRNGKey, model: Model) -> tuple[Scalar, tuple[Memory, Metrics]]:
    """The loss, the memory for the next step, and the metrics."""
    distinct = {_identity(pair): pair for pair in asked.pairs}
    images, labels = zip(*distinct.values(), strict=True)
    energy_fn = model.energy(jnp.concatenate(labels), jax.random.clone(dropout_key))
    together = energy_fn(jnp.concatenate(images))
    ends = np.cumsum([len(part) for part in images])[:-1]
    energies: dict[Any, Energies] = dict(zip(distinct, jnp.split(together, ends), strict=True))
    value, metrics = asked.loss(*(energies[_identity(pair)] for pair in asked.pairs))
    if asked.beside is not None:
        more, of_more = asked.beside(model)
        value, metrics = value + more, _union(metrics, of_more)
    return value, (asked.memory, _union(asked.metrics, metrics))


def _identity(pair: tuple[Images, Labels]) -> tuple[int, int]:
    images, labels = pair
    return id(images), id(labels)


def weighted_sum(terms: Sequence[tuple[float, Method]]) -> Method:
    """The method that minimises Σ weight · loss; its memory is the tuple of all memories.

    If all terms are comparisons with different random streams, they share one call of the network, the noise and the
    dropout mask. Otherwise terms run one after another, each with its own key. The first term gives the base that
    chains start from, and how patient the guard is.

    Raises:
      BadInput: its loss raises it if two terms report different metrics under one name.
    """
    weights, methods = zip(*terms, strict=True)
    with_memory = [method for method in methods if method.init is not no_memory]

    def init(key: PRNGKey) -> Memory:
        # The only term with a memory gets the key as it is, so that other terms do not change that memory
        keys = iter([key] if len(with_memory) == 1 else jax.random.split(key, max(len(with_memory), 1)))
        return tuple(() if method.init is no_memory else method.init(next(keys)) for method in methods)

    def separately(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> tuple[Scalar, tuple[Memory, Metrics]]:
        each = zip(methods, jax.random.split(key, len(methods)), memory, strict=True)
        runs = [method.loss(own_key, model, batch, own_memory) for method, own_key, own_memory in each]
        values, kept = zip(*runs, strict=True)
        memories, metrics = zip(*kept, strict=True)
        return _total(weights, values), (memories, functools.reduce(_union, metrics))

    comparison = _sum_of_comparisons(weights, methods)
    return Method(
        init,
        separately if comparison is None else answered(comparison),
        methods[0].base,
        methods[0].limits._replace(ranges=tuple(one for method in methods for one in method.limits.ranges)),
        lambda rows: tuple(method.partition(rows) for method in methods),
        lambda memories: _first(method.chains(one) for method, one in zip(methods, memories, strict=True)),
        lambda metrics: _all_derived(methods, metrics),
        comparison,
        _begin_together(methods),
    )


def _begin_together(methods: Sequence[Method]) -> Callable[[PRNGKey, Model, Batch, Memory], Memory]:
    """The `begin` of a sum of methods."""
    if all(method.begin is keep_memory for method in methods):
        return keep_memory

    def begin(key: PRNGKey, model: Model, batch: Batch, memories: Memory) -> Memory:
        each = zip(methods, jax.random.split(key, len(methods)), memories, strict=True)
        return tuple(method.begin(own_key, model, batch, memory) for method, own_key, memory in each)

    return begin


def _sum_of_comparisons(weights: Sequence[float], methods: Sequence[Method]) -> Comparison | None:
    """The weighted sum as one comparison; None if a term is none, or if two terms use the same stream."""
    parts = [method.comparison for method in methods if method.comparison is not None]
    streams = tuple(name for part in parts for name in part.streams)
    if len(parts) < len(methods) or len(set(streams)) < len(streams):
        return None

    def ask(keys: Keys, model: Model, batch: Batch, memory: Memory) -> Asked:
        asked = [part.ask(keys, model, batch, one) for part, one in zip(parts, memory, strict=True)]

        def loss(*energies: Energies) -> tuple[Scalar, Metrics]:
            left = iter(energies)
            found = [one.loss(*(next(left) for _ in one.pairs)) for one in asked]
            values, metrics = zip(*found, strict=True)
            return _total(weights, values), functools.reduce(_union, metrics)

        def beside(model: Model) -> tuple[Scalar, Metrics]:
            found = [(weight, *one.beside(model)) for weight, one in zip(weights, asked, strict=True) if one.beside]
            of_each, values, metrics = zip(*found, strict=True)
            return _total(of_each, values), functools.reduce(_union, metrics)

        pairs = tuple(pair for one in asked for pair in one.pairs)
        metrics = functools.reduce(_union, (one.metrics for one in asked))
        more = beside if any(one.beside for one in asked) else None
        return Asked(pairs, loss, tuple(one.memory for one in asked), metrics, more)

    return Comparison(ask, streams)


def _total(weights: Sequence[float], values: Sequence[Scalar]) -> Scalar:
    return functools.reduce(jnp.add, (weight * value for weight, value in zip(weights, values, strict=True)))


def idle(base: Base) -> Method:
    """The method that learns nothing: the first stage of a method that joins others later."""

    def loss(key: PRNGKey, model: Model, batch: Batch, memory: Memory) -> tuple[Scalar, tuple[Memory, Metrics]]:
        del key, model
        return jnp.zeros_like(batch.labels.reshape(-1)[0], jnp.float32), (memory, {})

    return Method(no_memory, loss, base, Limits())


class Staged(NamedTuple):
    """The memory of `staged`."""

    step: Int[Array, ""]
    """Steps done by either method."""
    first: Memory
    then: Memory


def staged(first: Method, steps: int, then: Method, name: str = STAGE, stage: int | None = None) -> Method:
    """`first` for `steps` steps, and `then` ever after; both memories stay, and `then` begins its own anew.

    A step computes only one of the two methods; a vmapped program of several models computes both. The metric `name` is
    0 while `first` runs and 1 while `then` runs. A metric that one method lacks is 0 in this method's steps, and the
    guard judges it only in the other's. Sampling starts its chains from the base of `then`.

    Args:
      name: the metric's; methods staged inside one another need different names.
      stage: None: each step finds out which of the two it is of. 0 or 1: the loss is that of the first or the second,
        and the program of a step has nothing of the other; the caller sees to it that it is at such a step.

    Raises:
      BadInput: its loss raises it if one of the two methods already has a metric of this name.
    """
    methods = (first, then)

    def init(key: PRNGKey) -> Memory:
        key_first, key_then = jax.random.split(key)
        return Staged(jnp.zeros((), jnp.int32), first.init(key_first), then.init(key_then))

    def begun(key: PRNGKey, model: Model, batch: Batch, memory: Staged) -> Memory:
        return lax.cond(
            memory.step == steps,
            lambda: then.begin(key, model.followed(), batch, memory.then),
            lambda: memory.then,
        )

    def loss(key: PRNGKey, model: Model, batch: Batch, memory: Staged) -> tuple[Scalar, tuple[Memory, Metrics]]:
        def run_first() -> tuple[Scalar, tuple[Memory, Metrics]]:
            value, (kept, metrics) = first.loss(key, model, batch, memory.first)
            return value, (memory._replace(first=kept), metrics)

        def run_then() -> tuple[Scalar, tuple[Memory, Metrics]]:
            kept, key_loss = memory.then, key
            if then.begin is not keep_memory:
                key_begin, key_loss = jax.random.split(key)
                kept = begun(key_begin, model, batch, memory)
            value, (kept, metrics) = then.loss(key_loss, model, batch, kept)
            return value, (memory._replace(then=kept), metrics)

        runs = (run_first, run_then)
        names = sorted({name for run in runs for name in jax.eval_shape(run)[1][1]})
        if name in names:
            raise BadInput(f"a staged method already has a metric '{name}'; give staged(..., name=...) another one")

        def alike(run: Callable, stage: float) -> Callable:
            def branch() -> tuple[Scalar, tuple[Memory, Metrics]]:
                value, (kept, found) = run()
                zero = jnp.zeros_like(value)  # makes every metric vary over devices as the loss does
                metrics = {name: zero + found.get(name, 0.0) for name in names}
                return value, (kept, metrics | {name: zero + stage})

            return branch

        branches = alike(run_first, 0.0), alike(run_then, 1.0)
        value, (kept, metrics) = lax.cond(memory.step < steps, *branches) if stage is None else branches[stage]()
        return value, (kept._replace(step=memory.step + 1), metrics)

    def limited(method: Method, stage: float) -> tuple[Range, ...]:
        return tuple(one._replace(given=((name, stage), *one.given)) for one in method.limits.ranges)

    return Method(
        init,
        loss,
        then.base,
        then.limits._replace(ranges=limited(first, 0.0) + limited(then, 1.0)),
        lambda rows: Staged(REPLICATED, first.partition(rows), then.partition(rows)),
        lambda memory: _first(one for one in (then.chains(memory.then), first.chains(memory.first))),
        lambda metrics: _all_derived(methods, metrics),
    )


def _first(found: Any) -> Any:
    """The first that is not None; None where there is none."""
    return next((one for one in found if one is not None), None)


def _all_derived(methods: Sequence[Method], metrics: Metrics) -> Metrics:
    return functools.reduce(lambda found, method: found | method.derived(metrics), methods, {})


def _union(some: Mapping[str, Array], more: Mapping[str, Array]) -> Metrics:
    """The metrics of both; one name stands for one value."""
    for name in sorted(some.keys() & more.keys()):
        if some[name] is not more[name]:
            raise BadInput(f"two terms of a weighted sum report a metric '{name}'; a sum needs one name for each")
    return {**some, **more}
