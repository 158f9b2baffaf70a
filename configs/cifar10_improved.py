"""CIFAR-10 by improved contrastive divergence (2021), on a GPU.

    python run.py --config=configs/cifar10_improved.py

Unconditional, by Du, Li, Tenenbaum & Mordatch (2021). The constants of the release
(yilundu/improved_contrastive_divergence at 7d3d4ee), whose loss takes the mean over three energies of an image where
ours has their sum: times 3, it is ours with three times its weight of the entropy, a third of its λ and three times its
clip (ebm_jax/models/multiscale.py). Not its: λ acts on the sum, not on each energy; the buffer is full of noise at
first, and chains go back to their own slots, where the release's is empty at first and replaces random ones of all
chains it ever saw (reservoir sampling); the term's last step is one more, without noise; no run ends at a mean energy
of 10.

Paper: FID 25.1, Inception Score 7.85. Not trained here. Not measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.name = "multiscale"
    config.model.width = 64
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.method.name = "improved"
    config.method.improved.entropy_weight = 0.9  # 0.3 of a loss that is a third of this one
    config.chain.num_steps = 40
    config.chain.step_size = 100.0
    config.chain.grad_clip = float("inf")
    config.chain.langevin.noise_scale = 0.001
    config.buffer.restart_prob = 0.001
    config.buffer.dtype = "uint8"
    config.buffer.augment = 1.0
    config.loss.energy_l2 = 1 / 3  # 1, of each energy
    config.optim.learning_rate = 2e-4
    config.optim.b2 = 0.9
    config.optim.clip_offset = float("inf")
    config.optim.clip_norm = 1.5  # 0.5, as the entropy's weight
    config.optim.ema_decay = 0.99
    config.train.num_steps = 20_000
    return config
