"""dSprites, 64x64, conditional on the sprite's position (x, y).

    python run.py --config=configs/dsprites_position.py

64x64x1; the position is (x, y) in [0, 1]². All constants are from dsprites_shape, with the release's flag --cond_pos.
Not measured.
"""

from configs import dsprites_shape


def get_config():
    config = dsprites_shape.get_config()
    config.data.condition = "position"
    config.model.num_classes = 2  # the label's length
    return config
