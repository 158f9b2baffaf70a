"""The default of every key, from ebm_jax/schema.py, which gives its meaning, unit, range and source.

The other files of this folder are differences from this one. The command line can set any key:
`python run.py --config=configs/digits.py --config.sample.num_images=16`. The config is locked: an unknown key is
an error.
"""

from typing import Any

from ebm_jax import schema


def get_config() -> Any:
    return schema.default_config()
