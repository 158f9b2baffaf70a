"""Where images come from: read one by one in any order, with what cannot be read named, counted and stepped over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Label = Any  # an integer in 0..num_classes-1, or a float32 vector [num_classes] that stands for a soft label


class Source(NamedTuple):
    """Images that can be read one by one, in any order, by several threads at once."""

    length: int
    read: Callable[[int], tuple[np.ndarray, Label]]
    """Row -> (uint8 [h, w, c], label). Raises `images.Unreadable`."""
    name: Callable[[int], str]
    """Row -> what a person finds the image by: a path, a record of a file."""
    num_classes: int
    """Number of classes, or length of a soft label."""
