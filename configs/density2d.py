"""Two-dimensional densities, where the truth is known: the eight Gaussians, or another one by its name.

python run.py --config=configs/density2d.py [--config.data.name=two_moons|checkerboard|rings|spirals|pinwheel]
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "density"
    config.data.name = "eight_gaussians"
    config.data.shape = (2,)
    config.model.name = "mlp"
    config.model.width = 128
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.chain.num_steps = 20
    config.chain.step_size = 1e-4
    config.chain.tied = True
    config.chain.grad_clip = float("inf")
    config.buffer.capacity = 4_096
    config.buffer.restart_prob = 0.02
    config.loss.energy_l2 = 1e-4
    config.optim.learning_rate = 1e-3
    config.optim.ema_decay = 0.999
    config.train.batch_size = 512
    config.train.num_steps = 4_000
    config.sample.num_images = 4_096
    config.sample.batch_size = 4_096
    config.sample.num_steps = 1_000
    config.sample.quiet_steps = 0
    config.log.every = 200
    config.log.images_every = 1_000
    config.checkpoint.every = 2_000
    return config
