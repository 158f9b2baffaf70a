"""dSprites, 64x64x1, conditional on the sprite's orientation, (cos, sin) of its angle.

    python run.py --config=configs/dsprites_rotation.py

All constants are from dsprites_shape, with the release's flag --cond_rot. Not measured.
"""

from configs import dsprites_shape


def get_config():
    config = dsprites_shape.get_config()
    config.data.condition = "rotation"
    config.model.num_classes = 2  # the label's length
    return config
