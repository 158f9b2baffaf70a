"""Two-dimensional densities by equilibrium matching, then chains.

    python run.py --config=configs/density2d_equilibrium.py [--config.data.name=two_moons|...]

How far U/T is a log-density, against the truth. 2,000 steps of matching, then 2,000 with contrastive divergence as
well. In two dimensions nothing tells how noisy a point is, so matching's gradient does not vanish at the data and
contradicts a density's. Hence contrastive divergence weighs 200 times as much, at T = 0.1: docs/results.md. Chains
alone, density2d.py, are the way to a density.
"""

from configs import density2d


def get_config():
    config = density2d.get_config()
    config.method.name = "equilibrium"
    config.method.then.after = 2_000
    config.method.then.weight = 200.0
    config.chain.kernel = "langevin"
    config.chain.base = "centred_normal"
    config.chain.temperature = 0.1
    config.chain.step_size = 1e-3
    config.chain.grad_clip = float("inf")
    config.buffer.descent_steps = 60
    config.loss.energy_l2 = 0.0
    config.optim.clip_offset = float("inf")
    config.optim.clip_norm = 1.0
    config.guard.max_energy = float("inf")
    config.guard.max_separation = 20.0
    config.sample.descent_steps = 100
    config.sample.num_steps = 20
    return config
