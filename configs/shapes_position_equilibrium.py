"""Generated shapes, 16x16x1, conditional on the position, by equilibrium matching: the other half of a composition.

    python run.py --config=configs/shapes_position_equilibrium.py

Its samples descend from noise. How it composes with shapes_shape_equilibrium: docs/results.md.
"""

from configs import shapes_shape_equilibrium


def get_config():
    config = shapes_shape_equilibrium.get_config()
    config.data.condition = "position"
    config.model.num_classes = 2
    return config
