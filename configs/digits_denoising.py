"""Handwritten digits by classes: denoising over several noise levels.

    python run.py --config=configs/digits_denoising.py

scikit-learn's bundled handwritten digits, 8x8x1. Li, Chen & Sommer (2019, arXiv 1910.07762) on the U-Net's ½|x -
f(x)|², which is what the energy far from the data has to be, f(x) being the denoised image. 1,750 steps of training;
samples come from 400 steps of Langevin dynamics, at a temperature that falls with the square of the noise. What it
gives beside the other methods: docs/methods.md.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.method.name = "denoising"
    config.method.denoising.sigma = 1.0
    config.method.denoising.least = 0.05
    config.method.denoising.most = 1.2
    config.method.then.after = 0
    config.model.unet.energy = "half_distance"
    config.chain.step_size = 0.1
    config.chain.temperature = 0.0025  # the square of the smallest noise
    config.sample.anneal_from = 1.44
    config.sample.descent_steps = 0
    config.sample.num_steps = 400
    config.sample.quiet_steps = 10
    return config
