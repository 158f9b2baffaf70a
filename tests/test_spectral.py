import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import few

from configs import digits_contrastive as digits
from ebm_jax import program, schema
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.models import networks, spectral
from ebm_jax.models.common import spectral_form
from ebm_jax.models.network import as_network
from ebm_jax.storage import checkpoint

FLOAT32 = float(np.finfo(np.float32).eps)
SHAPES = {
    "block": {"conv1": (3, 3, 4, 3), "conv2": (3, 3, 3, 4)},
    "dense": (12, 6),
    "head": (6, 1),
}
NAMES = {"block.conv1.kernel", "block.conv2.kernel", "dense.kernel"}
ROWS = 3 * 3 * 4  # the longest sum of a matrix product here, hence the number of roundings


def network_params(scale=1.0):
    """A tree with kernels, biases and a table, as the networks have them."""
    generator = np.random.default_rng(0)

    def layer(shape):
        kernel = generator.normal(size=shape) * scale
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(generator.normal(size=shape[-1]))}

    params = jax.tree.map(layer, SHAPES, is_leaf=lambda leaf: isinstance(leaf, tuple))
    params["block"]["gain2"] = {"table": jnp.asarray(generator.normal(size=(3, 4)), jnp.float32)}
    return params


def leaf(params, name):
    for key in name.split("."):
        params = params[key]
    return np.asarray(params, np.float64)


def matrix(kernel):
    return kernel.reshape(-1, kernel.shape[-1])


def largest_singular_value(kernel):
    return np.linalg.svd(matrix(kernel), compute_uv=False)[0]


def with_second_norm(params, norm):
    """The same tree, but the second convolution's largest singular value is `norm`."""
    kernel = leaf(params, "block.conv2.kernel")
    second = {"kernel": jnp.asarray(kernel * norm / largest_singular_value(kernel), jnp.float32)}
    return params | {"block": params["block"] | {"conv2": params["block"]["conv2"] | second}}


@jax.jit
def init(key, params):
    return spectral.init(key, params, spectral_form)


normalise = jax.jit(spectral.normalise)


@jax.jit
def converged(params):
    """The vectors after many power iterations."""
    start = init(jax.random.key(0), params)
    return jax.lax.fori_loop(0, 500, lambda _, vectors: spectral.power_iteration(params, vectors), start)


def test_every_kernel_but_the_heads_is_normalised():
    assert set(init(jax.random.key(0), network_params())) == NAMES


def test_largest_singular_value_becomes_one():
    params = with_second_norm(network_params(), 3.0)
    normalised = normalise(params, converged(params))
    for name in NAMES:
        assert abs(largest_singular_value(leaf(params, name)) - 1) > 0.1
        assert abs(largest_singular_value(leaf(normalised, name)) - 1) < ROWS * FLOAT32


def test_normalised_kernel_keeps_its_direction():
    params = network_params()
    normalised = normalise(params, converged(params))
    for name in NAMES:
        before, after = leaf(params, name).ravel(), leaf(normalised, name).ravel()
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        assert abs(cosine - 1) < ROWS * FLOAT32


@pytest.mark.parametrize(("norm", "expected"), [(0.3, 0.3), (0.99, 0.99), (1.01, 1.0), (3.0, 1.0)])
def test_second_convolution_is_shrunk_to_norm_one_and_never_enlarged(norm, expected):
    params = with_second_norm(network_params(), norm)
    before = leaf(params, "block.conv2.kernel")
    after = leaf(normalise(params, converged(params)), "block.conv2.kernel")
    np.testing.assert_allclose(after, before * expected / norm, rtol=ROWS * FLOAT32)


def test_head_biases_and_tables_are_untouched():
    params = network_params()
    normalised = normalise(params, converged(params))
    for name in ("head.kernel", "head.bias", "dense.bias", "block.conv2.bias", "block.gain2.table"):
        np.testing.assert_array_equal(leaf(normalised, name), leaf(params, name))


def test_the_form_of_a_kernel_is_no_part_of_a_checkpoint(tmp_path):
    """Vectors were plain tuples before their types told forms apart; they restore as today's types."""
    vectors = init(jax.random.key(0), network_params())
    plain = {name: tuple(pair) for name, pair in vectors.items()}
    assert type(vectors["block.conv2.kernel"]) is spectral.Bounded
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 1, {"spectral": plain})
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        found = checkpoint.restore_newest(manager, jax.eval_shape(lambda: {"spectral": vectors}))
    assert jax.tree.structure(found.state) == jax.tree.structure({"spectral": vectors})
    for restored, saved in zip(jax.tree.leaves(found.state), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(restored, saved)


def test_a_network_that_says_nothing_has_all_its_matrices_normalised_wherever_they_lie():
    params = {"a": {"w": jnp.full((3, 2), 2.0), "b": jnp.ones(3)}, "c": jnp.eye(4) * 5, "head": {"kernel": jnp.eye(2)}}
    vectors = spectral.init(jax.random.key(0), params, spectral.every_matrix)
    assert {name: type(pair) for name, pair in vectors.items()} == dict.fromkeys(("a.w", "c", "head.kernel"), tuple)
    seen = spectral.normalise(params, vectors)
    np.testing.assert_allclose(np.linalg.norm(seen["a"]["w"], 2), 1, rtol=1e-5)
    np.testing.assert_allclose(seen["c"], np.eye(4), atol=1e-5)  # every vector is a leading one
    np.testing.assert_array_equal(seen["a"]["b"], params["a"]["b"])


def test_one_call_is_one_power_iteration():
    params = network_params()
    rights = {name: np.random.default_rng(1).normal(size=leaf(params, name).shape[-1]) for name in NAMES}
    before = {name: (jnp.zeros(matrix(leaf(params, name)).shape[0]), jnp.float32(v)) for name, v in rights.items()}
    after = spectral.power_iteration(params, before)
    for name in NAMES:
        weights, right = matrix(leaf(params, name)), np.asarray(before[name][1], np.float64)
        left = weights @ right / np.linalg.norm(weights @ right)
        right = weights.T @ left / np.linalg.norm(weights.T @ left)
        for actual, expected, old in zip(after[name], (left, right), before[name], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=ROWS * FLOAT32)
            assert np.abs(expected - old).max() > 1e3 * FLOAT32  # not converged yet


def test_initial_vectors_are_of_length_one_and_leading_whatever_the_key():
    params = network_params()
    first, second = (init(jax.random.key(seed), params) for seed in (0, 1))
    for name in NAMES:
        np.testing.assert_allclose([np.linalg.norm(v) for v in first[name]], 1, rtol=ROWS * FLOAT32)
        left, _, right = np.linalg.svd(matrix(leaf(params, name)), full_matrices=False)
        for vectors in (first, second):
            np.testing.assert_allclose(np.abs([left[:, 0] @ vectors[name][0], right[0] @ vectors[name][1]]), 1, 1e-4)


OURS = [name for name in networks.NETWORKS if name not in networks.UNETS]  # which has no spectral normalisation


@pytest.mark.parametrize("name", few(OURS, ("small", "mlp", "mnist", "resnet32")))
def test_at_step_0_normalised_kernels_have_norm_one_and_bounded_ones_at_most_one(name):
    network = as_network(networks.NETWORKS[name](width=32, num_classes=2, spectral_norm=True))
    images = jax.ShapeDtypeStruct((1, *((2,) if name == "mlp" else (32, 32, 3))), jnp.float32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images, jnp.zeros(1, jnp.int32)))
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda like: jnp.asarray(generator.normal(size=like.shape), jnp.float32), shapes)
    vectors = spectral.init(jax.random.key(0), params, network.spectral_form)
    normalised = spectral.normalise(params, vectors)
    norms = {name: largest_singular_value(leaf(normalised, name)) for name in vectors}
    assert norms
    assert max(abs(norm - 1) for norm in norms.values()) < 1e-3


@partial(jax.jit, static_argnums=0)
def gradient_of_projection(argnum, params, vectors, weights):
    """Gradient of fixed weights times what the network sees, by the raw parameters (0) or by the vectors (1)."""

    def projection(params, vectors):
        return sum(map(jnp.vdot, jax.tree.leaves(spectral.normalise(params, vectors)), jax.tree.leaves(weights)))

    return jax.grad(projection, argnum)(params, vectors)


def other_params():
    return jax.tree.map(lambda leaf: jnp.asarray(np.sin(10 * leaf)), network_params())


def test_no_function_of_a_normalised_kernel_changes_along_the_kernel():
    params = with_second_norm(network_params(), 3.0)
    gradient = gradient_of_projection(0, params, converged(params), other_params())
    for name in NAMES:
        along, kernel = leaf(gradient, name).ravel(), leaf(params, name).ravel()
        scale = np.linalg.norm(along) * np.linalg.norm(kernel)
        assert scale > 0.1
        assert abs(along @ kernel) < kernel.size * FLOAT32 * scale


@pytest.mark.parametrize("second_norm", [0.3, 3.0])
@pytest.mark.parametrize("iterations", ["one", "many"])
def test_gradient_is_that_of_finite_differences_with_fixed_vectors(second_norm, iterations):
    params, direction = with_second_norm(network_params(), second_norm), other_params()
    vectors = init(jax.random.key(0), other_params() if iterations == "one" else params)
    if iterations == "one":
        vectors = spectral.power_iteration(params, vectors)
    gradient = gradient_of_projection(0, params, vectors, direction)
    for name in NAMES:
        left, right = (np.asarray(vector, np.float64) for vector in vectors[name])
        kernel, weights = leaf(params, name), leaf(direction, name)
        step = np.random.default_rng(1).normal(size=kernel.shape)

        def function(kernel, left=left, right=right, weights=weights, name=name):
            sigma = left @ matrix(kernel) @ right
            return (weights * kernel).sum() * (min(sigma, 1.0) if "conv2" in name else 1.0) / sigma

        h = 1e-5
        difference = (function(kernel + h * step) - function(kernel - h * step)) / (2 * h)
        actual = (leaf(gradient, name) * step).sum()
        scale = np.linalg.norm(leaf(gradient, name)) * np.linalg.norm(step)
        assert abs(actual - difference) < kernel.size * FLOAT32 * scale


def test_no_gradient_reaches_the_vectors():
    params = with_second_norm(network_params(), 3.0)
    gradient = gradient_of_projection(1, params, converged(params), other_params())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_without_vectors_parameters_come_back_as_they_are():
    params = network_params()
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(normalise(params, {})), strict=True):
        np.testing.assert_array_equal(after, before)


def test_kernels_of_the_releases_tiny_start_stay_themselves_and_pass_the_gradient_on():
    params, weights = network_params(scale=1e-10), other_params()
    vectors = converged(params)
    normalised = normalise(params, vectors)
    gradient = gradient_of_projection(0, params, vectors, weights)
    second = "block.conv2.kernel"
    np.testing.assert_allclose(leaf(normalised, second), leaf(params, second), rtol=ROWS * FLOAT32)
    size = np.abs(leaf(weights, second)).sum()
    np.testing.assert_allclose(leaf(gradient, second), leaf(weights, second), rtol=0, atol=FLOAT32 * size)
    for name in NAMES - {second}:
        assert abs(largest_singular_value(leaf(normalised, name)) - 1) < ROWS * FLOAT32
        assert np.isfinite(leaf(gradient, name)).all()


# In training


@pytest.fixture(scope="module")
def trained():
    """The digits' config, made tiny, with spectral normalisation, and its states after 0 to 4 steps on one device."""
    config, mesh = schema.dry_run(digits.get_config()).unlock(), parallel.device_mesh(jax.devices()[:1])
    config.model.width, config.model.spectral_norm, config.optim.ema_decay = 4, True, 0.9
    state, step, states = program.make_state(config, mesh), program.make_step(config.lock(), mesh), []
    with sources.open_batches(config, pytest.fail) as batches:
        for index in range(5):
            states.append(jax.device_get(state._replace(key=None)))
            state, _ = step(state, program.place_batch(config, mesh, batches(index)))
    return config, states


def test_a_training_step_iterates_the_vectors_of_its_state_and_stores_them_back(trained):
    _, states = trained
    for before, after in itertools.pairwise(states):
        for name, (left, right) in after.spectral.items():
            weights = matrix(leaf(before.params, name))
            expected = weights @ before.spectral[name][1]
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(left, expected, rtol=0, atol=1e-5)
            back = weights.T @ expected
            np.testing.assert_allclose(right, back / np.linalg.norm(back), rtol=0, atol=1e-5)


def by_hand(state, name):
    """A kernel of a state, normalised in NumPy."""
    weights, (left, right) = leaf(state.params, name), state.spectral[name]
    sigma = np.asarray(left, np.float64) @ matrix(weights) @ np.asarray(right, np.float64)
    return weights / (max(sigma, 1.0) if "conv2" in name else sigma)


def test_the_running_mean_is_that_of_the_normalised_kernels(trained):
    config, states = trained
    decay = config.optim.ema_decay
    for name in states[0].spectral:
        mean = by_hand(states[0], name)
        np.testing.assert_allclose(leaf(states[0].ema, name), mean, rtol=1e-5, atol=1e-9)
        for state in states[1:]:
            mean = decay * mean + (1 - decay) * by_hand(state, name)
            np.testing.assert_allclose(leaf(state.ema, name), mean, rtol=1e-5, atol=1e-6)
        assert np.abs(leaf(states[-1].ema, name) - leaf(states[0].ema, name)).max() > 0


def test_kernels_of_the_running_mean_have_at_most_norm_one(trained):
    _, states = trained
    for state in states:
        norms = [largest_singular_value(leaf(state.ema, name)) for name in state.spectral]
        assert max(norms) < 1 + 2e-3
        assert max(norms) > 0.9
