"""The least that a training step must compute and move, from the config's network, chain and loss alone."""

import math

import jax
import jax.numpy as jnp

from ebm_jax.assemble import abstract_raw_params, make_apply
from ebm_jax.labels import example_labels
from ebm_jax.types import Config
from tools.compile import work

IMAGES, PARAMS = 0, 1  # places of the arguments that get gradients


def _products(config: Config) -> list[work.Product]:
    """The products in the energy of one image."""
    apply, (params, _) = make_apply(config), abstract_raw_params(config)
    labels = jax.eval_shape(lambda: example_labels(config, jnp.zeros(1, jnp.int32)))
    images = jax.ShapeDtypeStruct((1, *config.data.shape), jnp.float32)
    found = work.products(lambda images, params, labels: apply(params, images, labels), images, params, labels)
    return [product for product in found if product.on(IMAGES)]  # the others do not depend on the image


def num_gradients(config: Config) -> int:
    """Energies, each with its gradient, that a training chain takes."""
    chain = config.chain
    noisy = chain.num_steps - chain.quiet_steps
    if chain.kernel == "langevin" or not noisy:
        return chain.num_steps
    leaps = chain.hmc.num_leaps if chain.kernel == "hmc" else 1
    return 1 + noisy * leaps + chain.quiet_steps


def step_flops(config: Config, num_devices: int) -> float:
    """Floating-point operations of the convolutions and matrix products of a training step, all devices together.

    The energy of an image takes F operations. Each product takes as many again for every operand that needs a gradient.
    With N images and chains, and K gradients of a chain:

        N · K · (F + F for the images)  +  2 N · (F + F for the parameters)  +  10 m n for each normalised kernel [m, n]

    With contrasted wrong labels 2 N becomes 3 N. Every device does the last term: the power iteration (4), σ of the
    step's parameters and of its result (4), and the gradient through σ (2).
    """
    products = _products(config)
    forward = sum(product.flops for product in products)
    for_images, for_params = (
        sum(product.flops * product.on(place) for product in products) for place in (IMAGES, PARAMS)
    )
    compared = 3 if config.loss.label_weight else 2
    images = config.train.batch_size * (
        num_gradients(config) * (forward + for_images) + compared * (forward + for_params)
    )
    kernels = sum(left.size * right.size for left, right in abstract_raw_params(config)[1].values())
    return float(config.train.num_models * (images + 10 * kernels * num_devices))


def chain_step_bytes(config: Config, num_devices: int) -> float:
    """Bytes that a device reads and writes in one step of its chains if nothing stays on the chip between layers.

    A step reads the parameters once, in the type of the computation, and reads and writes the chains in float32. It
    writes the result of each convolution and matrix product once, and the way back reads it once. A program moves less
    if the chip's own memory keeps some of this from layer to layer, or from step to step.
    """
    chains = config.train.batch_size / num_devices
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_raw_params(config)[0]))
    results = sum(product.result for product in _products(config))
    width = jnp.dtype(jnp.dtype(config.model.dtype)).itemsize
    each = 2 * 4 * math.prod(config.data.shape) + 2 * results
    return config.train.num_models * (width * parameters + chains * each)
