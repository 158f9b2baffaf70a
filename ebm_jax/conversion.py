"""Published energies of others as this package's: their weights are read, never unpickled, and saved as a folder.

The folder is one that `ebm_jax.load`, `open_run` and the modes sample, evaluate and export take (publishing.py).
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ebm_jax import cli, publishing, shipped
from ebm_jax.schema import with_values
from ebm_jax.storage import bucket, weights
from ebm_jax.trained import TrainedRun, open_run
from ebm_jax.types import BadInput, Folder, Params

JEM = "model_state_dict"  # the part of a checkpoint that holds the network
CIFAR = {10: "cifar10", 100: "cifar100"}  # by the number of classes


def jem(file: str | Path, folder: str | Folder, *, sha256: str = "", license: str = "", notes: str = "") -> TrainedRun:
    """A checkpoint of JEM (Grathwohl et al. 2020; wgrathwohl/JEM), a wide residual net without normalisation.

    Its energy is U(x) = -log Σ_y exp f_y(x) and U(x, y) = -f_y(x), of pixels in [0, 1]. How it samples is of
    configs/cifar10_joint.py.

    Args:
      file: as the release's train_wrn_ebm.py writes it, or its published CIFAR10_MODEL.pt.
      folder: to write; it must not exist.
      sha256: the hash that the file must have, or its beginning; empty allows any.
      license, notes: for the card, as for `TrainedRun.save`.

    Raises:
      BadInput: the file cannot be read, has another hash, or holds another network; or the folder exists.
    """
    path = Path(file).expanduser()
    read = weights.read(path, sha256, JEM)
    try:
        params, shape = jem_params(read.arrays)
    except KeyError as error:
        raise BadInput(f"{path} lacks {error.args[0]}, which JEM's networks have; give a checkpoint of JEM") from error
    except ValueError as error:
        raise BadInput(f"{path} is of no network that is known here: {error}; give a checkpoint of JEM") from error
    config = with_values(cli.from_file(shipped.named("cifar10_joint")), shape)
    from_where = f"Converted from {path.name}, SHA-256 {read.digest}, by the layout of wgrathwohl/JEM at 3d01161."
    words = {"license": license, "notes": f"{from_where} {notes}".strip()}
    target = bucket.folder_of(folder, "folder")
    with tempfile.TemporaryDirectory() as nothing:
        publishing.publish(config, params, 0, Path(nothing), target, **words)
    return open_run(target)


def jem_params(arrays: Mapping[str, np.ndarray]) -> tuple[Params, dict[str, Any]]:
    """The parameters of `models.wide_resnet` from JEM's state dict, and the keys of the config that they fit.

    Raises:
      KeyError: an array is missing.
      ValueError: there is an array that this network has not, such as a normalisation's.
    """
    rest = dict(arrays)
    stem = _convolution(rest, "f.conv1")
    params: dict[str, Any] = {"stem": stem[0], "bias": stem[1]}
    blocks = 1 + max(
        int(found[1]) for name in rest if (found := re.fullmatch(r"f\.layer1\.(\d+)\.conv1\.weight", name))
    )
    width, classes = len(rest["f.layer1.0.conv1.weight"]), len(rest["class_output.weight"])
    for stage in range(3):
        for index in range(blocks):
            theirs, block = f"f.layer{stage + 1}.{index}", {}
            for number in (1, 2):
                block[f"conv{number}"], block[f"bias{number}"] = _convolution(rest, f"{theirs}.conv{number}")
            if f"{theirs}.shortcut.0.weight" in rest:
                kernel, bias = _convolution(rest, f"{theirs}.shortcut.0")
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


def _convolution(rest: dict[str, np.ndarray], name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Kernel [h, w, in, out] and bias [1, out] of a convolution of PyTorch's, [out, in, h, w] there."""
    kernel, bias = rest.pop(f"{name}.weight"), rest.pop(f"{name}.bias")
    return {"kernel": kernel.transpose(2, 3, 1, 0)}, {"table": bias[None]}
