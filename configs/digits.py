"""Handwritten digits by classes: the config to try first, in minutes.

    python run.py --config=configs/digits.py

scikit-learn's bundled handwritten digits, 8x8x1; no network, no GPU. 1,500 steps of equilibrium matching teach a
U-Net's scalar energy whose descent generates. Then contrastive divergence with a replay buffer joins for 250 steps, at
the temperature 0.01: Langevin chains stay at the digits. What it gives: docs/results.md. The 2019 method alone:
digits_contrastive.py.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "sklearn"
    config.data.name = "digits"
    config.data.shape = (8, 8, 1)
    config.model.name = "unet"
    config.model.width = 32
    config.model.num_classes = 10
    config.model.unet.patch = 2
    config.model.activation = "swish"
    config.model.spectral_norm = False
    config.model.dtype = "bfloat16"
    config.method.name = "equilibrium"
    config.method.then.after = 1_500
    config.method.then.weight = 0.2
    config.chain.base = "centred_normal"
    config.chain.langevin.tied = True
    config.chain.temperature = 0.01
    config.chain.grad_clip = float("inf")
    config.chain.step_size = 1e-3
    config.chain.num_steps = 20
    config.buffer.capacity = 256
    config.buffer.restart_prob = 0.05
    config.buffer.descent_steps = 60
    config.loss.energy_l2 = 0.0
    config.loss.data_noise = 0.01
    config.sample.descent_steps = 100
    config.sample.num_steps = 20
    config.sample.quiet_steps = 20
    config.optim.learning_rate = 3e-3
    config.optim.b1 = 0.9
    config.optim.b2 = 0.99
    config.optim.clip_offset = float("inf")
    config.optim.clip_norm = 1.0
    config.optim.warmup_steps = 100
    config.optim.decay_steps = 1_750
    config.optim.final_share = 0.1
    config.optim.ema_decay = 0.995
    config.optim.ema_ramp = True
    config.guard.max_energy = float("inf")
    config.train.batch_size = 64
    config.train.num_steps = 1_750
    config.train.steps_per_call = 5  # a loop of steps reuses its memory: a third faster on a CPU
    config.log.every = 50
    config.log.images_every = 0  # at the end alone
    config.checkpoint.every = 1_500
    return config
