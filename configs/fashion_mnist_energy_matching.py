"""Fashion-MNIST by classes: energy matching (2025), both phases.

    python run.py --config=configs/fashion_mnist_energy_matching.py

28x28x1, on a laptop, by Balcerak et al. (2025), for comparison. As fashion_mnist.py, 5,000 steps of the flow, then 200
with the contrast of fresh chains as well. Pairs are independent: the paper's exact ones do not know the classes, and
gave worse samples in 1,500 steps. After 3,400 steps of the flow alone its samples are nearer to the data than those of
fashion_mnist.py without chains, guided or not: docs/methods.md. Both phases: not measured.
"""

from configs import digits_energy_matching, fashion_mnist


def get_config():
    config = digits_energy_matching.both_phases(fashion_mnist.get_config())
    config.sample.guidance, config.sample.guidance_from, config.sample.guidance_until = 0.0, 0.0, 1.0  # not measured
    return config
