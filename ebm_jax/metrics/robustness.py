"""A classifier under attack: projected gradient ascent in L∞ and L2, and whether its gradients can be believed.

Attacks stay around the clean image and inside the unit box. They maximise the margin, the largest wrong logit minus the
right one (Carlini & Wagner 2017). Unlike the cross-entropy's gradient, its gradient keeps its direction when the energy
is scaled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ebm_jax import random
from ebm_jax.sampling.kernel import norms, unit_box
from ebm_jax.types import Energies, Images, PRNGKey, Scalar

LogitsFn = Callable[[PRNGKey, Images], Float[Array, "b k"]]
"""(key, images) -> logits of the classes, such as -U(x, y); the key drives whatever randomness they have."""
Margins = Float[Array, " b"]
Sizes = float | Scalar | Float[Array, " b"]
"""One for all images, or one for each."""

STEPS_ACROSS = 2.5  # radii that all steps together can go (Madry et al. 2018)
BISECTIONS = 40  # halvings of a scale in [0, 1]: float32 has no more digits
SIGMAS = 2.0  # standard errors of a paired comparison, beyond which the check reports a violation
UNBOUNDED_ACCURACY = 0.01  # an attack that may go anywhere must push the accuracy down to this, or lower


class Norm(NamedTuple):
    """How an attack moves in a ball {x: ||x - clean|| <= radius} cut by the unit box."""

    project: Callable[[Images, Images, Sizes], Images]
    """(x, clean, radius) -> the nearest point of ball and box; clean images are in the box."""
    ascent: Callable[[Images], Images]
    """A gradient -> the direction of norm 1 in which it rises fastest; 0 for a gradient of 0."""
    inside: Callable[[PRNGKey, Images], Images]
    """(key, like) -> points of the same shape, uniform in the ball of radius 1 around 0."""
    whole_box: Callable[[tuple[int, ...]], float]
    """The shape of an image -> the radius from which on the ball holds the whole box."""


def _project_linf(x: Images, clean: Images, radius: Sizes) -> Images:
    """Clip each value to the ball, then to the box: this gives the nearest point of both."""
    room = _rows(radius, x)
    return unit_box(jnp.clip(x, clean - room, clean + room))


def _project_l2(x: Images, clean: Images, radius: Sizes) -> Images:
    """Minimising ||z - x||² under both constraints gives z = box(clean + t (x - clean)).

    t is the largest number in [0, 1] that keeps z in the ball (Karush, Kuhn, Tucker). ||z - clean|| grows with t, so
    bisection finds t; the lower end is kept.
    """

    def at(scale: Energies) -> Images:
        return unit_box(clean + _rows(scale, x) * (x - clean))

    def halve(_: Array, ends: tuple[Energies, Energies]) -> tuple[Energies, Energies]:
        low, high = ends
        middle = 0.5 * (low + high)
        fits = norms(at(middle) - clean) <= radius
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    zero = 0.0 * norms(x)  # from x: varies over devices as the loop's results do
    low, _ = lax.fori_loop(0, BISECTIONS, halve, (zero, zero + 1.0))
    return at(jnp.where(norms(at(zero + 1.0) - clean) <= radius, 1.0, low))


def _rows(values: Any, x: Images) -> Array:
    """One value for all images or one for each, shaped to multiply images by."""
    return jnp.reshape(values, (-1, *(1,) * (x.ndim - 1)))


def _unit_l2(x: Images) -> Images:
    length = norms(x)
    return x / _rows(jnp.where(length > 0, length, 1.0), x)


def _inside_linf(key: PRNGKey, like: Images) -> Images:
    return 2.0 * random.uniform(key, like.shape) - 1.0


def _inside_l2(key: PRNGKey, like: Images) -> Images:
    key_direction, key_radius = jax.random.split(key)
    radius = random.uniform(key_radius, like.shape[:1]) ** (1.0 / np.prod(like.shape[1:]))
    return _rows(radius, like) * _unit_l2(random.normal(key_direction, like.shape))


LINF = Norm(_project_linf, jnp.sign, _inside_linf, lambda shape: 1.0)
L2 = Norm(_project_l2, _unit_l2, _inside_l2, lambda shape: float(np.prod(shape)) ** 0.5)


class Attacked(NamedTuple):
    """The worst images found, and their margins: an image with a margin below 0 is still right."""

    images: Images
    margins: Margins


def margins(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Margins:
    """The largest wrong logit minus the right one: below 0 where the image is classified as its label."""
    right = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jnp.where(right, -jnp.inf, logits).max(1) - jnp.where(right, logits, -jnp.inf).max(1)


def step_size(radius: float, num_steps: int, least: float) -> float:
    """The length of a step: `least`, the paper's, or more if the steps could not cross the ball otherwise."""
    return max(least, STEPS_ACROSS * radius / num_steps)


def pgd(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    norm: Norm,
    radius: Sizes,
    step: Sizes,
    *,
    num_steps: int,
    num_restarts: int,
) -> Attacked:
    """Projected gradient ascent on the margin (Madry et al. 2018) within `radius` >= 0 of the clean images.

        x ~ ball;   repeat:  x <- project(x + step · ascent(∇ margin(x)))      project: clean image's ball and the box

    The result is each image's worst point among all steps, all restarts and the clean image. The gradient goes through
    whatever `logits_fn` does, chains included. If `logits_fn` is random, each step has its own key. The worst points
    then get their returned margins under a fresh key: chance alone breaks no image.

    Args:
      images: [b, *event] in [0, 1]; labels: [b].
      radius, step: in units of the norm, for all images or for each; traced: one program serves all radii.
    """

    def ascend(x: Images, key: PRNGKey) -> tuple[Images, Margins]:
        def total(x):
            found = margins(logits_fn(key, x), labels)
            return found.sum(), found

        gradient, found = jax.grad(total, has_aux=True)(x)
        return norm.project(x + _rows(step, x) * norm.ascent(gradient), images, radius), found

    def body(carry: tuple[Images, Attacked], key: PRNGKey) -> tuple[tuple[Images, Attacked], None]:
        x, worst = carry
        moved, found = ascend(x, key)
        return (moved, _worse(worst, Attacked(x, found))), None

    def restart(worst: Attacked, key: PRNGKey) -> tuple[Attacked, None]:
        key_start, key_steps, key_end = jax.random.split(key, 3)
        start = norm.project(images + _rows(radius, images) * norm.inside(key_start, images), images, radius)
        (x, worst), _ = lax.scan(body, (start, worst), jax.random.split(key_steps, num_steps))
        return _worse(worst, Attacked(x, margins(logits_fn(key_end, x), labels))), None

    return _worst_of(key, logits_fn, images, labels, restart, num_restarts)


def noise(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    norm: Norm,
    radius: Sizes,
    *,
    num_draws: int,
) -> Attacked:
    """The worst of each clean image and `num_draws` random points, as far from it as `radius` and the box allow.

    Noise needs no gradient: an attack is stronger than noise if its gradients are worth something.
    """

    def draw(worst: Attacked, key: PRNGKey) -> tuple[Attacked, None]:
        key_noise, key_logits = jax.random.split(key)
        direction = norm.ascent(random.normal(key_noise, images.shape))
        x = norm.project(images + _rows(radius, images) * direction, images, radius)
        return _worse(worst, Attacked(x, margins(logits_fn(key_logits, x), labels))), None

    return _worst_of(key, logits_fn, images, labels, draw, num_draws)


def _worst_of(
    key: PRNGKey,
    logits_fn: LogitsFn,
    images: Images,
    labels: Int[Array, " b"],
    attempt: Callable[[Attacked, PRNGKey], tuple[Attacked, None]],
    number: int,
) -> Attacked:
    """The worst points among the clean images and `number` attempts; a key of its own gives their margins."""
    key_clean, key_attempts, key_judge = jax.random.split(key, 3)
    clean = Attacked(images, margins(logits_fn(key_clean, images), labels))
    worst, _ = lax.scan(attempt, clean, jax.random.split(key_attempts, number))
    return Attacked(worst.images, margins(logits_fn(key_judge, worst.images), labels))


def _worse(one: Attacked, other: Attacked) -> Attacked:
    """The point with the larger margin, for each image."""
    takes = other.margins > one.margins
    return Attacked(
        jnp.where(_rows(takes, one.images), other.images, one.images), jnp.maximum(one.margins, other.margins)
    )


def expected(logits_fn: LogitsFn, num_keys: int) -> LogitsFn:
    """The mean of random logits over `num_keys` keys, for attacks on the expectation (Athalye et al. 2018)."""

    def mean(key: PRNGKey, images: Images) -> Float[Array, "b k"]:
        one = jax.checkpoint(lambda key: logits_fn(key, images))  # the gradient keeps one key's layers
        return lax.map(one, jax.random.split(key, num_keys)).mean(0)

    return mean


class Curve(NamedTuple):
    """Which of n images are still right, at each of r radii."""

    radii: Float[np.ndarray, " r"]
    """Rising, in units of the norm."""
    attacked: Bool[np.ndarray, "r n"]
    noisy: Bool[np.ndarray, "r n"]
    """Under noise of the same radius."""
    unbounded: Bool[np.ndarray, " n"]
    """Under an attack that may go anywhere in the box."""


def violations(curve: Curve) -> list[str]:
    """The signs of masked gradients (Athalye et al. 2018, section 3.1), in words with numbers; empty if there are none.

    A larger ball holds the smaller one, so a larger radius must not leave more images right. Noise must not be stronger
    than an attack by gradients. An attack without bounds must reach nearly all images.

    Two attacks are compared on the same images. Let a count the images that only the supposedly weaker attack breaks,
    and b those that only the stronger one breaks. They violate the order if a - b > SIGMAS · sqrt(a + b); sqrt(a + b)
    is the standard error of a - b for equally strong attacks.
    """
    found = []
    for low, high, small, large in zip(
        curve.radii[:-1], curve.radii[1:], curve.attacked[:-1], curve.attacked[1:], strict=True
    ):
        if _breaks_more(small, large):
            found.append(
                f"radius {high:g} is harder than {low:g}: accuracy {large.mean():.1%} against {small.mean():.1%}"
            )
    for radius, attacked, noisy in zip(curve.radii, curve.attacked, curve.noisy, strict=True):
        if _breaks_more(noisy, attacked):
            found.append(
                f"noise of radius {radius:g} is stronger than the attack: accuracy {noisy.mean():.1%} against "
                f"{attacked.mean():.1%}"
            )
    if curve.unbounded.mean() > UNBOUNDED_ACCURACY:
        found.append(
            f"an attack without bounds leaves an accuracy of {curve.unbounded.mean():.1%}, more than "
            f"{UNBOUNDED_ACCURACY:.0%}"
        )
    return found


def _breaks_more(weaker: np.ndarray, stronger: np.ndarray) -> bool:
    """Whether the supposedly weaker attack breaks more images than chance explains."""
    only_weaker, only_stronger = (~weaker & stronger).sum(), (weaker & ~stronger).sum()
    return bool(only_weaker - only_stronger > SIGMAS * (only_weaker + only_stronger) ** 0.5)


def verdict(curve: Curve) -> str:
    """PASS or the violations, in words, with the numbers behind them."""
    found = violations(curve)
    if found:
        return "VIOLATED, gradients may be masked: " + "; ".join(found)
    steps = len(curve.radii) - 1
    return (
        f"PASS: none of {steps} larger radii is harder, noise is at none of {len(curve.radii)} stronger (accuracy "
        f"{curve.noisy[-1].mean():.1%} against {curve.attacked[-1].mean():.1%} at radius {curve.radii[-1]:g}), an "
        f"attack without bounds leaves {curve.unbounded.mean():.1%}"
    )
