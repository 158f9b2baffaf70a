"""The least that a training step must compute and move, beside what compiled programs do."""

import jax
import jax.numpy as jnp
import pytest
from test_compile import step_of, tiny

from ebm_jax import assemble, chains
from ebm_jax.models import energy
from ebm_jax.sampling import kernel
from tools.compile import floor, hlo

pytestmark = pytest.mark.whole

WIDTH, POINTS, STEPS = 48, 16, 3


def density(**values):
    return tiny("density2d", **{"model.width": WIDTH, "model.spectral_norm": True} | values)


def flops(fn, *args):
    return hlo.flops(hlo.parse(jax.jit(fn).lower(*args).compile().as_text() or ""))


@pytest.mark.parametrize("kernel_name", ["langevin", "mala", "hmc"])
def test_a_chain_takes_as_many_gradients_as_are_counted(kernel_name):
    config = density(**{"chain.kernel": kernel_name, "chain.quiet_steps": 1, "chain.hmc.num_leaps": 4})
    apply, x = assemble.make_apply(config), jnp.zeros((POINTS, 2))
    params = assemble.abstract_raw_params(config)[0]

    def chain(key, x, params):
        return kernel.run_stages(chains.make_stages(config, "chain"), key, x, energy.bind(apply, params))[0]

    def gradient(x, params):
        return kernel.energy_and_grad(energy.bind(apply, params), x)

    with jax.debug_key_reuse(False):
        found = flops(chain, jax.random.key(0), x, params)
    times = found / flops(gradient, x, params)
    assert round(times, 1) == floor.num_gradients(config), "but for the head, which is a matrix product outside alone"


@pytest.mark.eight_devices
def test_a_step_is_compiled_into_the_flops_that_its_network_chain_and_loss_need():
    config = density(**{"train.batch_size": 400})
    _, program = step_of(config)
    assert abs(8 * hlo.flops(program) / floor.step_flops(config, 8) - 1) < 0.03


def test_wrong_labels_are_one_more_gradient_of_the_parameters():
    (plain, contrasted) = (
        floor.step_flops(tiny("digits_contrastive", **{"loss.label_weight": weight, "model.num_classes": 10}), 8)
        for weight in (0.0, 1.0)
    )
    images, chain = 16, 3
    forward = [product.flops for product in floor._products(tiny("digits_contrastive"))]
    of_parameters = images * (3 * sum(forward) - forward[0])  # the first layer's images get no gradient
    assert contrasted - plain == of_parameters
    assert plain == 2 * of_parameters + images * chain * 2 * sum(forward)


def test_a_chain_step_moves_parameters_chains_and_every_layers_result():
    parameters = (2 * WIDTH + WIDTH) + 2 * (WIDTH * WIDTH + WIDTH) + (WIDTH + 1)
    results = 3 * WIDTH + 1
    each = 2 * (2 + results)  # read and written
    assert floor.chain_step_bytes(density(), 8) == 4 * (parameters + POINTS / 8 * each)
