"""Handwritten digits by classes: energy matching (2025), both phases.

    python run.py --config=configs/digits_energy_matching.py

scikit-learn's bundled handwritten digits, 8x8x1, by Balcerak et al. (2025). 1,500 steps of the flow, then 250 with the
contrast of fresh chains as well. Pairs are independent: exact ones do not know the classes. What it gives beside the
other methods: docs/methods.md.
"""

from configs import digits


def get_config():
    return both_phases(digits.get_config())


def both_phases(config):
    """The config with energy matching in place of equilibrium matching, and fresh chains in place of stored ones."""
    config.method.name = "energy_matching"
    config.method.energy_matching.pairing = "independent"
    config.method.then.name = "fresh_contrast"
    config.method.then.weight = 1e-3
    config.chain.step_size = 0.0025  # 0.01 for pixels from -1 to 1
    config.chain.num_steps = 100
    config.chain.descent.look_ahead = 0.0
    config.buffer.descent_steps = 100
    return config
