"""Fashion-MNIST, unconditional, by the 2019 method.

    python run.py --config=configs/fashion_mnist_contrastive.py

28x28x1, on a laptop. 2 cores of a 2.8 GHz Xeon without AMX, JAX 0.10.2: 1,050 steps and 300-step chains from noise took
13 min 20 s, preparing the data and compiling included, with other jobs on some of the cores (commit bafbb19's code).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "fashion_mnist"
    config.data.shape = (28, 28, 1)
    config.model.name = "small"
    config.model.width = 32
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.chain.num_steps = 30
    config.chain.step_size = 10.0
    config.chain.grad_clip = 0.03
    config.buffer.capacity = 2_048
    config.buffer.restart_prob = 0.1
    config.loss.energy_l2 = 0.1
    config.optim.learning_rate = 3e-4
    config.optim.ema_decay = 0.995
    config.train.batch_size = 64
    config.train.num_steps = 1_050
    config.log.every = 20
    config.log.images_every = 350
    config.checkpoint.every = 350
    return config
