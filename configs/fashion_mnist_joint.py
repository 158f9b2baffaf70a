"""Fashion-MNIST, 28x28x1: a classifier whose logits are energies, JEM (Grathwohl et al. 2020), on a laptop."""

from configs import fashion_mnist_contrastive


def get_config():
    config = fashion_mnist_contrastive.get_config()
    config.model.num_classes = 10
    config.model.logits = True
    config.method.name = "joint"
    config.chain.num_steps = 20
    config.chain.step_size = 0.25
    config.chain.grad_clip = float("inf")
    config.buffer.restart_prob = 0.05
    config.loss.energy_l2 = 0.0
    config.loss.data_noise = 0.015
    config.train.num_steps = 6_000
    config.log.images_every = config.checkpoint.every = 500
    return config
