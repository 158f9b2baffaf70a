"""The verb that prepares a data set without training on it."""

from ebm_jax import checks, invocation
from ebm_jax.data import found, sources
from ebm_jax.report import bars, console, progress
from ebm_jax.types import Config, Folder


def prepare(config: Config, folder: str | Folder) -> int:
    """Download, verify and prepare the config's data, and read it; leave `folder` alone.

    It reads only the first batch of data that stream.

    Returns:
      The exit status 0.

    Raises:
      BadInput: the config cannot work, or the data cannot be had.
    """
    del folder
    checks.check(config, 1)
    with (
        progress.Board(f"preparing {config.data.name}"),
        progress.phase(f"preparing and reading {config.data.name} {config.data.split}"),
        bars.as_notes(),
        sources.open_data(config, console.warn) as data,
    ):
        images = data.batches(0).images
    if data.record:
        console.say(found.line(data.record))
    shape = "x".join(map(str, images.shape[-len(config.data.shape) :]))
    console.say(f"{config.data.name} {config.data.split}: ready, images of {shape}")
    console.say(f"train on them: {console.command(*invocation.again(mode='train'))}")
    return 0
