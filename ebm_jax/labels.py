"""The labels of a run: their shape, the check of given labels, and examples where nobody gives any.

A label is an integer (a class) or a vector (a soft label or a factor of variation). Each example function takes places
[n], 0, 1, 2 ... in a picture, and the length k of a label; it gives classes [n] or vectors [n, k]. For dSprites it goes
through the values that the factor has in the data set, in the form that the release conditions on (data.py: DSprites).
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ebm_jax.arguments import is_array
from ebm_jax.kinds import SOFT, printable, shown
from ebm_jax.schema import value_of, with_values
from ebm_jax.types import BadInput, Config, Given, Labels, Places

SHOWN = 12  # names of classes in a message, at most


def classes(places: Places, k: int) -> Labels:
    """The k classes in turn."""
    return places % k


def one_hot(places: Places, k: int) -> Labels:
    """The k corners of the simplex in turn."""
    return jnp.eye(k, dtype=jnp.float32)[places % k]


def size(places: Places, k: int) -> Labels:
    """The six scales 0.5, 0.6 ... 1.0; k is 1."""
    return 0.5 + 0.1 * (places % 6).astype(jnp.float32)[:, None]


def position(places: Places, k: int) -> Labels:
    """The points (x, y) of an 8x8 lattice on the unit square, row by row; k is 2."""
    return jnp.stack([places % 8, places // 8 % 8], -1).astype(jnp.float32) / 7.0


def rotation(places: Places, k: int) -> Labels:
    """(cos, sin) of 40 angles around the circle; k is 2."""
    angles = 2 * np.pi / 40 * (places % 40).astype(jnp.float32)
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)


EXAMPLES = {  # for conditions other than classes
    "soft": one_hot,
    "size": size,
    "position": position,
    "rotation": rotation,
}


def label_shape(config: Config) -> tuple[int, ...] | None:
    """The shape of one label: None for an integer, (k,) for a soft one."""
    return (config.model.num_classes,) if config.data.condition in SOFT else None


def is_conditional(config: Config) -> bool:
    """Whether energies depend on labels."""
    return config.model.num_classes > 1 or label_shape(config) is not None


def check_labels(config: Config, labels: Given, num_images: Any = None) -> None:
    """Refuse labels that do not fit the model or the number of images; while JAX traces, their values are not checked.

    Args:
      num_images: None: as many as there are labels, one or more.

    Raises:
      BadInput: with the wrong type or shape, or the first wrong class, and what fits.
    """
    num_classes, shape = config.model.num_classes, label_shape(config)
    one = "integer" if shape is None else f"vector of {num_classes}"
    if not is_array(labels):
        raise BadInput(
            f"labels are of the type {type(labels).__name__}; give an array of JAX or NumPy, one {one} an image"
        )
    number = num_images if num_images is not None or labels.ndim == 0 else labels.shape[0]
    if labels.shape != (number, *(shape or ())):
        images = "the images" if num_images is None else f"{num_images} images"
        raise BadInput(f"labels of shape {labels.shape} for {images}; give one {one} for each image")
    if number == 0:
        raise BadInput(f"labels of shape {labels.shape} are an empty batch; give 1 or more")
    if shape is None and not jnp.issubdtype(labels.dtype, jnp.integer):
        raise BadInput(f"labels are of {labels.dtype}; this model's are classes: give integers")
    if shape is not None or num_classes == 1 or isinstance(labels, Tracer):
        return
    wrong = np.asarray(labels)[(np.asarray(labels) < 0) | (np.asarray(labels) >= num_classes)]
    if len(wrong):
        raise BadInput(f"label {wrong[0]} is out of range; this model has the classes 0 to {num_classes - 1}")


def checked_labels(config: Config, labels: Given, num_images: Any = None) -> Labels:
    """The labels as the network takes them, int32 [b] or float32 [b, k]; without any, those of an unconditional model.

    Raises:
      BadInput: as `check_labels`; or there are none, and the model is conditional.
    """
    num_classes, shape = config.model.num_classes, label_shape(config)
    if labels is None and is_conditional(config):
        kind = f"{num_classes} classes" if shape is None else f"data.condition {config.data.condition}"
        raise BadInput(f"this energy is conditional on {kind}: give one label for each image")
    if labels is None:
        return jnp.zeros((num_images,), jnp.int32)
    check_labels(config, labels, num_images)
    return jnp.asarray(labels, jnp.int32 if shape is None else jnp.float32)


def example_labels(config: Config, places: Places) -> Labels:
    """Labels to sample under at these places of a picture; all 0 for an unconditional model."""
    return EXAMPLES.get(config.data.condition, classes)(places, config.model.num_classes)


def sample_labels(config: Config, places: Places) -> Labels:
    """The labels of `sample.labels` in turn at these places of a picture; the example labels if the key is empty.

    Raises:
      BadInput: as `parse_labels`; or the key has a sum, which only sample.task=compose takes.
    """
    terms = parse_labels(config, "sample.labels")
    if not terms:
        return example_labels(config, places)
    if len(terms) > 1:
        raise BadInput(f"sample.labels '{config.sample.labels}' sums energies; that is sample.task=compose")
    return terms[0][places % len(terms[0])]


def names_of(config: Config, labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """The names of labels [n]; [] for vectors, an unconditional model, or names of other classes than the model's.

    Args:
      names: of the data's classes, in the order of their labels; empty: they have none.
    """
    num_classes = config.model.num_classes
    if num_classes == 1 or num_classes != len(names) or label_shape(config) is not None:
        return []
    numbers: list[int] = labels.tolist()
    return [(*names, "of no class")[label] for label in numbers]


def in_words(config: Config, labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """As `names_of`, and "class 3" where classes have no names; [] for vectors and an unconditional model."""
    if not is_conditional(config) or label_shape(config) is not None:
        return []
    numbers = [f"class {label}" for label in range(config.model.num_classes)]
    return names_of(config, labels, names) or names_of(config, labels, numbers)


def numbered(config: Config, names: Sequence[str]) -> Config:
    """The config with numbers for the names of classes in `sample.labels`; a number stays a number.

    Args:
      names: of the classes, in the order of their labels; empty: they have none.

    Raises:
      BadInput: a word is the name of no class, though the classes have names.
    """
    text = numbered_text(config.sample.labels, names if is_conditional(config) else ())
    return config if text == config.sample.labels else with_values(config, {"sample.labels": text})


def numbered_text(text: str, names: Sequence[str]) -> str:
    """As `numbered`, for the text of `sample.labels`. A name that contains "," or "+" has only its number."""
    if not names or not text.strip():
        return text
    terms = [[_number_of(word.strip(), names, "sample.labels") for word in term.split(",")] for term in text.split("+")]
    return "+".join(map(",".join, terms))


def as_array(labels: Given, names: Sequence[str], number: int) -> Given:
    """Labels as an array: one class, by number or by name, is for all of `number` images; a list has one an image.

    An array, and None, stay as they are.

    Raises:
      BadInput: a word is the name of no class.
    """
    if labels is None or is_array(labels):
        return labels
    alone = isinstance(labels, str | int)
    each = [labels] if alone else list(labels)
    numbers = [int(_number_of(one, names, "labels")) if isinstance(one, str) else one for one in each]
    return np.asarray(numbers * number if alone else numbers)


def _number_of(word: str, names: Sequence[str], what: str) -> str:
    places = {unicodedata.normalize("NFC", name): place for place, name in enumerate(names)}
    try:
        [float(number) for number in word.split()]
    except ValueError:
        name = unicodedata.normalize("NFC", word)
        if name in places:
            return str(places[name])
        if not names:
            raise BadInput(f"{what} {shown(word)} is no class, and the classes have no names; use numbers") from None
        near = difflib.get_close_matches(name, places, 1)
        hint = f" (did you mean {printable(near[0])}?)" if near else ""
        raise BadInput(
            f"{what} {shown(word)} is no class; use numbers from 0 to {len(places) - 1}, or names such as "
            f"{', '.join(map(printable, list(places)[:SHOWN]))}{hint}"
        ) from None
    return word


def parse_labels(config: Config, key: str) -> list[Labels]:
    """The labels at a key: "+" separates terms, "," separates the labels of a term, blanks the numbers of a vector.

    "3": class 3. "3,5": classes 3 and 5 in turn. "1+3": the sum of the energies of 1 and 3. "0.5 0.5": a position.

    Raises:
      BadInput: text that is no number, a class that the model does not have, a vector of another length; any class but
        0 of a model of none.
    """
    text, num_classes, shape = value_of(config, key), config.model.num_classes, label_shape(config)
    if not text.strip():
        return []
    if not is_conditional(config) and set(re.split("[,+]", text.replace(" ", ""))) != {"0"}:
        raise BadInput(
            f"{key} {shown(text)} asks for a class, and this model was trained without; leave the labels out"
        )
    try:
        terms = [[[float(number) for number in entry.split()] for entry in term.split(",")] for term in text.split("+")]
    except ValueError:
        raise BadInput(f"{key} '{text}' is not labels; use for example 3, or 3,5, or 0.5 0.5") from None
    length = 1 if shape is None else shape[0]
    for entry in [entry for term in terms for entry in term]:
        if len(entry) != length:
            raise BadInput(f"{key} '{text}' has a label of {len(entry)} numbers; this model's have {length}")
        if shape is None and not (entry[0].is_integer() and 0 <= entry[0] < num_classes):
            raise BadInput(f"{key} '{text}': label {entry[0]:g} is out of range; use 0 to {num_classes - 1}")
    if shape is None:
        return [jnp.asarray(term, jnp.int32)[:, 0] for term in terms]
    return [jnp.asarray(term, jnp.float32) for term in terms]
