"""dSprites, 64x64, conditional on the sprite's orientation.

    python run.py --config=configs/dsprites_rotation.py

64x64x1; the orientation is (cos, sin) of the angle. All constants are from dsprites_shape, with the release's flag
--cond_rot. Not measured.
"""

from configs import dsprites_shape


def get_config():
    config = dsprites_shape.get_config()
    config.data.condition = "rotation"
    config.model.num_classes = 2  # the label's length
    return config
