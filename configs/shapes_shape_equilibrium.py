"""Generated shapes by disc, bar or pillar: equilibrium matching.

    python run.py --config=configs/shapes_shape_equilibrium.py

16x16x1; half of a composition. Its samples descend from noise. 2,500 steps took about 150 s beside other jobs (2 cores
of an Intel Xeon with AMX, 189 CPU seconds; commit 2082963). How it composes with shapes_position_equilibrium:
docs/results.md.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.source = "shapes"
    config.data.name = "shapes"
    config.data.condition = "shape"
    config.data.shape = (16, 16, 1)
    config.model.num_classes = 3
    config.method.then.after = 0
    config.chain.kernel = "descent"
    config.sample.descent_steps = 0
    config.sample.num_steps = 100
    config.sample.quiet_steps = 0
    config.optim.decay_steps = config.train.num_steps = 2_500
    config.checkpoint.every = 500
    return config
