"""Generated shapes, 16x16x1, conditional on the position (x, y) in [0, 1]²; the shape is free.

    python run.py --config=configs/shapes_position.py

2 cores of an AMD EPYC without AMX, JAX 0.10.2, other jobs taking much of the cores (load 4 to 7): 1,500 steps in 741 s,
compiling and pictures included (commit b430486). Of the run's 64 last chains from noise, 98 % lay within 1.5 pixels of
their label by the judge of benchmarks/composition.py; 78 % after 1,000 steps. How it composes with shapes_shape:
docs/results.md.
"""

from configs import shapes_shape


def get_config():
    config = shapes_shape.get_config()
    config.data.condition = "position"
    config.model.num_classes = 2
    return config
