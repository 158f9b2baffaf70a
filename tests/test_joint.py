"""A joint model of images and classes: its loss in closed form, and classes of Gaussians, where the truth is known."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import changed
from scipy import special
from test_step import BATCH, SHAPE, STILL, contrastive_divergence, over_devices

from configs import digits_contrastive, digits_joint
from ebm_jax import assemble, checks, labels
from ebm_jax.distributed import parallel
from ebm_jax.methods.joint import joint
from ebm_jax.methods.method import Model
from ebm_jax.models import energy, networks
from ebm_jax.sampling.base import uniform
from ebm_jax.sampling.kernel import unit_box
from ebm_jax.sampling.mala import mala
from ebm_jax.types import BadInput, Batch

CLASSES = 3


def logsumexp(logs, axis=None, keepdims=False):
    return np.asarray(special.logsumexp(logs, axis=axis, keepdims=keepdims))


def unlabelled(labels):
    return jnp.full_like(labels, CLASSES)


def classifier(logits):
    """The energies of a classifier."""

    def apply(params, images, labels=None, dropout_key=None):
        found = logits(params, images)
        every = jnp.concatenate([-found, -jax.nn.logsumexp(found, axis=1, keepdims=True)], 1)
        labels = unlabelled(jnp.zeros(len(images), jnp.int32)) if labels is None else labels
        return jnp.take_along_axis(every, labels[:, None], 1)[:, 0]

    return apply


def linear(params, images):
    return images.reshape(len(images), -1) @ params["w"]


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_is_that_of_the_marginal_and_the_cross_entropy_and_at_weight_1_of_the_joint(weight):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(BATCH, *SHAPE)), jnp.float32)
    batch = Batch(images, jnp.arange(BATCH, dtype=jnp.int32) % CLASSES)
    params = {"w": jax.random.normal(jax.random.key(1), (int(np.prod(SHAPE)), CLASSES))}
    method = joint(contrastive_divergence(STILL, energy_l2=0.0), unlabelled, class_weight=weight)
    memory = method.init(jax.random.key(7))
    value, (after, metrics) = method.loss(jax.random.key(5), Model(classifier(linear), params), batch, memory)

    logits = np.asarray(images, np.float64).reshape(BATCH, -1) @ np.asarray(params["w"], np.float64)
    of_data, of_class = logsumexp(logits, axis=1), logits[np.arange(BATCH), batch.labels]
    still = np.asarray(memory.images[:, : int(np.prod(SHAPE))], np.float64) @ np.asarray(params["w"], np.float64)
    of_chains = logsumexp(still, axis=1)
    np.testing.assert_allclose(metrics["class_loss"], (of_data - of_class).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["class_probability"], np.exp(of_class - of_data).mean(), rtol=1e-5)
    expected = of_chains.mean() - of_data.mean() + weight * (of_data - of_class).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    assert (after.labels[after.visits > 0] == CLASSES).all(), "chains run under no class"
    if weight == 1.0:
        np.testing.assert_allclose(value, of_chains.mean() - of_class.mean(), rtol=1e-4, atol=1e-5)


MEANS, PRIORS, STD = np.array([0.25, 0.45, 0.8]), np.array([0.5, 0.2, 0.3]), 0.08
SIDE = np.linspace(0.0, 1.0, 401)


def quadratic(params, images):
    """f_y = a_y - exp(k) (x - m_y)²: of the right coefficients log q(x, y)."""
    away = images.reshape(len(images), 1) - params["means"][None]
    return params["a"][None] - jnp.exp(params["log_sharpness"]) * jnp.square(away)


@pytest.mark.whole
def test_classes_of_gaussians_get_their_bayes_posterior_and_the_mixture_its_density():
    chains = contrastive_divergence(
        mala(1e-3, project=unit_box), 20, energy_l2=0.0, base=uniform((1,)), capacity=512, restart_prob=0.05
    )
    method = joint(chains, unlabelled, class_weight=1.0)
    start = {"a": jnp.zeros(CLASSES), "means": jnp.full(CLASSES, 0.5), "log_sharpness": jnp.log(10.0)}
    mesh, step, state = over_devices(
        method, optax.adam(0.05), method.init(jax.random.key(0)), apply=classifier(quadratic), params=start,
        ema_decay=0.98,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(600):
        classes = rng.choice(CLASSES, 256, p=PRIORS)
        x = (MEANS[classes] + STD * rng.normal(size=256)).astype(np.float32)[:, None]
        state, _ = step(state, parallel.place_batch(mesh, Batch(x, classes.astype(np.int32))))
    found = np.asarray(quadratic(jax.device_get(state.ema), jnp.asarray(SIDE[:, None], jnp.float32)), np.float64)
    truth = np.log(PRIORS) - np.square(SIDE[:, None] - MEANS) / (2 * STD**2)
    posterior, expected = (np.exp(logs - logsumexp(logs, axis=1, keepdims=True)) for logs in (found, truth))
    densities = [np.exp(logsumexp(logs, axis=1) - logsumexp(logs)) for logs in (found, truth)]
    weighted = (np.abs(posterior - expected).max(1) * densities[1]).sum()
    assert weighted < 0.05
    assert 0.5 * np.abs(densities[0] - densities[1]).sum() < 0.08, "total variation"


LABELS = jnp.array([2, 0, 1, 1])
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)), jnp.float32)


@pytest.mark.parametrize("name", ["small", "mnist"])
def test_a_networks_energies_are_minus_its_logits_and_that_of_no_class_is_minus_their_log_sum_exp(name):
    make = networks.NETWORKS[name]
    network = make(width=4, num_classes=CLASSES, spectral_norm=False, logits=True)
    params = network.init(jax.random.key(0), IMAGES, LABELS)["params"]
    apply = energy.from_module(network)
    every = np.asarray(energy.class_energies(apply, params, CLASSES)(IMAGES), np.float64)
    assert np.ptp(every, axis=1).min() > 1e-3, "classes differ"
    np.testing.assert_allclose(apply(params, IMAGES, LABELS), every[np.arange(4), LABELS], rtol=1e-6)
    for of_none in (None, network.unlabelled(LABELS)):
        np.testing.assert_allclose(apply(params, IMAGES, of_none), -logsumexp(-every, axis=1), rtol=1e-5)
    assert params["head"]["kernel"].shape[1] == CLASSES
    tables = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "table" in str(path)]
    assert all(table.shape[0] == 1 for table in tables), "only the last layer knows classes"


def test_without_logits_a_network_has_no_energy_of_no_class():
    assert networks.SmallNet(width=4, num_classes=CLASSES, spectral_norm=False).unlabelled is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.logits": False}, "method.name joint needs a classifier of several classes; use model.logits=True"),
        ({"model.num_classes": 1}, "model.logits True needs classes: model.num_classes is 1"),
        ({"model.name": "unet"}, "model.logits True does not go with model.name unet"),
        ({"data.condition": "soft", "data.source": "noise"}, "model.logits True needs classes"),
    ],
)
def test_what_has_no_logits_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        checks.check(changed(digits_joint.get_config(), **changes), 1)


class Unclassified:
    """A network of a user's own without an energy of no class."""

    def init(self, key, images, labels):
        return {"w": jax.random.normal(key, (10,))}

    def apply(self, params, images, labels):
        return params["w"][labels] * images.mean((1, 2, 3))


def test_a_network_of_ones_own_without_an_energy_of_no_class_is_refused():
    config = changed(digits_joint.get_config(), **{"model.name": f"{__name__}:Unclassified", "model.logits": False})
    with pytest.raises(BadInput, match="has no logits"):
        assemble.make_method(config)


def test_chains_of_no_class_have_a_caption_of_their_own():
    config = changed(digits_contrastive.get_config(), **{"model.num_classes": 2})
    assert labels.names_of(config, np.array([1, 0, 2]), ["cat", "dog"]) == ["dog", "cat", "of no class"]


def test_a_factory_that_passes_all_keywords_on_gets_logits_only_where_the_config_has_them():
    seen = []

    def factory(**keywords):
        seen.append(keywords.get("logits", "none"))
        return networks.SmallNet(**keywords)

    for logits in (False, True):
        config = changed(digits_joint.get_config(), **{"model.logits": logits})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cast(dict, networks.NETWORKS), "small", factory)
            assemble.make_network(config)
    assert seen == ["none", True]
