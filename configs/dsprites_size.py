"""dSprites, 64x64, conditional on the sprite's scale, from 0.5 to 1.

    python run.py --config=configs/dsprites_size.py

All constants are from dsprites_shape, with the release's flag --cond_size. Not measured.
"""

from configs import dsprites_shape


def get_config():
    config = dsprites_shape.get_config()
    config.data.condition = "size"
    config.model.num_classes = 1  # the label's length
    return config
