"""The handwritten digits of digits.py by a classifier that is an energy: JEM (Grathwohl et al. 2020)."""

from configs import digits_contrastive


def get_config():
    config = digits_contrastive.get_config()
    config.model.num_classes = 10
    config.model.logits = True
    config.method.name = "joint"
    config.chain.num_steps = 20
    config.chain.step_size = 0.25
    config.chain.grad_clip = float("inf")
    config.buffer.restart_prob = 0.05
    config.loss.energy_l2 = 0.0
    config.loss.data_noise = 0.015
    return config
