"""Published energies of others as this package's: their weights are read, never unpickled, and saved as a folder.

The folder is one that `ebm_jax.load`, `open_run` and the modes sample, evaluate and export take (publishing.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebm_jax import cli, shipped
from ebm_jax.assemble import abstract_params
from ebm_jax.conversion.guided_unet import energy_matching_params
from ebm_jax.conversion.wide_resnet import jem_params
from ebm_jax.kinds import shown
from ebm_jax.opening import save
from ebm_jax.schema import with_values
from ebm_jax.storage import published, weights
from ebm_jax.trained import TrainedRun
from ebm_jax.types import BadInput, Config, Folder, Params


class Release(NamedTuple):
    """Whose checkpoints these are."""

    method: str
    layout: str
    """The repository and the commit that write them."""
    config: str
    """The name of ours that has its constants."""
    convert: Callable[[Mapping[str, np.ndarray]], tuple[dict[str, Any], dict[str, Any]]]
    """A state dict -> parameters, and the values of the config that they fit."""


JEM = Release("JEM", "wgrathwohl/JEM at 3d01161", "cifar10_joint", jem_params)
ENERGY_MATCHING = Release(
    "energy matching", "m1balcerak/EnergyMatching at 18176e4", "cifar10_energy_matching", energy_matching_params
)
PARTS = {"ema": "ema_model", "raw": "net_model"}  # of a checkpoint of energy matching, by sample.weights
SETS: dict[str, dict[str, Any]] = {
    "cifar10": {},
    "imagenet32": {
        "data.name": "imagenet_resized/32x32",
        "model.unet.transformer.clamp": 10_000.0,
        "sample.num_steps": 150,  # to t = 2.5
    },
}
"""The data of energy matching's releases, and the values in which a config differs from cifar10_energy_matching."""


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
    return _opened(JEM, file, "model_state_dict", {}, folder, sha256, license, notes)


def energy_matching(
    file: str | Path,
    folder: str | Folder,
    *,
    weights_of: str = "ema",
    data: str = "cifar10",
    sha256: str = "",
    license: str = "",
    notes: str = "",
) -> TrainedRun:
    """A checkpoint of energy matching (Balcerak et al. 2025; m1balcerak/EnergyMatching), a U-Net with a transformer.

    Its energy is the release's potential V at 2 x - 1, of pixels x in [0, 1], in float32 and without dropout. The file
    does not tell the number of attention's heads, the scale or the clamp, which are those of the release's commands.
    How it samples is of configs/cifar10_energy_matching.py, to the release's time: 3.25, or 2.5 for ImageNet.

    Args:
      file: as the release's train_cifar_multigpu.py writes it, or one that it published, such as
        cifar10_main_training_147000.pt.
      folder: to write; it must not exist.
      weights_of: the release's running mean, "ema", or the last step's, "raw".
      data: what the file was trained on, "cifar10" or "imagenet32".
      sha256: the hash that the file must have, or its beginning; empty allows any.
      license, notes: for the card, as for `TrainedRun.save`.

    Raises:
      BadInput: the file cannot be read, has another hash, or holds another network; the folder exists; or there are no
        such weights or data.
    """
    for name, value, known in (("weights_of", weights_of, PARTS), ("data", data, SETS)):
        if value not in known:
            raise BadInput(f"{name} {shown(value)} is unknown; use one of {', '.join(known)}")
    values = {"model.dtype": "float32", "sample.weights": weights_of} | SETS[data]
    return _opened(ENERGY_MATCHING, file, PARTS[weights_of], values, folder, sha256, license, notes)


def _opened(
    release: Release,
    file: str | Path,
    part: str,
    values: dict[str, Any],
    folder: str | Folder,
    sha256: str,
    license: str,
    notes: str,
) -> TrainedRun:
    """A part of a checkpoint as a folder, opened.

    Args:
      values: of the config, beside those that the arrays tell.
    """
    path = Path(file).expanduser()
    read = weights.read(path, sha256, part)
    try:
        config, params = _converted(release, read.arrays, values)
    except KeyError as error:
        method = release.method
        raise BadInput(
            f"{path} lacks {error.args[0]}, which networks of {method} have; give a checkpoint of {method}"
        ) from error
    except (ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path} is of no network that is known here: {reason}; give a checkpoint of {release.method}"
        ) from error
    origin = f"Converted from {path.name}, SHA-256 {read.digest}, by the layout of {release.layout}."
    return save((config, params), folder, license=license, notes=f"{origin} {notes}".strip())


def _converted(release: Release, arrays: Mapping[str, np.ndarray], values: dict[str, Any]) -> tuple[Config, Params]:
    """The config and the parameters of a state dict.

    Raises:
      KeyError, ValueError, IndexError: it is of another network.
    """
    converted, shape = release.convert(arrays)
    params = jax.tree.map(jnp.asarray, converted)
    config = with_values(cli.from_file(shipped.named(release.config)), shape | values)
    found = published.by_path(params)
    for name, leaf in published.by_path(abstract_params(config)).items():
        if found[name].shape != leaf.shape:
            raise ValueError(f"it has the shape {found[name].shape} for {name}, not {leaf.shape}")
    return config, params
