"""Two-dimensional densities by telling data from uniform noise (Gutmann & Hyvärinen 2010): U becomes -log q itself.

    python run.py --config=configs/density2d_noise_contrastive.py [--config.data.name=two_moons|...]

No chain in training. Samples are of density2d.py's chains, and so is the report: docs/results.md.
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
