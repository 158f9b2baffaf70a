"""The algebra's laws, on Gaussians where every answer is known, and the ensembles on small networks."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equations
from scipy import stats

from ebm_jax.distributed import parallel
from ebm_jax.models import energy, networks
from ebm_jax.sampling.hmc import hmc, no_walls
from ebm_jax.sampling.kernel import energy_and_grad, run, unbounded
from ebm_jax.sampling.mala import mala
from ebm_jax.types import BadInput

FLOAT32 = float(np.finfo(np.float32).eps)
CHAINS = 20_000
POINTS = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)


def gaussian(mean, variance):
    """U of N(mean, variance) in each coordinate, with its constant left out."""
    return lambda x: 0.5 * (jnp.square(x - mean) / variance).sum(1)


def assert_same_up_to_a_constant(one, two, x=POINTS):
    difference = np.asarray(one(x), np.float64) - np.asarray(two(x), np.float64)
    scale = np.abs(np.asarray(one(x))).max() + np.abs(np.asarray(two(x))).max()
    assert np.ptp(difference) < 8 * scale * FLOAT32


def chains(kernel, energy_fn, num_steps, start=None):
    start = jnp.zeros((CHAINS, 1)) if start is None else start
    x, _ = jax.jit(lambda key: run(kernel, key, start, energy_fn, num_steps))(jax.random.key(0))
    return np.asarray(x, np.float64)


def assert_normal(values, mean, variance):
    """Mean and variance within five standard errors."""
    assert abs(values.mean() - mean) < 5 * np.sqrt(variance / values.size)
    assert abs(values.var() - variance) < 5 * variance * np.sqrt(2 / values.size)


def on_the_line(step_size, num_leaps):
    return hmc(step_size, num_leaps, project=unbounded, reflect=no_walls)


# Gaussians


def test_a_conjunction_of_gaussians_is_the_gaussian_of_added_precisions():
    means, variances = np.array([-1.0, 0.5, 2.0]), np.array([0.5, 1.0, 4.0])
    together = energy.conjunction(*(gaussian(m, v) for m, v in zip(means, variances, strict=True)))
    variance = 1 / (1 / variances).sum()
    mean = variance * (means / variances).sum()
    assert_same_up_to_a_constant(together, gaussian(mean, variance))
    assert_normal(chains(on_the_line(0.5, 2), together, 20), mean, variance)


def test_conjunction_commutes_and_associates():
    a, b, c = gaussian(-1.0, 0.5), gaussian(0.5, 1.0), gaussian(2.0, 4.0)
    both = energy.conjunction
    expected = both(a, b, c)(POINTS)
    for other in (both(c, a, b), both(both(a, b), c), both(a, both(b, c))):
        np.testing.assert_allclose(other(POINTS), expected, rtol=4 * FLOAT32)
    np.testing.assert_array_equal(both(a)(POINTS), a(POINTS))


@pytest.mark.parametrize("weights", [None, [0.2, 1.8], [0.0, 3.0]])
def test_a_disjunction_is_the_mixture_of_the_unnormalised_densities(weights):
    grid = np.linspace(-6, 6, 401)[:, None]
    factors = np.sqrt(2 * np.pi * np.array([0.25, 1.0]))  # from the densities of scipy to exp(-U)
    densities = np.stack([stats.norm(-2, 0.5).pdf(grid[:, 0]), stats.norm(2, 1).pdf(grid[:, 0])])
    expected = (np.array(weights or [1.0, 1.0]) * factors) @ densities
    either = energy.disjunction(gaussian(-2.0, 0.25), gaussian(2.0, 1.0), weights=weights)
    np.testing.assert_allclose(np.exp(-either(grid.astype(np.float32))), expected, rtol=1e-4, atol=1e-30)


def test_a_chain_of_a_disjunction_visits_its_modes_in_the_proportion_of_weight_and_normaliser():
    either = energy.disjunction(gaussian(-1.0, 0.25), gaussian(1.0, 0.36), weights=[1.0, 3.0])
    share = 3 * 0.6 / (3 * 0.6 + 1 * 0.5)
    mean = 2 * share - 1
    x = chains(on_the_line(0.7, 3), either, 60)
    variance = share * 0.36 + (1 - share) * 0.25 + 1 - mean**2
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / x.size)


def test_a_disjunction_of_large_energies_neither_overflows_nor_vanishes_and_has_its_gradient():
    x = jnp.array([[0.5]])
    for offset in (1e4, -1e4, 1e30):

        def large(mean, offset=offset):
            return lambda x: offset + jnp.square(x - mean).sum(1)

        either = energy.disjunction(large(0.5), large(0.5))
        np.testing.assert_allclose(either(x), offset - np.log(2), rtol=2 * FLOAT32)
        values, grads = energy_and_grad(energy.disjunction(large(0.0), large(3e3)), x)
        assert np.isfinite(values).all()
    np.testing.assert_allclose(grads, [[-2 * (3e3 - 0.5) / 2 + 0.5]], rtol=1e-6)  # at 1e30 both count equally
    one_sided = energy.disjunction(gaussian(0.0, 1e-6), gaussian(3.0, 1e-6))
    np.testing.assert_allclose(energy_and_grad(one_sided, jnp.array([[0.1]]))[1], [[1e5]], rtol=1e-5)


def test_weights_of_a_disjunction_may_be_traced_and_must_be_as_many_as_its_energies():
    a, b = gaussian(-1.0, 1.0), gaussian(1.0, 1.0)
    traced = jax.jit(lambda w: energy.disjunction(a, b, weights=[w, 1 - w])(POINTS))(0.25)
    np.testing.assert_allclose(traced, energy.disjunction(a, b, weights=[0.25, 0.75])(POINTS), rtol=1e-5)
    for weights in ([1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="zip"):
            energy.disjunction(a, b, weights=weights)


def test_negation_twice_is_identity_and_a_weighted_one_takes_precision_away():
    a, b = gaussian(0.5, 0.5), gaussian(0.0, 1.0)
    np.testing.assert_array_equal(energy.negation(energy.negation(a))(POINTS), a(POINTS))
    np.testing.assert_array_equal(energy.conjunction(a, energy.negation(a))(POINTS), 0.0)
    rest = energy.conjunction(a, energy.weighted(energy.negation(b), 0.4))
    precision = 1 / 0.5 - 0.4
    assert_same_up_to_a_constant(rest, gaussian(0.5 / 0.5 / precision, 1 / precision))


def test_tempering_multiplies_the_variance_and_weighting_divides_it():
    base = gaussian(0.3, 0.5)
    assert_same_up_to_a_constant(energy.tempered(base, 4.0), gaussian(0.3, 2.0))
    assert_same_up_to_a_constant(energy.weighted(base, 4.0), gaussian(0.3, 0.125))
    start = jnp.full((CHAINS, 1), 0.3)
    assert_normal(chains(on_the_line(1.0, 2), energy.tempered(base, 4.0), 20, start), 0.3, 2.0)


def test_a_clamped_gaussian_is_the_conditional_gaussian():
    mean, covariance = np.array([0.2, -0.4, 0.1]), np.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.5], [0.2, -0.5, 1.5]])
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)

    def joint(x):
        centred = x - jnp.asarray(mean, jnp.float32)[None]
        return 0.5 * ((centred @ precision) * centred).sum(1)

    images = jnp.tile(jnp.array([[9.0, 1.0, -1.0]]), (CHAINS, 1))  # the first value is free: its 9 must not matter
    known = jnp.tile(jnp.array([[False, True, True]]), (CHAINS, 1))
    gain = covariance[:1, 1:] @ np.linalg.inv(covariance[1:, 1:])
    conditional_mean = (mean[:1] + gain @ (np.array([1.0, -1.0]) - mean[1:]))[0]
    conditional_variance = (covariance[:1, :1] - gain @ covariance[1:, :1])[0, 0]
    clamped = energy.clamped(joint, images, known)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(CHAINS, 3)), jnp.float32)
    np.testing.assert_array_equal(clamped(x), clamped(x.at[:, 1:].add(7.0)))
    np.testing.assert_array_equal(energy_and_grad(clamped, x)[1][:, 1:], 0.0)
    first = gaussian(conditional_mean, conditional_variance)
    assert_same_up_to_a_constant(clamped, lambda x: first(x[:, :1]), x)
    free = chains(mala(0.5, project=unbounded), clamped, 40, jnp.zeros((CHAINS, 3)))[:, 0]
    assert_normal(free, conditional_mean, conditional_variance)


# Networks

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)), jnp.float32)
LABELS = jnp.array([2, 0, 1, 1])


@cache
def small(num_classes=3):
    network = networks.SmallNet(width=4, num_classes=num_classes, spectral_norm=False)
    shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES, LABELS)["params"]
    return energy.from_module(network), shapes


def members(number=3):
    """Parameters of different networks; no layer is zero."""
    _, shapes = small()
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) / 4, shapes)
        for _ in range(number)
    ]


def test_bound_energies_are_the_networks_own_under_each_images_label():
    apply, _ = small()
    (params,) = members(1)
    bound, other = (jax.jit(energy.bind(apply, params, labels))(IMAGES) for labels in (LABELS, LABELS[::-1]))
    np.testing.assert_allclose(bound, jax.jit(apply)(params, IMAGES, LABELS), rtol=1e-6)
    assert (np.asarray(bound)[:2] != np.asarray(other)[:2]).all()


def test_class_energies_are_the_energies_label_by_label():
    apply, _ = small()
    (params,) = members(1)
    actual = jax.jit(energy.class_energies(apply, params, 3))(IMAGES)
    assert actual.shape == (4, 3)
    jitted = jax.jit(apply)
    for label in range(3):
        expected = jitted(params, IMAGES, jnp.full(4, label))
        np.testing.assert_allclose(actual[:, label], expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(np.asarray(actual), axis=1).min() > 1e-3


def test_an_ensemble_has_the_mean_of_its_members_energies_and_gradients():
    apply, _ = small()
    several = members()
    together = energy.of_members(apply)
    stacked = energy.stack(several)

    @jax.jit
    def of(params):
        return energy_and_grad(energy.bind(together, params, LABELS), IMAGES)

    singles = [of(params) for params in several]
    for actual, parts in zip(of(stacked), zip(*singles, strict=True), strict=True):
        scale = np.abs(parts).max()
        np.testing.assert_allclose(actual, np.mean(parts, axis=0), rtol=0, atol=16 * scale * FLOAT32)
        assert np.ptp(np.asarray(parts), axis=0).max() > 1e-3 * scale
    for index, params in enumerate(several):
        jax.tree.map(np.testing.assert_array_equal, energy.member(stacked, index), params)
    assert energy.num_members(stacked) == 3
    assert energy.num_members(several[0]) is None


def test_an_ensemble_of_one_and_one_of_copies_are_the_model():
    apply, _ = small()
    (params,) = members(1)
    plain = jax.jit(lambda params: apply(params, IMAGES, LABELS))(params)
    together = jax.jit(lambda params: energy.of_members(apply)(params, IMAGES, LABELS))
    scale = np.abs(plain).max()
    np.testing.assert_allclose(together(params), plain, rtol=0, atol=2 * scale * FLOAT32)
    for copies in (1, 2):
        stacked = energy.stack([params] * copies)
        np.testing.assert_allclose(together(stacked), plain, rtol=0, atol=16 * scale * FLOAT32)


def params_of(**changes):
    leaves = {"dense/kernel": (3, 4), "dense/bias": (4,), "head/kernel": (4, 1)} | changes
    tree = {}
    for name, shape in leaves.items():
        layer, leaf = name.split("/")
        tree.setdefault(layer, {})[leaf] = jnp.zeros(shape)
    return tree


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense/kernel": (5, 4)}, r"member 1 .*: dense/kernel is \(5, 4\) there and \(3, 4\) in member 0"),
        ({"dense/kernel": (3, 6), "dense/bias": (6,)}, r"dense/bias is \(6,\) there and \(4,\) in member 0"),
        ({"extra/bias": (2,)}, r"extra/bias is \(2,\) there and absent in member 0"),
    ],
)
def test_members_of_other_architecture_are_refused_by_the_first_leaf_that_differs(changes, message):
    with pytest.raises(BadInput, match=message):
        energy.stack([params_of(), params_of(**changes)])


def test_a_missing_leaf_and_the_right_member_are_named():
    lacking = params_of()
    del lacking["dense"]["bias"]
    with pytest.raises(BadInput, match=r"member 2 .*: dense/bias is absent there and \(4,\) in member 0"):
        energy.stack([params_of(), params_of(), lacking])
    with pytest.raises(BadInput, match="0 members"):
        energy.stack([])


def test_members_taken_in_turns_and_at_once_give_what_vmap_gives():
    rng = np.random.default_rng(0)
    stacked = {"a": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32), "b": jnp.asarray(rng.normal(size=(3, 5)))}
    x = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)

    def fn(one, x, scale):
        return {"y": jnp.tanh(x @ one["a"] + one["b"][None]) * scale, "sum": one["b"].sum()}

    expected = jax.vmap(lambda one: fn(one, x, 2.0))(stacked)

    def close(actual):
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)

    close(jax.jit(lambda stacked, x: parallel.over_members(fn, stacked, x, 2.0))(stacked, x))
    traced = jax.make_jaxpr(lambda stacked, x: parallel.over_members(fn, stacked, x, 2.0))(stacked, x)
    (switch,) = (equation for equation in equations(traced.jaxpr) if equation.primitive.name == "cond")
    loops = []
    for branch in switch.params["branches"]:  # the branch that runs here, and the one for other platforms
        operands = [leaf for leaf in jax.tree.leaves((stacked, x, jnp.float32(2.0)))]
        outputs = jax.core.eval_jaxpr(branch.jaxpr, branch.consts, *operands)
        close(jax.tree.unflatten(jax.tree.structure(expected), outputs))
        loops.append(any(equation.primitive.name == "scan" for equation in equations(branch.jaxpr)))
    assert sorted(loops) == [False, True]


def test_a_disjunction_of_ensembles_is_differentiable_in_images_under_jit():
    apply, _ = small()
    stacked = energy.stack(members(2))
    ensemble = energy.bind(energy.of_members(apply), stacked, LABELS)
    either = energy.disjunction(ensemble, energy.tempered(ensemble, 2.0))
    values, grads = jax.jit(lambda x: energy_and_grad(either, x))(IMAGES)
    plain, plain_grads = jax.jit(lambda x: energy_and_grad(ensemble, x))(IMAGES)
    share = jax.nn.sigmoid(0.5 * plain - plain)  # the first energy's share, by Bayes
    np.testing.assert_allclose(values, -np.logaddexp(-plain, -0.5 * plain), rtol=1e-5)
    slope = np.asarray(share + (1 - share) * 0.5)[:, None, None, None]
    np.testing.assert_allclose(grads, slope * plain_grads, rtol=1e-4, atol=1e-5 * np.abs(plain_grads).max())


def test_a_product_of_classes_is_over_the_energy_of_no_class_and_keeps_the_sum_of_weights():
    parts = [lambda x, scale=scale: scale * jnp.square(x).sum(1) for scale in (1.0, 2.0, 4.0)]
    x = jnp.asarray([[1.0, 2.0], [0.5, 0.0]])
    found = energy.product_of_classes(parts, lambda x: 3.0 * jnp.square(x).sum(1))(x)
    np.testing.assert_allclose(found, (7.0 - 2 * 3.0) * np.square(x).sum(1), rtol=1e-6)
    np.testing.assert_allclose(energy.product_of_classes([parts[2]] * 3, parts[2])(x), parts[2](x), rtol=1e-6)
