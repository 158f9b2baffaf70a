"""The 256 levels of a pixel: how images in [0, 1] become bytes."""

import numpy as np


def quantised(images: np.ndarray) -> np.ndarray:
    """Images [..., c] in [0, 1] as uint8 levels, floor(256 x): the inverse of `random.dequantise`.

    Training sees a level v as (v + u)/256 with u uniform in [0, 1), so the level v is the interval from v/256 to
    (v + 1)/256. Data divided by 255 come back too. Values outside of [0, 1] count as its ends.
    """
    return np.clip(np.floor(np.float32(256) * images), 0, 255).astype(np.uint8)
