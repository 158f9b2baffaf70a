"""The uses of a trained energy; no loops of its own.

Each function takes one energy or several, and `stages`, the steps of a whole chain (`ebm_jax.make_stages(config)`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebm_jax import arguments, random
from ebm_jax.models import energy
from ebm_jax.sampling.base import Base
from ebm_jax.sampling.kernel import Frames, Kernel, Project, Stages, end_of_stages, run, trace_stages, unit_box
from ebm_jax.types import BadInput, EnergyFn, Given, Images, Labels, PRNGKey, Scalar


def generate(key: Given, x: Given, energy_fn: EnergyFn, stages: Stages) -> Images:
    """Chains from `x` [b, *event], noise or anything else, through all `stages`.

    Where the last steps are noise-free, the images end on the energy's floor rather than a noise's width above it.

    Raises:
      BadInput: as `kernel.run_stages`: another key or start, no stage.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import applications, langevin, unit_box
      >>> near = lambda level: lambda x: 50 * jnp.square(x - level).sum((1, 2, 3))  # N(level, 0.1²) a pixel
      >>> start = jax.random.uniform(jax.random.key(0), (64, 8, 8, 1))
      >>> x = applications.generate(jax.random.key(1), start, near(0.6), [(langevin(0.005, project=unit_box), 30)])
      >>> x.shape, round(float(x.mean()), 1)
      ((64, 8, 8, 1), 0.6)
    """
    return end_of_stages(stages, key, x, energy_fn)


ProjectAt = Callable[[float | Scalar], Project]
"""From the share γ of data to the projection there."""


class Path(NamedTuple):
    """The way of a measured image from noise, for an energy that orders images by how noisy they are.

    Such an energy is flat at the data, so beside a likelihood it weighs nothing. But its descent passes images of a
    known share γ of data and 1 - γ of noise ε, of which a measurement y = A x says: A x_γ = γ y + (1 - γ) A ε.
    """

    base: Base
    """The law of ε."""
    share: float
    """γ in [0, 1) of the start."""
    stages_of: Callable[[ProjectAt | None], Stages]
    """From γ -> projection to the stages of the whole chain: each step takes the projection of the γ it ends at.

    None: nothing but the start holds the measurement, so no step may forget it (`chains.make_path`).
    """


def follow(
    key: Given,
    start: Given,
    measured: Array,
    forward: Callable[[Images], Array],
    squared_norm: float,
    energy_fn: EnergyFn,
    path: Path,
) -> Images:
    """Descent from noise to images whose measurement is `measured`, which holds on all the way there.

    Each step ends with the measurement's own:  x ← x + Aᵀ (γ y + (1 - γ) A ε - A x) / ‖A‖². Where A Aᵀ = ‖A‖² I, as for
    means of blocks or channels and for masks, A x is then exact; else the chain comes closer from step to step.

    Args:
      start: [b, *event], of which the first images have the share `path.share`; with the share 0 it has no effect.
      measured: y, what `forward` gives of images [b, *event].
      forward: A, linear.
      squared_norm: ‖A‖², the largest eigenvalue of AᵀA (`models.observations` says it of each operator).

    Raises:
      BadInput: as `generate`.
    """
    arguments.check_key("key", key)
    arguments.check_images("start", start)
    start = arguments.as_floats(start)
    key_noise, key_chain = jax.random.split(key)
    noise = _noise(key_noise, start, path)
    transposed = jax.linear_transpose(forward, start)

    def project_at(share: float | Scalar) -> Project:
        aim = share * measured + (1.0 - share) * forward(noise)
        return lambda x: x + transposed(aim - forward(x))[0] / squared_norm

    first = path.share * start + (1.0 - path.share) * noise
    return generate(key_chain, first, energy_fn, path.stages_of(project_at))


def among_noise(key: PRNGKey, images: Images, path: Path) -> Images:
    """The images [b, *event] in their share of the path's start; the rest is noise.

    Where an energy is flat at the data, chains that are to leave an image start here.
    """
    return path.share * images + (1.0 - path.share) * _noise(key, images, path)


def _noise(key: PRNGKey, images: Images, path: Path) -> Images:
    return path.base.sample(key, images.shape[0]).astype(images.dtype)


def inpaint(key: Given, images: Given, known: Array, energy_fn: EnergyFn, stages: Stages | Path) -> Images:
    """Draw the unknown pixels given the known ones: q(unknown | known), with any kernel (paper, restoration).

    With a path, as `follow`: the start's unknown pixels are those of `images`, in the path's share. Else the unknown
    pixels start from U[0, 1]. The chain has the known places too, but they do not change the energy. They
    start in the middle of the box, far from its faces: a kernel with a Metropolis test rejects moves across a face.

    Args:
      images: [b, *event]; the values at unknown pixels have no effect, but with a path of a share above 0.
      known: bool [b, *event], or [*event] for all images alike; True where the image is to stay.

    Returns:
      [b, *event], equal to `images` bit for bit at the known pixels.

    Raises:
      BadInput: `known` has another shape or type; or as `generate`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import applications, langevin, unit_box
      >>> near_a_half = lambda x: 50 * jnp.square(x - 0.5).sum((1, 2, 3))
      >>> known = jnp.zeros((8, 8, 1), bool).at[4:].set(True)  # the lower halves of black images
      >>> stages = [(langevin(0.005, project=unit_box), 30)]
      >>> x = applications.inpaint(jax.random.key(0), jnp.zeros((64, 8, 8, 1)), known, near_a_half, stages)
      >>> round(float(x[:, :4].mean()), 1), float(x[:, 4:].max())
      (0.5, 0.0)
    """
    arguments.check_key("key", key)
    arguments.check_images("images", images)
    images = arguments.as_floats(images)
    if known.dtype != jnp.bool_:
        raise BadInput(f"the mask of known pixels is of {known.dtype}; give bool, True where the image is to stay")
    if known.shape not in (images.shape, images.shape[1:]):
        raise BadInput(
            f"the mask of known pixels has the shape {known.shape}; give {images.shape}, a mask for each image, or "
            f"{images.shape[1:]}, one for all"
        )
    known = jnp.broadcast_to(known.reshape(-1, *images.shape[1:]), images.shape)
    if isinstance(stages, Path):
        seen = jnp.where(known, images, 0.0)
        x = follow(key, images, seen, lambda x: jnp.where(known, x, 0.0), 1.0, energy_fn, stages)
        return jnp.where(known, images, x)
    key_start, key_chain = jax.random.split(key)
    start = jnp.where(known, 0.5, random.uniform(key_start, images.shape, images.dtype))
    x = generate(key_chain, start, energy.clamped(energy_fn, images, known), stages)
    return jnp.where(known, images, x)


def restore(key: Given, start: Given, energy_fn: EnergyFn, likelihood: EnergyFn, stages: Stages) -> Images:
    """Chains from `start` under prior and likelihood: q(x | observation) ∝ exp(-U(x) - L(x)) (paper, restoration).

    Denoising, deblurring, super-resolution and colouring differ only in the likelihood (`models.observations`).

    Args:
      start: [b, *event], such as the observation brought to the images' shape, or noise.
      likelihood: L(x) = -log p(observation | x) + constant, in nats.

    Raises:
      BadInput: as `generate`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import applications, langevin, unit_box
      >>> near = lambda level: lambda x: 50 * jnp.square(x - level).sum((1, 2, 3))
      >>> observed = jnp.full((64, 8, 8, 1), 0.2)
      >>> stages = [(langevin(0.002, project=unit_box), 30)]
      >>> x = applications.restore(jax.random.key(0), observed, near(0.8), near(0.2), stages)  # prior and likelihood
      >>> round(float(x.mean()), 1)  # of two equally sure Gaussians
      0.5
    """
    return generate(key, start, energy.conjunction(energy_fn, likelihood), stages)


def transition(
    key: Given, images: Given, labels: Labels, energy_of: Callable[[Labels], EnergyFn], stages: Stages
) -> Images:
    """Chains from real images under the energy of other classes (paper, cross-class).

    Args:
      images: [b, *event] of any class.
      labels: [b], the classes to go to.
      energy_of: from labels to an energy, such as `partial(energy.bind, apply, params)`.

    Raises:
      BadInput: as `generate`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import applications, langevin, unit_box
      >>> of_class = lambda labels: lambda x: 50 * jnp.square(x - 0.25 - labels[:, None] / 2).sum(1)
      >>> dark, bright = jnp.full((64, 2), 0.25), jnp.ones(64, jnp.int32)
      >>> stages = [(langevin(0.005, project=unit_box), 30)]
      >>> x = applications.transition(jax.random.key(0), dark, bright, of_class, stages)
      >>> bool(abs(x.mean() - 0.75) < 0.05)
      True
    """
    return generate(key, images, energy_of(labels), stages)


def compose(
    key: Given,
    x: Given,
    energy_fns: Sequence[EnergyFn],
    stages: Stages,
    weights: Sequence[float | Scalar] | None = None,
) -> Images:
    """Chains from `x` under Σ w_i U_i: images that have every concept at once (paper, composition).

    The energies may come from several models, or from one model under several labels (`energy.bind`). To take turns
    instead of summing, call `generate` with stages of `kernel.alternating(kernel, energy_fns)`.

    Args:
      weights: w_i, one for each energy, negative for a concept to avoid; None: all 1.

    Raises:
      BadInput: there are not as many weights as energies; or as `generate`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import applications, langevin, unit_box
      >>> left = lambda x: 50 * jnp.square(x[:, 0] - 0.2)
      >>> low = lambda x: 50 * jnp.square(x[:, 1] - 0.4)
      >>> start = jax.random.uniform(jax.random.key(0), (1_000, 2))
      >>> stages = [(langevin(0.001, project=unit_box), 100)]
      >>> x = applications.compose(jax.random.key(1), start, [left, low], stages)
      >>> [round(float(each), 1) for each in x.mean(0)]
      [0.2, 0.4]
    """
    weights = [1.0] * len(energy_fns) if weights is None else weights
    if len(weights) != len(energy_fns):
        raise BadInput(f"{len(weights)} weights for {len(energy_fns)} energies; give one for each")
    parts = [energy.weighted(energy_fn, weight) for energy_fn, weight in zip(energy_fns, weights, strict=True)]
    return generate(key, x, energy.conjunction(*parts), stages)


def refined_class_energies(
    energy_of: Callable[[Labels], EnergyFn],
    num_classes: int,
    kernel_of: Callable[[Project], Kernel],
    *,
    num_steps: int,
    radius: float,
) -> Callable[[PRNGKey, Images], Float[Array, "b k"]]:
    """The function (key, images) -> U(x', y) for every class y; x' is the image after a chain under U(·, y).

    Each chain stays within `radius` of every value of its image, and in the unit box (paper, classification; release
    ebm_sandbox.py: construct_label, with 8/255). Gradients with respect to the images pass through the chain.

    Args:
      energy_of: from labels to an energy, such as `partial(energy.bind, apply, params)`.
      kernel_of: from a projection to the chain's kernel with this projection.
      radius: in pixel values, of [0, 1].
    """

    def energies_of(key: PRNGKey, images: Images) -> Float[Array, "b k"]:
        kernel = kernel_of(lambda x: unit_box(jnp.clip(x, images - radius, images + radius)))

        def of_class(class_and_key: tuple[Array, PRNGKey]) -> Float[Array, " b"]:
            label, key = class_and_key
            energy_fn = energy_of(jnp.full(len(images), label))
            return energy_fn(run(kernel, key, images, energy_fn, num_steps)[0])

        classes = jnp.arange(num_classes, dtype=jnp.int32)
        # The backward pass runs the chains again: storing the chains of all classes fills a machine's memory
        return jax.lax.map(jax.checkpoint(of_class), (classes, jax.random.split(key, num_classes))).T

    return energies_of


def classify(
    class_energies: Callable[[Images], Float[Array, "b k"]], images: Images
) -> tuple[Int[Array, " b"], Float[Array, "b k"]]:
    """The likeliest class of each image, and log q(y | x) = log softmax(-U(x, y)) for equal class priors.

    Args:
      class_energies: images -> U(x, y), [b, k], such as `energy.class_energies` gives.

    Returns:
      labels [b], and log-probabilities [b, k] in nats.

    Examples:
      >>> import jax.numpy as jnp
      >>> from ebm_jax import applications
      >>> energies = lambda images: jnp.stack([images.sum((1, 2, 3)), jnp.log(3.0) + 0 * images.sum((1, 2, 3))], 1)
      >>> labels, log_probabilities = applications.classify(energies, jnp.zeros((2, 8, 8, 1)))
      >>> labels.tolist(), [round(float(each), 2) for each in jnp.exp(log_probabilities[0])]
      ([0, 0], [0.75, 0.25])
    """
    energies = class_energies(images)
    return energies.argmin(1).astype(jnp.int32), jax.nn.log_softmax(
        -energies, axis=1
    )  # this rounds small differences away


def film(key: Given, x: Given, energy_fn: EnergyFn, stages: Stages, every: int) -> Frames:
    """The chain that `run_stages` runs with this key, as frames [1 + ceil(all steps / every), b, *event].

    The frames are the start `x`, every `every`-th position over all stages, and the end. If the steps are no multiple
    of `every`, fewer steps lie before the last frame than between the others.

    Raises:
      BadInput: `every` is below 1; or as `generate`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ebm_jax import applications, langevin, unit_box
      >>> bowl = lambda x: 50 * jnp.square(x - 0.5).sum((1, 2, 3))
      >>> stages = [(langevin(0.005, project=unit_box), 10)]
      >>> frames = applications.film(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), bowl, stages, every=4)
      >>> frames.shape  # the start, after 4, 8 and 10 steps
      (4, 2, 8, 8, 1)
    """
    arguments.check_whole("every", every, 1)
    arguments.check_images("x", x)
    x = arguments.as_floats(x)
    return jnp.concatenate([x[None], trace_stages(stages, key, x, energy_fn, every)])
