"""The verb that prepares a data set without training on it."""

from pathlib import Path

from ebm_jax import build
from ebm_jax.io import report
from ebm_jax.types import Config


def prepare(config: Config, folder: Path) -> int:
    """Download, verify and prepare the config's data, and read it once; `folder` is not touched.

    Raises:
      BadInput: the data cannot be had.
    """
    del folder
    build.check(config, 1)
    dataset = build.make_dataset(config)
    n, *shape = dataset.images.shape
    report.say(f"{config.data.name} {config.data.split}: {n} images of {'x'.join(map(str, shape))}, ready")
    return 0
