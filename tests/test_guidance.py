"""Guidance in a part of the descent from noise: energies that change along it, and the chains that follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

import ebm_jax
from configs import digits
from ebm_jax import assemble, chains, checks
from ebm_jax.evaluators.samples import fresh_origin
from ebm_jax.methods import matching
from ebm_jax.models import energy
from ebm_jax.report import style
from ebm_jax.sampling.descent import descent
from ebm_jax.sampling.kernel import along, run, run_stages, unbounded
from ebm_jax.types import Along, BadInput, at_share

SLOPE = Along(lambda share: lambda x: share * x.sum(tuple(range(1, x.ndim))))  # its gradient is the share everywhere
SMALL = {"model__width": 8, "model__num_classes": 3, "sample__descent_steps": 4, "sample__num_steps": 2}
SMALL |= {"sample__quiet_steps": 2, "method__then__after": 0, "model__dtype": "float32", "train__num_steps": 1_500}


def small(**changes):
    return checks.usable(changed(digits.get_config(), **SMALL | changes))


def taught(config):
    """Parameters that no longer are the first ones, of which every class has the same energy."""
    params = ebm_jax.init_params(config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params)


def test_a_kernel_along_shares_sees_the_energy_of_each_share():
    shares = jnp.array([0.0, 0.25, 0.5])
    kernel, start = along(descent(0.1, project=unbounded), shares), jnp.ones((2, 3))
    x, info = run(kernel, jax.random.key(0), start, SLOPE, 5)
    np.testing.assert_allclose(x, 1.0 - 0.1 * (0.0 + 0.25 + 0.5 + 0.5 + 0.5), rtol=1e-6)  # the last share stays
    np.testing.assert_allclose(info.grad_norm[:, 0], 3**0.5 * np.array([0.0, 0.25, 0.5, 0.5, 0.5]), rtol=1e-6)
    x, _ = run(kernel, jax.random.key(0), start, lambda x: x.sum(1), 5)
    np.testing.assert_allclose(x, 0.5, rtol=1e-6)  # another energy is the same at every share


OPERATIONS = {
    "conjunction": lambda fn, other: energy.conjunction(fn, other),
    "disjunction": lambda fn, other: energy.disjunction(other, fn, weights=[0.5, 2.0]),
    "weighted": lambda fn, other: energy.weighted(fn, 3.0),
    "negation": lambda fn, other: energy.negation(fn),
    "tempered": lambda fn, other: energy.tempered(fn, 0.5),
    "bridge": lambda fn, other: energy.bridge(other, fn, 0.25),
    "clamped": lambda fn, other: energy.clamped(fn, jnp.ones((2, 3)), jnp.eye(3, dtype=bool)[:2]),
    "product_of_classes": lambda fn, other: energy.product_of_classes([fn, fn], other),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_algebra_of_energies_holds_at_every_share(name):
    x, other = jnp.arange(6.0).reshape(2, 3), lambda x: jnp.square(x).sum(1)
    made = OPERATIONS[name](SLOPE, other)
    for share in (0.0, 0.3, 1.0):
        expected = OPERATIONS[name](lambda x, share=share: share * x.sum(1), other)(x)
        np.testing.assert_allclose(at_share(made, share)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(made(x), at_share(made, 1.0)(x))  # by itself the energy at the data


def shares_before(config, first, num_steps, step):
    """By the formula of docs/matching.md in plain Python: each step takes γ to γ + s c(γ), c = 4, falling above 0.8."""
    share, found = first, []
    for _ in range(num_steps):
        found.append(share)
        share = min(1.0, share + step * (4.0 if share < 0.8 else 4.0 * (1.0 - share) / 0.2))
    return np.array(found)


@pytest.mark.parametrize("kernel", ["langevin", "descent"])
def test_each_step_of_sampling_knows_the_share_that_it_starts_from(kernel):
    own = {"chain__kernel": "descent", "sample__descent_steps": 0, "sample__num_steps": 4, "sample__quiet_steps": 0}
    config = small(sample__guidance=1.0, sample__guidance_from=0.2, **(own if kernel == "descent" else {}))
    step = matching.step_between(0.0, 0.997, 4, flat_until=0.8, start=1.0, strength=4.0)
    x, _ = run_stages(chains.make_stages(config), jax.random.key(0), jnp.ones((2, 8, 8, 1)), SLOPE)
    after = 2 * config.chain.step_size if kernel == "langevin" else 0.0  # steps at the data, of the share 1
    np.testing.assert_allclose(x, 1.0 - 0.25 * step * shares_before(config, 0.0, 4, step).sum() - after, rtol=1e-5)


def test_quiet_steps_after_a_descent_are_one_loop_with_it_and_of_their_own_size():
    """Both by the recursion, for U = x² of each pixel: a look-ahead and a step of its own, then none and 0.001."""
    config = small(
        sample__guidance=0.0, sample__guidance_from=0.0, sample__last_share=0.9, chain__descent__look_ahead=0.3
    )
    stages = chains.make_stages(config)
    assert [num_steps for _, num_steps in stages] == [4 + 2, 1]  # the last stage ends in the box of pixels
    x, info = run_stages(stages, jax.random.key(0), jnp.ones((2, 8, 8, 1)), lambda x: jnp.square(x).sum((1, 2, 3)))
    step = 0.25 * matching.step_between(0.0, 0.9, 4, flat_until=0.8, start=1.0, strength=4.0)
    at, last, seen = 1.0, 0.0, []
    for size, ahead in [(step, 0.3)] * 4 + [(config.chain.step_size, 0.0)] * 2:
        last = 2 * (at - size * ahead * last)
        at -= size * last
        seen.append(8 * abs(last))
    np.testing.assert_allclose(x, at, rtol=1e-5)
    np.testing.assert_allclose(info.grad_norm[:6, 0], seen, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"sample__quiet_steps": 1},
        {"chain__grad_clip": 0.1},
        {"chain__descent__stop": 0.01},
        {"sample__descent_steps": 0},
    ],
)
def test_what_is_no_descent_to_the_end_keeps_its_own_stages(changes):
    config = small(**changes)
    stages = chains.make_stages(config)
    counts = [config.sample.descent_steps, config.sample.num_steps, 1]
    assert [num_steps for _, num_steps in stages] == [count for count in counts if count]


def test_a_measured_path_knows_its_shares_too():
    config = small(sample__guidance=1.0, sample__guidance_from=0.2, sample__correction=0.0)
    path = chains.make_path(config, 0.5)
    step = matching.step_between(0.0, 0.997, 4, flat_until=0.8, start=1.0, strength=4.0)
    x, _ = run_stages(path.stages_of(lambda share: unbounded), jax.random.key(0), jnp.ones((2, 8, 8, 1)), SLOPE)
    after = 2 * config.chain.step_size
    np.testing.assert_allclose(x, 1.0 - 0.25 * step * shares_before(config, 0.5, 4, step).sum() - after, rtol=1e-5)


@pytest.mark.whole
def test_guidance_holds_within_its_interval_alone():
    config = small(sample__guidance=0.7, sample__guidance_from=0.3, sample__guidance_until=0.6)
    params = taught(config)
    labels = jnp.array([0, 1, 2, 0])
    x = jax.random.uniform(jax.random.key(3), (4, 8, 8, 1))
    along_descent = assemble.make_chain_energy(config)(params, labels)
    plain, without = (ebm_jax.make_energy_fn(config)(params, x, of) for of in (labels, None))
    guided = plain + 0.7 * (plain - without)
    assert np.abs(guided - plain).min() > 1e-3
    for share, expected in ((0.0, plain), (0.29, plain), (0.3, guided), (0.59, guided), (0.6, plain), (1.0, plain)):
        np.testing.assert_allclose(jax.jit(at_share(along_descent, share))(x), expected, rtol=1e-4, atol=1e-4)
    everywhere = assemble.make_chain_energy(changed(config, sample__guidance_from=0.0, sample__guidance_until=1.0))
    np.testing.assert_allclose(everywhere(params, labels)(x), guided, rtol=1e-4, atol=1e-4)
    to_the_end = assemble.make_chain_energy(changed(config, sample__guidance_until=1.0))(params, labels)
    np.testing.assert_allclose(to_the_end(x), guided, rtol=1e-4, atol=1e-4)


@pytest.mark.whole
def test_samples_of_an_interval_differ_from_those_of_all_and_of_none():
    key = jax.random.key(2)
    images = {}
    for name, keys in {
        "none": {},
        "all": {"sample__guidance": 2.0},
        "part": {"sample__guidance": 2.0, "sample__guidance_from": 0.3, "sample__guidance_until": 0.6},
        "empty": {"sample__guidance": 2.0, "sample__guidance_from": 0.9985},  # beyond the last step's start
    }.items():
        config = small(**keys)
        params = taught(config)
        labels = jnp.array([0, 1, 2])
        images[name] = np.asarray(ebm_jax.make_sample_fn(config)(params, jax.random.clone(key), labels=labels))
    steps = {name: np.abs(found - images["none"]).max() for name, found in images.items()}
    assert steps["all"] > 1e-3
    assert steps["part"] > 1e-4
    assert np.abs(images["part"] - images["all"]).max() > 1e-3
    assert steps["empty"] > 0  # to the end: the two steps at the data


def test_an_empty_interval_is_refused():
    with pytest.raises(
        BadInput, match=r"^sample.guidance_from 0.5 is not below sample.guidance_until 0.5; use 0 and 1"
    ):
        small(sample__guidance=1.0, sample__guidance_from=0.5, sample__guidance_until=0.5)


def test_an_interval_needs_the_descent_of_a_matching():
    with pytest.raises(BadInput, match=r"^sample.guidance_from 0.2 and guidance_until 1.0 need descent from noise"):
        small(method__name="contrastive", sample__guidance_from=0.2)


def test_the_protocol_and_the_pictures_of_samples_name_the_interval():
    part = {"sample__guidance_from": 0.4, "sample__guidance_until": 0.8}
    assert fresh_origin(small(sample__guidance=2.0, **part)).endswith(
        ", with guidance 2 between the shares 0.4 and 0.8 of data"
    )
    assert fresh_origin(small(sample__guidance=2.0)).endswith(", with guidance 2")
    assert "guidance" not in fresh_origin(small(**part)) + style.steps(small(**part))
    assert style.steps(small(sample__guidance=2.0, **part)).endswith(
        " noise, with guidance 2 between the shares 0.4 and 0.8 of data"
    )
    own = {"chain__kernel": "descent", "sample__descent_steps": 0, "sample__num_steps": 4, "sample__quiet_steps": 0}
    assert style.steps(small(sample__guidance=2.0, **own)) == "4 steps of descent, with guidance 2"
