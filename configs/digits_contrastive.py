"""Handwritten digits by the 2019 method alone, from scratch.

    python run.py --config=configs/digits_contrastive.py

scikit-learn's bundled handwritten digits, 8x8x1, by contrastive divergence. 2 cores of a 2.8 GHz Xeon without AMX, JAX
0.10.2: 1,000 steps in 112 s, compiling and pictures included, with another job on some of the cores (commit 59f4088).
Chains from noise end at a median distance of 1.66 from the nearest training image; test images lie at 1.05, uniform
noise at 3.52 (L2, pixels in [0, 1]).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "sklearn"
    config.data.name = "digits"
    config.data.shape = (8, 8, 1)
    config.model.name = "small"
    config.model.width = 32
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.chain.num_steps = 30
    config.chain.step_size = 10.0
    config.chain.grad_clip = 0.03
    config.buffer.capacity = 1_024
    config.buffer.restart_prob = 0.1
    config.loss.energy_l2 = 0.1
    config.optim.learning_rate = 3e-4
    config.optim.ema_decay = 0.995
    config.train.batch_size = 64
    config.train.num_steps = 1_000
    config.log.every = 20
    config.log.images_every = 500
    config.checkpoint.every = 500
    return config
