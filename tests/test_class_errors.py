"""Classes told apart by the errors of a matching: its formula, who uses it, and what it is worth on real digits."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed

import ebm_jax
from configs import digits, digits_contrastive, fashion_mnist_energy_matching
from ebm_jax import assemble
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import classification
from ebm_jax.methods import matching
from ebm_jax.sampling.base import BASES
from ebm_jax.trained import TrainedRun

MEANS = jnp.array([[0.1, 0.9], [0.4, 0.3], [0.8, 0.6]])  # each class is one image of two pixels


def length(share):
    return matching.decay(share, flat_until=0.8, start=1.0, strength=4.0)


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_the_error_of_a_wrong_class_is_its_distance_over_the_noise(share):
    """For a class of one image m the best field at x_γ is c(γ) (ε_m - m) / σ with the ε_m that leads there from m."""
    base = BASES["centred_normal"]((2,))
    way = 4.0 if share < 0.8 else 4.0 * (1.0 - share) / 0.2

    def energy_of(labels):
        means = MEANS[labels]

        def field(x):
            return way * ((x - share * means) / (1.0 - share) - means) / base.scale

        return lambda x: 0.5 * (1.0 - share) / way * jnp.square(field(x)).sum(1)  # its gradient is field / σ

    errors_of = matching.class_errors(base, energy_of, 3, length=length, draws=3, shares=(share,))
    found = jax.jit(errors_of)(jax.random.key(0), MEANS)
    gaps = np.asarray(MEANS)[:, None] - np.asarray(MEANS)
    expected = way**2 * np.square(gaps).sum(2) / (base.scale * (1.0 - share)) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.whole
def test_the_errors_are_the_training_loss_of_each_class():
    """The mean over draws of the summed errors, from the network's own energy by hand."""
    config = changed(digits.get_config(), model__width=8, model__num_classes=3, sample__class_draws=2)
    config = changed(config, model__dtype="float32")
    params = ebm_jax.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    x, key = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1)), jax.random.key(2)
    energy_fn = ebm_jax.make_energy_fn(config)
    found = jax.jit(assemble.make_class_energies(config, partial(energy_fn, params)))(key, x)
    expected = np.zeros((4, 3))
    keys = jax.random.split(jax.random.clone(key), 4)
    for share, key_noise in zip([0.25, 0.25, 0.4, 0.4], keys, strict=True):
        noise = 0.5 + 0.5 * jax.random.normal(key_noise, x.shape)
        for label in range(3):
            of_label = partial(energy_fn, params, labels=jnp.full(4, label))
            grad = jax.grad(lambda at, of_label=of_label: of_label(at).sum())(share * x + (1 - share) * noise)
            expected[:, label] += np.square(0.5 * grad - 4.0 * (noise - x) / 0.5).sum((1, 2, 3)) / 4
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(expected, 1).min() > 0.1  # the classes differ


@pytest.mark.parametrize(
    ("make", "by_matching"),
    [
        (digits.get_config, True),
        (fashion_mnist_energy_matching.get_config, True),
        (digits_contrastive.get_config, False),
        (lambda: changed(digits.get_config(), loss__label_weight=1.0), False),
        (lambda: changed(digits.get_config(), method__then__name="joint"), False),
    ],
)
def test_only_a_matching_that_never_compared_classes_is_compared_by_its_errors(make, by_matching):
    assert assemble.compared_by_matching(make()) is by_matching
    words = classification.logits_in_words(make())
    assert words.startswith("minus the error of the matching" if by_matching else "-U(x, y), ")


def test_energies_are_compared_as_they_are_where_training_compared_them():
    config = changed(digits.get_config(), loss__label_weight=1.0)
    values = jnp.array([[3.0, 1.0, 2.0]])
    config = changed(config, model__num_classes=3)
    found = assemble.make_class_energies(config, lambda images, labels: values[0, labels])(
        jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )
    np.testing.assert_array_equal(found, values)


@pytest.mark.optimised
def test_a_matching_knows_digits_that_its_energies_do_not():
    """The shipped energy of digits: a person reads all of them."""
    config, params = ebm_jax.load("digits")
    run = TrainedRun(config, params, parallel.device_mesh(jax.devices()[:1]), 7, Path("nowhere"), {})
    data = run.data("test")
    images, labels = data.images[:100], data.labels[:100]
    accuracy = {}
    for name, of in {
        "errors": changed(config, sample__class_draws=1),
        "energies": changed(config, loss__label_weight=1.0),
    }.items():
        logits = classification.logits_of(run._replace(config=of), jax.random.key(0), images, lambda words: None)
        accuracy[name] = (logits.argmax(1) == labels).mean()
    assert accuracy["errors"] > 0.85 > accuracy["energies"] + 0.2, accuracy
