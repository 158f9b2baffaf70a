"""Two-dimensional densities, told from uniform noise: U is -log q.

    python run.py --config=configs/density2d_noise_contrastive.py [--config.data.name=two_moons|...]

By Gutmann & Hyvärinen (2010): telling data from noise makes U become -log q itself. No chain in training; samples are
of density2d.py's chains. 8,000 steps take 22 seconds of CPU time on an AMD EPYC, compiling and pictures included. KL
divergence then, nats, the worst of three seeds: eight_gaussians 0.0015, two_moons 0.0008, checkerboard 0.029, rings
0.0003, spirals 0.0049, pinwheel 0.0018 (docs/results.md).
"""

from configs import density2d


def get_config():
    config = density2d.get_config()
    config.method.name = "noise_contrastive"
    config.optim.learning_rate = 1e-2
    config.optim.b1 = 0.9
    config.optim.clip_offset = float("inf")
    config.optim.decay_steps = config.train.num_steps = 8_000
    config.train.steps_per_call = 50
    config.log.images_every = config.checkpoint.every = 4_000
    return config
