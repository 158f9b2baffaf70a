"""Fashion-MNIST, 28x28x1, by classes: equilibrium matching of a U-Net's scalar energy, on a laptop.

    python run.py --config=configs/fashion_mnist.py

Its samples descend from noise: no chain runs in training. 6,000 steps took 21 minutes on 2 cores of an Intel Xeon with
AMX beside other jobs, and 1,532 CPU seconds. What they gave: docs/results.md.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.source = "tfds"
    config.data.name = "fashion_mnist"
    config.data.shape = (28, 28, 1)
    config.method.then.after = 0
    config.chain.kernel = "descent"
    config.sample.descent_steps = 0
    config.sample.num_steps = 100
    config.sample.quiet_steps = 0
    config.optim.final_share = 0.02
    config.optim.decay_steps = config.train.num_steps = 6_000
    config.optim.ema_decay = 0.998
    config.log.every = 50
    config.log.images_every = config.checkpoint.every = 1_000
    return config
