"""What one trained energy does for a user; no loops of its own.

Each function takes an energy, or several put together by `models.energy`, and `stages`: what a whole chain does, such
as `ebm_jax.make_stages(config)` gives. All are pure, and can be jitted and vmapped, but for `nearest_neighbours`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ebm_jax import draws
from ebm_jax.models import energy
from ebm_jax.sampling.kernel import Frames, Stages, run_stages, trace
from ebm_jax.types import BadInput, EnergyFn, Images, Labels, PRNGKey

ConditionalEnergy = Callable[[Images, Labels], Float[Array, " b"]]


def generate(key: PRNGKey, x: Images, energy_fn: EnergyFn, stages: Stages) -> Images:
    """Chains from `x` [b, *event], noise or anything else, through all `stages`."""
    return run_stages(stages, key, x, energy_fn)[0]


def transition(key: PRNGKey, images: Images, labels: Labels, energy_fn: ConditionalEnergy, stages: Stages) -> Images:
    """From real images to other classes: chains from `images` under the energy of `labels` ("cross-class" figures).

    Args:
      energy_fn: (images [b, *event], labels [b]) -> energies [b].
    """
    return generate(key, images, lambda x: energy_fn(x, labels), stages)


def compose(key: PRNGKey, x: Images, energy_fns: list[EnergyFn], stages: Stages) -> Images:
    """Chains from `x` to images that all energies find likely: several models, or several labels of one (their sum)."""
    return generate(key, x, energy.conjunction(*energy_fns), stages)


def inpaint(
    key: PRNGKey,
    images: Images,
    known: Bool[Array, "*mask"] | Bool[np.ndarray, "*mask"],
    energy_fn: EnergyFn,
    stages: Stages,
) -> Images:
    """Images whose unknown values are drawn given the known ones, which come back bit for bit.

    Exact for any kernel: the chain moves under `energy.clamped`. Unknown values start from U[0, 1].

    Args:
      images: [b, *event]; what it has at unknown places is not used.
      known: True where the value is known; of the shape of one image, of one image with a single channel, or of all.

    Raises:
      BadInput: the mask has another shape.
    """
    event = images.shape[1:]
    fitting = (event, (*event[:-1], 1), images.shape)
    if known.shape not in fitting:
        use = " or ".join(str(shape) for shape in dict.fromkeys(fitting))
        raise BadInput(f"a mask of shape {known.shape} does not fit images of shape {images.shape}; use {use}")
    whole = known if known.ndim == images.ndim else known[None]
    mask = jnp.broadcast_to(jnp.asarray(whole), images.shape)
    key_start, key_chain = jax.random.split(key)
    start = jnp.where(mask, images, draws.uniform(key_start, images.shape))
    moved = generate(key_chain, start, energy.clamped(energy_fn, images, mask), stages)
    return jnp.where(mask, images, moved)


def restore(key: PRNGKey, start: Images, energy_fn: EnergyFn, likelihood: EnergyFn, stages: Stages) -> Images:
    """Images likely under the model and under a measurement: denoised, deblurred, super-resolved, colourised.

    Args:
      start: [b, *event] where the chains begin: the damaged images, or noise.
      likelihood: the energy of images given the measurement (`models.observations`).
    """
    return generate(key, start, energy.conjunction(energy_fn, likelihood), stages)


def classify(
    images: Images, class_energies: Callable[[Images], Float[Array, "b k"]]
) -> tuple[Int[Array, " b"], Float[Array, "b k"]]:
    """The class of lowest energy, and log softmax(-U(x, y)) over the classes y: log q(y | x) under equal normalisers.

    Args:
      class_energies: images -> U(x, y) of every class (`energy.class_energies`).
    """
    log_probabilities = jax.nn.log_softmax(-class_energies(images))
    return log_probabilities.argmax(1), log_probabilities


def nearest_neighbours(
    images: np.ndarray, reference: np.ndarray, k: int
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The rows of the `k` images of `reference` nearest to each of `images`, and their L2 distances, nearest first.

    Args:
      images: [n, *event]; reference: [m, *event] in the same units, m >= k.

    Raises:
      BadInput: the shapes differ, or k is not in 1..m.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise BadInput(f"images of {images.shape[1:]} cannot be compared with a reference of {reference.shape[1:]}")
    if not 1 <= k <= len(reference):
        raise BadInput(f"{k} neighbours cannot be had from a reference of {len(reference)} images; use 1 to that many")
    from sklearn.neighbors import NearestNeighbors  # slow to import

    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference.reshape(len(reference), -1))
    distances, rows = search.kneighbors(images.reshape(len(images), -1))
    return rows, distances


def film(key: PRNGKey, x: Images, energy_fn: EnergyFn, stages: Stages, every: int) -> Frames:
    """The chains of `generate` as they move: the start, every `every`-th position of each stage, and each stage's end.

    Returns:
      [1 + Σ ceil(steps / every), b, *event]; the last frame is what `generate` gives for the same key.
    """
    frames = [x[None]]
    for (kernel, num_steps), key_stage in zip(stages, jax.random.split(key, len(stages)), strict=True):
        frames.append(trace(kernel, key_stage, frames[-1][-1], energy_fn, num_steps, every))
    return jnp.concatenate(frames)
