"""Changes that chains undergo when they are drawn from the replay buffer (Du et al. 2021).

They move chains to other modes: crops, mirror images and other colours of what training's chains already found. The
step's chain then mends what is wrong with them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebm_jax import random
from ebm_jax.types import Images, PRNGKey

Augment = Callable[[PRNGKey, Images], Images]
"""(key, images [b, h, w, c]) -> as many images of the same shape; values of [0, 1] stay in [0, 1]."""
ASPECT = 4.0 / 3.0  # of a crop, at most, and its inverse at least
JITTER, JITTERED, GRAY = 0.8, 0.8, 0.2  # strength of the colour's changes, and the shares of images that get them
TURN = 0.4  # of the hue, at most, as a share of the whole circle
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray: ITU-R BT.601


def strong(key: PRNGKey, x: Images, *, least_area: float) -> Images:
    """The release's chain of changes: a random crop at full size, half of the images mirrored, other colours.

    Args:
      least_area: of a crop, as a share of the image, in (0, 1]; 0.08 in the release for CIFAR-10, 0.6 for ImageNet.
    """
    key_crop, key_flip, key_colour, key_gray = jax.random.split(key, 4)
    x = mirrored(key_flip, cropped(key_crop, x, least_area))
    x = coloured(key_colour, x)
    return jnp.where(_chance(key_gray, x, GRAY), _gray(x), x) if x.shape[-1] == 3 else x


def some(augment: Augment, probability: float) -> Augment:
    """`augment` of each image with a probability in [0, 1]; the others stay as they are."""

    def changed(key: PRNGKey, x: Images) -> Images:
        key_which, key_augment = jax.random.split(key)
        return jnp.where(_chance(key_which, x, probability), augment(key_augment, x), x)

    return changed


def cropped(key: PRNGKey, x: Images, least_area: float) -> Images:
    """A random part of each image, enlarged to the whole by linear interpolation.

    Its area is uniform from `least_area` to 1, its aspect log-uniform from 3/4 to 4/3, cut to what fits.
    """
    areas, aspects, places = (random.uniform(one, (len(x), 2)) for one in jax.random.split(key, 3))
    area = least_area + (1.0 - least_area) * areas[:, 0]
    aspect = jnp.exp(jnp.log(ASPECT) * (2.0 * aspects[:, 0] - 1.0))
    sides = jnp.minimum(jnp.sqrt(jnp.stack([area / aspect, area * aspect], 1)), 1.0)  # shares of height and width
    starts = places * (1.0 - sides)
    return jax.vmap(_part)(x, starts, sides)


def _part(image: Float[Array, "h w c"], start: Float[Array, " 2"], side: Float[Array, " 2"]) -> Float[Array, "h w c"]:
    """The rectangle from `start`, of sizes `side`, as shares of the image, enlarged to the whole image."""
    size = jnp.asarray(image.shape[:2], jnp.float32)
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), 1.0 / side, -start * size / side, method="linear", antialias=False
    )


def mirrored(key: PRNGKey, x: Images) -> Images:
    """Half of the images, left and right exchanged."""
    return jnp.where(_chance(key, x, 0.5), x[:, :, ::-1], x)


def coloured(key: PRNGKey, x: Images) -> Images:
    """Four of five images with another brightness and contrast, and of colour images also another saturation and hue.

    Each factor is uniform from 0.2 to 1.8, and values are cut to [0, 1] after each; the hue turns by up to 0.4 of the
    circle either way.
    """
    key_which, key_hue, *keys = jax.random.split(key, 5)
    brightness, contrast, saturation = (_factor(one, x) for one in keys)
    bright = _box(x * brightness)
    gray = _gray(bright) if x.shape[-1] == 3 else bright
    other = _box(_mixed(gray.mean((1, 2, 3), keepdims=True), bright, contrast))
    if x.shape[-1] == 3:
        other = _box(_mixed(_gray(other), other, saturation))
        other = turned(other, TURN * (2.0 * random.uniform(key_hue, (len(x),)) - 1.0))
    return jnp.where(_chance(key_which, x, JITTERED), other, x)


def turned(x: Float[Array, "b h w 3"], turn: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Colour images in [0, 1] with their hue turned by a share of the circle; their value and saturation (HSV) stay.

    The hue runs from 0 to 6 through red, yellow, green, cyan, blue and magenta (Smith 1978).
    """
    value, chroma = x.max(-1), x.max(-1) - x.min(-1)
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    of_red, of_green, of_blue = green - blue, 2.0 * chroma + blue - red, 4.0 * chroma + red - green
    along = jnp.where(value == red, of_red, jnp.where(value == green, of_green, of_blue))
    hue = along / jnp.where(chroma > 0, chroma, 1.0) + 6.0 * turn[:, None, None]
    places = (hue[..., None] + jnp.asarray([5.0, 3.0, 1.0])[None, None, None]) % 6.0  # of red, green and blue
    below = jnp.clip(jnp.minimum(places, 4.0 - places), 0.0, 1.0)
    return value[..., None] - chroma[..., None] * below


def _factor(key: PRNGKey, x: Images) -> Array:
    return (1.0 - JITTER + 2.0 * JITTER * random.uniform(key, (len(x),))).reshape(-1, 1, 1, 1)


def _chance(key: PRNGKey, x: Images, probability: float) -> Array:
    return random.bernoulli(key, probability, (len(x),)).reshape(-1, 1, 1, 1)


def _gray(x: Images) -> Images:
    return jnp.broadcast_to((x * jnp.asarray(LUMA, x.dtype)[None, None, None]).sum(-1, keepdims=True), x.shape)


def _mixed(one: Array, other: Images, share: Array) -> Images:
    return one + share * (other - one)


def _box(x: Images) -> Images:
    return jnp.clip(x, 0.0, 1.0)
