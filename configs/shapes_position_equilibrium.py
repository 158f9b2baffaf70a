"""Generated shapes by the position: equilibrium matching.

    python run.py --config=configs/shapes_position_equilibrium.py

16x16x1; the other half of a composition. Its samples descend from noise. 2,500 steps took about 150 s beside other jobs
(2 cores of an Intel Xeon with AMX, 189 CPU seconds; commit 2082963). How it composes with shapes_shape_equilibrium:
docs/results.md.
"""

from configs import shapes_shape_equilibrium


def get_config():
    config = shapes_shape_equilibrium.get_config()
    config.data.condition = "position"
    config.model.num_classes = 2
    return config
