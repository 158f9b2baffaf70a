"""CIFAR-10 by classes: equilibrium matching of a U-Net, on one GPU.

    python run.py --config=configs/cifar10_equilibrium.py

The energy is the U-Net's scalar, of 20 M parameters. Not in the 2019 paper (Wang & Du 2025, arXiv 2510.02300). Its
samples descend from noise; no chain runs in training. Not measured.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.source = "tfds"
    config.data.name = "cifar10"
    config.data.shape = (32, 32, 3)
    config.model.width = 128
    config.model.unet.multipliers = (1, 2, 2)
    config.model.unet.blocks = 3
    config.model.unet.patch = 1
    config.model.unet.attention = 8
    config.model.unet.dropout = 0.1
    config.method.then.after = 0
    config.chain.kernel = "descent"
    config.sample.descent_steps = 0
    config.sample.num_steps = 250
    config.sample.quiet_steps = 0
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 1_000
    config.optim.decay_steps = config.train.num_steps = 30_000
    config.optim.final_share = 0.02
    config.optim.ema_decay = 0.9995
    config.train.batch_size = 256
    config.log.every = 100
    config.log.images_every = config.checkpoint.every = 5_000
    return config
