"""JEM's state dict (wgrathwohl/JEM at 3d01161) as parameters of `models.wide_resnet`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ebm_jax.conversion.layers import convolution

CIFAR = {10: "cifar10", 100: "cifar100"}  # by the number of classes


def jem_params(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of `models.wide_resnet` from JEM's state dict, and the keys of the config that they fit.

    Raises:
      KeyError: an array is missing.
      ValueError: there is an array that this network has not, such as a normalisation's.
    """
    rest = dict(arrays)
    stem = convolution(rest, "f.conv1")
    params: dict[str, Any] = {"stem": stem[0], "bias": stem[1]}
    blocks = 1 + max(
        int(found[1]) for name in rest if (found := re.fullmatch(r"f\.layer1\.(\d+)\.conv1\.weight", name))
    )
    width, classes = len(rest["f.layer1.0.conv1.weight"]), len(rest["class_output.weight"])
    for stage in range(3):
        for index in range(blocks):
            theirs, block = f"f.layer{stage + 1}.{index}", {}
            for number in (1, 2):
                block[f"conv{number}"], block[f"bias{number}"] = convolution(rest, f"{theirs}.conv{number}")
            if f"{theirs}.shortcut.0.weight" in rest:
                kernel, bias = convolution(rest, f"{theirs}.shortcut.0")
                block["skip"] = {"kernel": kernel["kernel"][0, 0], "bias": bias["table"][0]}
            params[f"stage{stage}_{index}"] = block
    params["head"] = {"kernel": rest.pop("class_output.weight").T, "bias": rest.pop("class_output.bias")}
    for unused in ("f.linear", "energy_output"):  # no energy of a classifier passes through them
        del rest[f"{unused}.weight"], rest[f"{unused}.bias"]
    if rest:
        raise ValueError(f"it has {min(rest)}")
    if classes not in CIFAR:
        raise ValueError(f"it has {classes} classes, not 10 or 100")
    keys = {"model.width": width, "model.wide_resnet.depth": 6 * blocks + 4, "model.num_classes": classes}
    return params, keys | {"data.name": CIFAR[classes]}
