"""Work counted from a jaxpr equals the compiled program's, and so does what a gradient adds."""

import jax
import jax.numpy as jnp
import pytest

from ebm_jax.models import energy, networks
from ebm_jax.models.convolution import convolution
from tools.compile import hlo, work

pytestmark = pytest.mark.whole

SAME = ((1, 1), (1, 1))


def test_the_products_of_a_network_and_of_its_gradients_are_those_of_the_compiled_ones():
    blocks = (networks.Residual(8, True), networks.Attention(4), networks.Residual(12))
    network = networks.ResNet(stem=8, blocks=blocks, num_classes=3, spectral_norm=False)
    apply = energy.from_module(network)
    images, labels = jnp.zeros((5, 8, 8, 3)), jnp.zeros(5, jnp.int32)
    params = network.init(jax.random.key(0), images, labels)["params"]

    def total(images, params):
        return apply(params, images, labels).sum()

    found = work.products(total, images, params)
    forward = sum(product.flops for product in found)
    for place, fn in enumerate((jax.grad(total), jax.grad(total, argnums=1))):
        compiled = hlo.flops(hlo.parse(jax.jit(fn).lower(images, params).compile().as_text() or ""))
        counted = forward + sum(product.flops * product.on(place) for product in found)
        head = 2 * 5 * 12  # a matrix times a vector; XLA does not make it a matrix product
        assert counted - 2 * head <= compiled <= counted


def test_a_convolution_that_a_cpu_would_do_by_winograd_counts_in_its_plain_form():
    images, kernel = jnp.zeros((1, 16, 15, 64)), jnp.zeros((3, 3, 64, 64))
    (one,) = work.products(lambda x, kernel: convolution(x, kernel, SAME), images, kernel)
    taps = (3 * 16 - 2) * (3 * 15 - 2)  # taps beyond an edge do not count
    assert one == work.Product(2 * taps * 64 * 64, 4 * 16 * 15 * 64, (frozenset({0}), frozenset({1})))


def test_a_loop_is_refused():
    with pytest.raises(ValueError, match="what a scan computes is not counted"):
        work.products(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, 3)[0], jnp.zeros((2, 2)))
