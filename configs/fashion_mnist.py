"""Fashion-MNIST by classes: equilibrium matching, then chains.

    python run.py --config=configs/fashion_mnist.py

28x28x1, on a laptop. 5,000 steps of matching teach an energy whose descent generates; then contrastive divergence with
a replay buffer joins for 200 steps, at the temperature 0.01. What it gives, and takes: docs/results.md. The 2019 method
alone: fashion_mnist_contrastive.py and fashion_mnist_conditional.py.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.data.source = "tfds"
    config.data.name = "fashion_mnist"
    config.data.shape = (28, 28, 1)
    config.method.then.after = config.optim.decay_steps = 5_000
    config.train.num_steps = 5_200
    config.buffer.capacity = 512
    config.optim.final_share = 0.1
    config.optim.ema_decay = 0.998
    config.guard.max_separation = 20.0  # of 784 pixels: a run that ended well had -256, beyond the default -200
    config.sample.guidance = 2.0  # in the middle of the descent it makes the class clearer and costs nothing
    config.sample.guidance_from = 0.4
    config.sample.guidance_until = 0.8
    config.log.every = 50
    config.checkpoint.every = 500
    return config
