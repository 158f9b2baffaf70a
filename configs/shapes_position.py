"""Generated shapes, 16x16x1, conditional on the position (x, y) in [0, 1]²; the shape is free.

    python run.py --config=configs/shapes_position.py

Not measured.
"""

from configs import shapes_shape


def get_config():
    config = shapes_shape.get_config()
    config.data.condition = "position"
    config.model.num_classes = 2
    return config
