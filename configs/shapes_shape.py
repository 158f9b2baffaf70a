"""Generated shapes, 16x16, conditional on disc, bar or pillar.

    python run.py --config=configs/shapes_shape.py

A pillar is a bar on end; the place is free. 2 cores of an AMD EPYC without AMX, JAX 0.10.2, other jobs on most of the
cores (load 4 to 7): 1,500 steps in 765 s, compiling and pictures included (commit b430486). The judge of
benchmarks/composition.py found that all of the run's 64 last chains from noise had the shape of their label; after
1,000 steps 98 %. docs/results.md says how it composes with shapes_position. With a learning rate of 3e-4 the samples of
a similar run (squares, ellipses, triangles) were still blobs after 2,000 steps. On an Intel Xeon with AMX the same seed
never learnt the shape, and seed 1 did (docs/results.md); shapes_shape_equilibrium.py learnt it both times that it was
tried.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "shapes"
    config.data.name = "shapes"
    config.data.condition = "shape"
    config.data.shape = (16, 16, 1)
    config.model.name = "small"
    config.model.width = 32
    config.model.num_classes = 3
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.chain.num_steps = 20
    config.chain.step_size = 20.0
    config.chain.grad_clip = 0.03
    config.buffer.capacity = 2_048
    config.buffer.restart_prob = 0.1
    config.loss.energy_l2 = 0.1
    config.optim.learning_rate = 1e-3
    config.optim.ema_decay = 0.995
    config.train.batch_size = 64
    config.train.num_steps = 1_500
    config.log.every = 50
    config.log.images_every = 250
    config.checkpoint.every = 500
    return config
